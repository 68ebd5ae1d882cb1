"""AlexNet, as in "One weird trick for parallelizing convolutional neural networks" (Krizhevsky 2014).

The single-tower version without local response normalisation; parameter names are torchvision's ``alexnet``.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from lookalike.training.networks.base import Network

__all__ = ["AlexNet"]


class AlexNet(Network):
    """Five convolutions and, with a classifier, three fully connected layers. Pictures of at least 63 pixels a side."""

    features: nn.Sequential
    classifier_names = ("classifier.",)

    def __init__(self, channels: int = 3, classes: int | None = None) -> None:
        super().__init__(256, channels, classes)
        self.features = nn.Sequential(
            nn.Conv2d(channels, 64, 11, stride=4, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2),
            nn.Conv2d(64, 192, 5, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2),
            nn.Conv2d(192, 384, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(384, 256, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(256, 256, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2),
        )
        if classes is not None:
            self.classifier = nn.Sequential(
                nn.Dropout(),
                nn.Linear(256 * 6 * 6, 4096),
                nn.ReLU(inplace=True),
                nn.Dropout(),
                nn.Linear(4096, 4096),
                nn.ReLU(inplace=True),
                nn.Linear(4096, classes),
            )

    def classify(self, maps: Tensor) -> Tensor:
        """Feature maps of any size → logits."""
        logits: Tensor = self.classifier(nn.functional.adaptive_avg_pool2d(maps, 6).flatten(1))
        return logits

    def stages(self) -> list[nn.Module]:
        """One for each convolution."""
        cuts = (0, 3, 6, 8, 10, 13)
        return [self.features[start:end] for start, end in pairwise(cuts)]
