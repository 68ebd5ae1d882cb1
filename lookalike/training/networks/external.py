"""Networks of torchvision and timm, seen as ours: feature maps, stages, published parameter names."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lookalike.errors import TrainingError
from lookalike.training.networks.base import Network
from lookalike.training.networks.weights import first_convolution

__all__ = ["MobileNetV2TF", "SameConv2d", "TimmNetwork", "TorchvisionNetwork", "torchvision_names"]

# Parts of torchvision's networks that come after the feature maps.
_AFTER_MAPS = frozenset({"avgpool", "fc", "classifier", "head", "flatten"})
# Those whose parts cannot simply be run one after the other. timm has them all.
_NOT_A_SEQUENCE = ("googlenet", "inception", "maxvit", "vit")
# What timm and torchvision call the container of a network's blocks or stages.
_OF_BLOCKS = ("blocks", "features", "layers", "stages")
# What most networks of torchvision and timm are made for; only to find out what they give.
_PROBE = (224, 224)


def torchvision_names() -> list[str]:
    """Names that follow "torchvision:": its classification networks that are a sequence up to their feature maps."""
    import torchvision

    return [str(n) for n in torchvision.models.list_models(torchvision.models) if not n.startswith(_NOT_A_SEQUENCE)]


class External(Network):
    """A network made elsewhere, as the submodule `net`, whose names are the published ones."""

    def __init__(self, net: nn.Module, channels: int, classes: int | None) -> None:
        super().__init__(0, channels, classes)
        self.net = net
        self._unused: frozenset[str] = frozenset()

    def forward(self, pixels: Tensor) -> Tensor:
        """(n, channels, h, w) normalised pixels → (n, classes) logits, as the network itself computes them."""
        if self.classes is None:
            raise ValueError("this network has no classifier: build it with classes=…, or use .features")
        logits: Tensor = self.net(pixels)
        return logits

    def published(self) -> nn.Module:
        """The network without our wrapping."""
        return self.net

    def unused(self) -> frozenset[str]:
        """Names of parameters that `features` does not depend on."""
        return self._unused

    def _ghost(self, size: tuple[int, int]) -> tuple[External, Tensor]:
        """A copy of shapes without numbers, and pictures for it: running it costs little, however large it is."""
        return copy.deepcopy(self).to("meta").eval(), torch.zeros(2, self.channels, *size, device="meta")

    def _learn_width(self, ghost: External, maps: Tensor) -> None:
        """From a ghost and its feature maps: the width, and which parameters the features do not depend on."""
        self.width = int(maps.shape[1])
        names, parameters = zip(*ghost.named_parameters(), strict=True)
        gradients = torch.autograd.grad(maps.sum(), parameters, allow_unused=True)
        self._unused = frozenset(n for n, gradient in zip(names, gradients, strict=True) if gradient is None)


class TorchvisionNetwork(External):
    """One of `torchvision_names`, with the parameter names torchvision publishes its weights under."""

    def __init__(self, name: str, channels: int = 3, classes: int | None = None) -> None:
        import torchvision

        net = torchvision.models.get_model(name, weights=None, num_classes=classes or 1)
        if channels != 3:
            _take_channels(net, channels)
        super().__init__(net, channels, classes)
        self.classifier_names = tuple(f"{part}." for part in sorted(_AFTER_MAPS))
        self._last_relu = name.startswith("densenet")  # which torchvision applies between features and pooling
        if classes is None:
            self.drop_classifier()
        ghost, pictures = self._ghost(_PROBE)
        with torch.enable_grad():  # to see what depends on what, whoever asks
            self._learn_width(ghost, ghost.features(pictures))

    def features(self, pixels: Tensor) -> Tensor:
        """(n, channels, h, w) → (n, width, h', w')."""
        maps = pixels
        for name, part in self.net.named_children():
            if name not in _AFTER_MAPS:
                maps = part(maps)
        return torch.relu(maps) if self._last_relu else maps

    def stages(self) -> list[nn.Module]:
        """Blocks, in order; layers between them belong to the block before."""
        return _stages((n, part) for n, part in self.net.named_children() if n not in _AFTER_MAPS)

    def drop_classifier(self) -> None:
        """Remove what comes after the feature maps."""
        for name in _AFTER_MAPS:
            if hasattr(self.net, name):
                setattr(self.net, name, nn.Identity())
        self.classes = None


class SameConv2d(nn.Conv2d):
    """A 3 × 3 convolution of stride 2 with TensorFlow's padding "SAME": the result has ⌈side / 2⌉ pixels.

    TensorFlow pads the right and the bottom first, and the left and the top only where a side is odd; PyTorch pads
    all sides. Weights trained with one look at pictures half a pixel off with the other.
    """

    def forward(self, maps: Tensor) -> Tensor:
        """(n, inputs, h, w) → (n, outputs, ⌈h / 2⌉, ⌈w / 2⌉)."""
        height, width = maps.shape[2:]
        padded = nn.functional.pad(maps, (width % 2, 1, height % 2, 1))
        result: Tensor = nn.functional.conv2d(padded, self.weight, self.bias, self.stride, 0, groups=self.groups)
        return result


class MobileNetV2TF(TorchvisionNetwork):
    """torchvision's ``mobilenet_v2`` with the padding its TensorFlow weights were trained with (same names)."""

    def __init__(self, channels: int = 3, classes: int | None = None) -> None:
        super().__init__("mobilenet_v2", channels, classes)
        for part in self.net.modules():
            if isinstance(part, nn.Conv2d) and part.stride == (2, 2):
                part.__class__ = SameConv2d  # only the way it computes changes: weights and names stay as they are


