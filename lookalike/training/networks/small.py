"""A residual network for small pictures, such as drawings of 64 pixels a side: few parameters, trained from nothing."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from lookalike.training.networks.base import Network

__all__ = ["Block", "SmallNetwork"]


class Block(nn.Module):
    """Two convolutions, each with batch normalisation; added to the input (He et al. 2015), brought to its shape.

    Where it halves the picture, the shortcut averages 2 × 2 pixels before its 1 × 1 convolution, so that it throws
    none of them away (He et al. 2018, "ResNet-D").
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            *_convolution(inputs, outputs, kernel, stride),
            nn.ReLU(inplace=True),
            *_convolution(outputs, outputs, kernel, 1),
        )
        shortcut: list[nn.Module] = []
        if stride != 1:
            shortcut.append(nn.AvgPool2d(stride, ceil_mode=True))
        if inputs != outputs:
            shortcut += _convolution(inputs, outputs, 1, 1)
        self.shortcut = nn.Sequential(*shortcut)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, maps: Tensor) -> Tensor:
        """(n, inputs, h, w) → (n, outputs, ⌈h / stride⌉, ⌈w / stride⌉)."""
        added: Tensor = self.relu(self.branch(maps) + self.shortcut(maps))
        return added


class SmallNetwork(Network):
    """One convolution, then a stage of residual blocks for each width; each stage but the first halves the picture.

    Args:
        channels: of the pictures.
        classes: of the classifier, or None.
        widths: channels of the stages.
        blocks: residual blocks per stage: one number for all, or one for each.
        kernel: side of the blocks' convolutions, odd.
        stem_kernel: side of the first convolution, odd.
        stem_stride: of the first convolution: 2 makes everything four times cheaper.
    """

    def __init__(
        self,
        channels: int = 3,
        classes: int | None = None,
        *,
        widths: tuple[int, ...] = (48, 96, 192),
        blocks: int | tuple[int, ...] = 2,
        kernel: int = 3,
        stem_kernel: int = 5,
        stem_stride: int = 2,
    ) -> None:
        depths = (blocks,) * len(widths) if isinstance(blocks, int) else tuple(blocks)
        _check(widths, depths, (kernel, stem_kernel), stem_stride)
        super().__init__(widths[-1], channels, classes)
        self.stem = nn.Sequential(*_convolution(channels, widths[0], stem_kernel, stem_stride), nn.ReLU(inplace=True))
        self.body = nn.Sequential()
        inputs = widths[0]
        for number, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            first = Block(inputs, width, kernel, 1 if number == 0 else 2)
            self.body.append(nn.Sequential(first, *(Block(width, width, kernel, 1) for _ in range(depth - 1))))
            inputs = width
        if classes is not None:
            self.fc = nn.Linear(inputs, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def features(self, pixels: Tensor) -> Tensor:
        """(n, channels, h, w) → (n, width, h', w'), divided by `stem_stride` and once by 2 for every further stage."""
        maps: Tensor = self.body(self.stem(pixels))
        return maps

    def stages(self) -> list[nn.Module]:
        """The stem, and one for each width."""
        return [self.stem, *self.body]


def _check(widths: Sequence[int], depths: Sequence[int], kernels: Sequence[int], stride: int) -> None:
    if not widths or len(widths) != len(depths) or min(*widths, *depths, stride) < 1:
        raise ValueError(
            f"widths, blocks and stem_stride must be at least 1, with one number of blocks for each width; "
            f"got widths {tuple(widths)}, blocks {tuple(depths)}, stem_stride {stride}"
        )
    if any(kernel < 1 or kernel % 2 == 0 for kernel in kernels):
        raise ValueError(f"kernel and stem_kernel must be odd, so that they have a middle; got {kernels}")


def _convolution(inputs: int, outputs: int, kernel: int, stride: int) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
    ]
