"""ShuffleNet v1 (Zhang, Zhou, Lin and Sun 2017) and v2 (Ma, Zhang, Zheng and Sun 2018): accuracy for few operations.

v1 makes its 1 × 1 convolutions cheap by groups and mixes the groups by shuffling channels. v2 leaves half of the
channels alone in each unit, has no groups, and shuffles the halves.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from lookalike.training.networks.base import Network, channel_shuffle

__all__ = ["ShuffleNetV1", "ShuffleNetV2", "UnitV1", "UnitV2"]

# Table 1 of the paper: output channels of stages 2 to 4 at scale 1, by the number of groups. More groups afford more
# channels at the same cost.
_CHANNELS_V1 = {
    1: (144, 288, 576),
    2: (200, 400, 800),
    3: (240, 480, 960),
    4: (272, 544, 1088),
    8: (384, 768, 1536),
}
_STEM = 24
_UNITS = (4, 8, 4)
# Scale → stem, stages 2 to 4, last convolution (table 5 of the second paper).
_CHANNELS_V2 = {
    0.5: (24, 48, 96, 192, 1024),
    1.0: (24, 116, 232, 464, 1024),
    1.5: (24, 176, 352, 704, 1024),
    2.0: (24, 244, 488, 976, 2048),
}


class UnitV1(nn.Module):
    """1 × 1 in groups, shuffle, 3 × 3 depthwise, 1 × 1 in groups (figure 2 of the paper).

    With stride 1 the result is added to the input. With stride 2 it is concatenated to the input, averaged over
    3 × 3: channels grow at little cost, so the branch makes only the channels that are missing.
    `first_groups` is 1 in the very first unit, whose input has too few channels for groups.
    """

    def __init__(self, inputs: int, outputs: int, groups: int, stride: int, first_groups: int) -> None:
        super().__init__()
        # A quarter of the outputs, rounded up so that the groups share them evenly.
        middle = -(-(outputs // 4) // groups) * groups
        made = outputs - inputs if stride == 2 else outputs
        self.groups = groups
        self.reduce = nn.Sequential(
            nn.Conv2d(inputs, middle, 1, groups=first_groups, bias=False),
            nn.BatchNorm2d(middle),
            nn.ReLU(inplace=True),
        )
        self.depthwise = nn.Sequential(
            nn.Conv2d(middle, middle, 3, stride=stride, padding=1, groups=middle, bias=False), nn.BatchNorm2d(middle)
        )
        self.expand = nn.Sequential(nn.Conv2d(middle, made, 1, groups=groups, bias=False), nn.BatchNorm2d(made))
        self.shortcut = nn.AvgPool2d(3, stride=2, padding=1) if stride == 2 else None

    def forward(self, maps: Tensor) -> Tensor:
        """(n, inputs, h, w) → (n, outputs, h / stride, w / stride)."""
        branch = self.expand(self.depthwise(channel_shuffle(self.reduce(maps), self.groups)))
        if self.shortcut is None:
            return torch.relu(maps + branch)
        return torch.relu(torch.cat((self.shortcut(maps), branch), dim=1))


class ShuffleNetV1(Network):
    """ShuffleNet `scale`× with `groups` groups: a stem that divides by four, and stages of 4, 8 and 4 units.

    Args:
        channels: of the pictures.
        classes: of the classifier, or None.
        groups: of the 1 × 1 convolutions.
        scale: of all numbers of channels. The stem is rounded up to a multiple of `groups`, so that the groups can
            share what the first unit adds to it.
    """

    def __init__(
        self,
        channels: int = 3,
        classes: int | None = None,
        *,
        groups: Literal[1, 2, 3, 4, 8] = 3,
        scale: float = 1.0,
    ) -> None:
        if groups not in _CHANNELS_V1 or scale not in (0.25, 0.5, 1, 1.5, 2):
            raise ValueError(
                f"groups must be one of 1, 2, 3, 4, 8 and scale one of 0.25, 0.5, 1, 1.5, 2; got {groups}, {scale}"
            )
        widths = [round(scale * width) for width in _CHANNELS_V1[groups]]
        stem = -(-round(scale * _STEM) // groups) * groups
        super().__init__(widths[-1], channels, classes)
        self.stem = nn.Sequential(
            nn.Conv2d(channels, stem, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(stem),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        self.stage2 = _stage_v1(stem, widths[0], _UNITS[0], groups, first_groups=1)
        self.stage3 = _stage_v1(widths[0], widths[1], _UNITS[1], groups, first_groups=groups)
        self.stage4 = _stage_v1(widths[1], widths[2], _UNITS[2], groups, first_groups=groups)
        if classes is not None:
            self.fc = nn.Linear(widths[-1], classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def features(self, pixels: Tensor) -> Tensor:
        """(n, channels, h, w) → (n, width, h / 32, w / 32)."""
        maps: Tensor = self.stage4(self.stage3(self.stage2(self.stem(pixels))))
        return maps

    def stages(self) -> list[nn.Module]:
        """The stem and stages 2 to 4."""
        return [self.stem, self.stage2, self.stage3, self.stage4]


def _stage_v1(inputs: int, outputs: int, units: int, groups: int, first_groups: int) -> nn.Sequential:
    rest = [UnitV1(outputs, outputs, groups, 1, groups) for _ in range(units - 1)]
    return nn.Sequential(UnitV1(inputs, outputs, groups, 2, first_groups), *rest)


class UnitV2(nn.Module):
    """1 × 1, 3 × 3 depthwise, 1 × 1 on half of the channels; the other half passes; shuffle (figure 3 c, d).

    With stride 2 both halves are made from all channels, each by a branch of its own.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        half = outputs // 2
        self.stride = stride
        self.branch1 = nn.Sequential()
        if stride == 2:
            self.branch1 = nn.Sequential(
                nn.Conv2d(inputs, inputs, 3, stride=2, padding=1, groups=inputs, bias=False),
                nn.BatchNorm2d(inputs),
                nn.Conv2d(inputs, half, 1, bias=False),
                nn.BatchNorm2d(half),
                nn.ReLU(inplace=True),
            )
        self.branch2 = nn.Sequential(
            nn.Conv2d(inputs if stride == 2 else half, half, 1, bias=False),
            nn.BatchNorm2d(half),
            nn.ReLU(inplace=True),
            nn.Conv2d(half, half, 3, stride=stride, padding=1, groups=half, bias=False),
            nn.BatchNorm2d(half),
            nn.Conv2d(half, half, 1, bias=False),
            nn.BatchNorm2d(half),
            nn.ReLU(inplace=True),
        )

    def forward(self, maps: Tensor) -> Tensor:
        """(n, inputs, h, w) → (n, outputs, h / stride, w / stride)."""
        kept, changed = maps.chunk(2, dim=1) if self.stride == 1 else (maps, maps)
        return channel_shuffle(torch.cat((self.branch1(kept), self.branch2(changed)), dim=1), 2)


