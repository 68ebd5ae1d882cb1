"""ResNet50 (He et al. 2015) with the stride in the 3 × 3 convolution ("version 1.5"), as torchvision's ``resnet50``."""

from __future__ import annotations

from torch import Tensor, nn

from lookalike.training.networks.base import Network

__all__ = ["Bottleneck", "ResNet50"]


class Bottleneck(nn.Module):
    """1 × 1 to `middle` channels, 3 × 3, 1 × 1 to four times `middle`; added to the input, brought to its shape."""

    def __init__(self, inputs: int, middle: int, stride: int = 1) -> None:
        super().__init__()
        outputs = 4 * middle
        self.conv1 = nn.Conv2d(inputs, middle, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(middle)
        self.conv2 = nn.Conv2d(middle, middle, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(middle)
        self.conv3 = nn.Conv2d(middle, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, maps: Tensor) -> Tensor:
        """(n, inputs, h, w) → (n, 4 · middle, h / stride, w / stride)."""
        kept = maps if self.downsample is None else self.downsample(maps)
        maps = self.relu(self.bn1(self.conv1(maps)))
        maps = self.relu(self.bn2(self.conv2(maps)))
        added: Tensor = self.relu(self.bn3(self.conv3(maps)) + kept)
        return added


class ResNet50(Network):
    """A stem that divides the picture by four, and four stages of 3, 4, 6 and 3 bottlenecks."""

    def __init__(self, channels: int = 3, classes: int | None = None) -> None:
        super().__init__(2048, channels, classes)
        self.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = _stage(64, 64, 3, stride=1)
        self.layer2 = _stage(256, 128, 4, stride=2)
        self.layer3 = _stage(512, 256, 6, stride=2)
        self.layer4 = _stage(1024, 512, 3, stride=2)
        if classes is not None:
            self.fc = nn.Linear(2048, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def features(self, pixels: Tensor) -> Tensor:
        """(n, channels, h, w) → (n, 2048, h / 32, w / 32)."""
        maps = pixels
        for stage in self.stages():
            maps = stage(maps)
        return maps

    def stages(self) -> list[nn.Module]:
        """The stem and the four stages."""
        stem = nn.Sequential(self.conv1, self.bn1, self.relu, self.maxpool)
        return [stem, self.layer1, self.layer2, self.layer3, self.layer4]


def _stage(inputs: int, middle: int, blocks: int, stride: int) -> nn.Sequential:
    rest = [Bottleneck(4 * middle, middle) for _ in range(blocks - 1)]
    return nn.Sequential(Bottleneck(inputs, middle, stride), *rest)
