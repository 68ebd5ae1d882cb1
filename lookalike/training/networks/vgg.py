"""VGG16, with or without batch normalisation (Simonyan and Zisserman 2014, configuration D).

Parameter names are torchvision's ``vgg16`` and ``vgg16_bn``.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from lookalike.training.networks.base import Network

__all__ = ["VGG16"]

# Channels of the 3 × 3 convolutions, stage by stage; each stage ends in a pooling by two.
_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGG16(Network):
    """Thirteen convolutions and, with a classifier, three fully connected layers. At least 32 pixels a side."""

    features: nn.Sequential
    classifier_names = ("classifier.",)

    def __init__(self, channels: int = 3, classes: int | None = None, *, batch_norm: bool = False) -> None:
        super().__init__(512, channels, classes)
        layers: list[nn.Module] = []
        self._ends: list[int] = []
        inputs = channels
        for stage in _STAGES:
            for outputs in stage:
                layers.append(nn.Conv2d(inputs, outputs, 3, padding=1))
                layers += [nn.BatchNorm2d(outputs)] if batch_norm else []
                layers.append(nn.ReLU(inplace=True))
                inputs = outputs
            layers.append(nn.MaxPool2d(2))
            self._ends.append(len(layers))
        self.features = nn.Sequential(*layers)
        if classes is not None:
            self.classifier = nn.Sequential(
                nn.Linear(512 * 7 * 7, 4096),
                nn.ReLU(inplace=True),
                nn.Dropout(),
                nn.Linear(4096, 4096),
                nn.ReLU(inplace=True),
                nn.Dropout(),
                nn.Linear(4096, classes),
            )
        self._initialise()

    def _initialise(self) -> None:
        """He's initialisation: without batch normalisation, torch's default does not train at this depth."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)

    def classify(self, maps: Tensor) -> Tensor:
        """Feature maps of any size → logits."""
        logits: Tensor = self.classifier(nn.functional.adaptive_avg_pool2d(maps, 7).flatten(1))
        return logits

    def stages(self) -> list[nn.Module]:
        """Five, each ending in a pooling."""
        return [self.features[start:end] for start, end in pairwise([0, *self._ends])]