class ShuffleNetV2(Network):
    """ShuffleNetV2 `scale`×; parameter names are torchvision's ``shufflenet_v2_x0_5`` to ``x2_0``."""

    def __init__(self, channels: int = 3, classes: int | None = None, *, scale: float = 1.0) -> None:
        if scale not in _CHANNELS_V2:
            raise ValueError(f"scale must be one of {', '.join(map(str, _CHANNELS_V2))}; got {scale}")
        stem, *widths, last = _CHANNELS_V2[scale]
        super().__init__(last, channels, classes)
        self.conv1 = nn.Sequential(
            nn.Conv2d(channels, stem, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(stem), nn.ReLU(inplace=True)
        )
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.stage2 = _stage_v2(stem, widths[0], _UNITS[0])
        self.stage3 = _stage_v2(widths[0], widths[1], _UNITS[1])
        self.stage4 = _stage_v2(widths[1], widths[2], _UNITS[2])
        self.conv5 = nn.Sequential(
            nn.Conv2d(widths[2], last, 1, bias=False), nn.BatchNorm2d(last), nn.ReLU(inplace=True)
        )
        if classes is not None:
            self.fc = nn.Linear(last, classes)

    def features(self, pixels: Tensor) -> Tensor:
        """(n, channels, h, w) → (n, width, h / 32, w / 32)."""
        maps: Tensor = self.stage4(self.stage3(self.stage2(self.maxpool(self.conv1(pixels)))))
        return self.conv5(maps)

    def stages(self) -> list[nn.Module]:
        """The stem, stages 2 to 4, and the last convolution."""
        return [nn.Sequential(self.conv1, self.maxpool), self.stage2, self.stage3, self.stage4, self.conv5]


def _stage_v2(inputs: int, outputs: int, units: int) -> nn.Sequential:
    return nn.Sequential(UnitV2(inputs, outputs, 2), *(UnitV2(outputs, outputs, 1) for _ in range(units - 1)))