class TimmNetwork(External):
    """Any network of timm, with or without its published weights.

    Convolutional ones give feature maps (channels first, whatever their own order). Those of tokens are pooled as
    they themselves define, by class token or average: `tokens` is then True, and features are (n, width, 1, 1).

    Args:
        name: timm's, perhaps with its tag: "resnet18.a1_in1k".
        channels: of the pictures; timm adapts published weights itself.
        classes: of the classifier, or None.
        size: (height, width) of the pictures, for networks that are built for one size.
        pretrained: take the weights timm publishes (from the Hugging Face hub).

    Raises:
        TrainingError: the weights cannot be had, or the network gives no features in a known form.
    """

    def __init__(
        self,
        name: str,
        channels: int = 3,
        classes: int | None = None,
        *,
        size: tuple[int, int] | None = None,
        pretrained: bool = False,
    ) -> None:
        import timm

        settings: dict[str, Any] = {"pretrained": pretrained, "in_chans": channels, "num_classes": classes or 0}
        published = timm.get_pretrained_cfg(name)
        if size is not None and published is not None and published.fixed_input_size:
            settings["img_size"] = size
        try:
            net = timm.create_model(name, **settings)
        except Exception as error:  # timm and the hub's client raise whatever the network and their parsers do
            raise TrainingError(f"timm cannot make {name!r}: {' '.join(str(error).split())[:300]}") from error
        super().__init__(net, channels, classes)
        self.classifier_names = _prefixes((net.pretrained_cfg or {}).get("classifier"))
        self._channels_last = False
        self._find_form(size or tuple((net.pretrained_cfg or {}).get("input_size", (3, *_PROBE))[1:]))

    def _find_form(self, size: tuple[int, int]) -> None:
        ghost, pictures = self._ghost(size)
        with torch.enable_grad():
            raw = ghost.net.forward_features(pictures)
        if not isinstance(raw, Tensor) or raw.ndim not in (2, 3, 4):
            raise TrainingError(f"{type(self.net).__name__} of timm gives no feature maps or tokens: choose another")
        self.tokens = raw.ndim != 4
        self._channels_last = raw.ndim == 4 and raw.shape[1] != self.net.num_features == raw.shape[3]
        with torch.enable_grad():
            self._learn_width(ghost, self._maps(ghost.net, raw))

    def features(self, pixels: Tensor) -> Tensor:
        """(n, channels, h, w) → (n, width, h', w'), or (n, width, 1, 1) of a network of tokens."""
        return self._maps(self.net, self.net.forward_features(pixels))

    def _maps(self, net: nn.Module, raw: Tensor) -> Tensor:
        if self.tokens:
            pooled: Tensor = net.forward_head(raw, pre_logits=True)
            return pooled[:, :, None, None]
        return raw.permute(0, 3, 1, 2) if self._channels_last else raw

    def stages(self) -> list[nn.Module]:
        """Blocks, in order; class token and positions belong to the first, what follows the blocks to the last."""
        outer = {name.rstrip(".") for name in self.classifier_names} | {"head"}
        found = _stages((name, part) for name, part in self.net.named_children() if name not in outer)
        bare = [p for _, p in self.net.named_parameters(recurse=False)]
        return [nn.ModuleList([found[0], nn.ParameterList(bare)]), *found[1:]] if bare else found

    def undecayed(self) -> frozenset[str]:
        """What timm says: mostly positions and class token."""
        said: set[str] = getattr(self.net, "no_weight_decay", set)()
        return frozenset(f"net.{name}" for name in said)

    def drop_classifier(self) -> None:
        """Remove the last linear layer; what timm does before it stays."""
        self.net.reset_classifier(0)
        self.classes = None


def _stages(parts: Iterable[tuple[str, nn.Module]]) -> list[nn.Module]:
    """A network's children as stages: each container is one, or, where it is the one of the blocks, each of its parts.

    Single layers belong to the container before them; those at the beginning are a stage of their own.
    """
    named = list(parts)
    alone = sum(_is_container(part) for _, part in named) == 1
    children: list[nn.Module] = []
    for name, part in named:
        opened = _is_container(part) and (alone or name in _OF_BLOCKS)
        children += part.children() if opened else [part]
    stages: list[list[nn.Module]] = [[]]
    for child in children:
        block = any(True for _ in child.children()) and any(True for _ in child.parameters())
        if block and stages[-1]:
            stages.append([])
        stages[-1].append(child)
    return [stage[0] if len(stage) == 1 else nn.ModuleList(stage) for stage in stages if stage]


def _is_container(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential | nn.ModuleList) and any(True for _ in module.parameters())


def _prefixes(classifier: str | Iterable[str] | None) -> tuple[str, ...]:
    """The name or names of a classifier as prefixes of parameter names."""
    names = (classifier,) if isinstance(classifier, str) else tuple(classifier or ("head", "fc", "classifier"))
    return tuple(f"{name}." for name in names)


def _take_channels(net: nn.Module, channels: int) -> None:
    """Replace the first convolution by one for pictures of so many channels."""
    name = first_convolution(net)
    old = net.get_submodule(name)
    shape = (old.out_channels, old.kernel_size, old.stride, old.padding, old.dilation)
    parent, _, last = name.rpartition(".")
    setattr(net.get_submodule(parent), last, nn.Conv2d(channels, *shape, bias=old.bias is not None))
