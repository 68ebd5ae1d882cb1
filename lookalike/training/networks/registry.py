"""The networks by name: what there is, what each takes, how its pictures are prepared, and how it is built."""

from __future__ import annotations

import difflib
import inspect
import os
import typing
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lookalike.errors import ConfigError, TrainingError
from lookalike.training.networks.alexnet import AlexNet
from lookalike.training.networks.base import Network, seeded
from lookalike.training.networks.external import MobileNetV2TF, TimmNetwork, TorchvisionNetwork, torchvision_names
from lookalike.training.networks.resnet import ResNet50
from lookalike.training.networks.shufflenet import ShuffleNetV1, ShuffleNetV2
from lookalike.training.networks.small import SmallNetwork
from lookalike.training.networks.vgg import VGG16
from lookalike.training.networks.weights import load_weights, matches, read_weights, weights_file

__all__ = ["build", "defaults", "names", "nearest", "option_types", "unpublished"]

_NETWORKS: dict[str, Callable[..., Network]] = {
    "alexnet": AlexNet,
    "vgg16": partial(VGG16, batch_norm=False),
    "vgg16_bn": partial(VGG16, batch_norm=True),
    "resnet50": ResNet50,
    "shufflenet_v1": ShuffleNetV1,
    "shufflenet_v2_x0_5": partial(ShuffleNetV2, scale=0.5),
    "shufflenet_v2_x1_0": partial(ShuffleNetV2, scale=1.0),
    "shufflenet_v2_x1_5": partial(ShuffleNetV2, scale=1.5),
    "shufflenet_v2_x2_0": partial(ShuffleNetV2, scale=2.0),
    "small": SmallNetwork,
    "mobilenet_v2_tf": MobileNetV2TF,
}
_TORCHVISION, _TIMM = "torchvision:", "timm:"
# Ours that torchvision publishes no weights for.
_UNPUBLISHED = ("shufflenet_v1", "small", "mobilenet_v2_tf")
_IMAGENET: dict[str, Any] = {
    "size": (224, 224),
    "fit": "crop",
    "crop_ratio": 0.875,
    "interpolation": "bilinear",
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
}
_HALF: dict[str, Any] = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}  # pixels from -1 to 1


def names() -> list[str]:
    """The networks that have a name of their own. Besides: "torchvision:" and "timm:" with one of theirs."""
    return list(_NETWORKS)


def nearest(name: str) -> str | None:
    """None where `name` is a network; otherwise what is wrong with it, with the nearest names there are.

    >>> nearest("resnet5")
    "'resnet5' is unknown: did you mean 'resnet50'?"
    """
    if name in _NETWORKS:
        return None
    if name.startswith(_TORCHVISION):
        return _unknown(name, _TORCHVISION, torchvision_names())
    if name.startswith(_TIMM):
        import timm

        return None if timm.is_model(name.removeprefix(_TIMM)) else _unknown(name, _TIMM, timm.list_models())
    elsewhere = [_TORCHVISION + name] if name in torchvision_names() else []
    return _unknown(name, "", [*_NETWORKS, *elsewhere])


def _unknown(name: str, prefix: str, known: Iterable[str]) -> str | None:
    there = [prefix + one for one in known]
    if name in there:
        return None
    # What ends in the name comes first: "mobilenet_v2" is "torchvision:mobilenet_v2".
    close = [one for one in there if one.endswith(f":{name}")] or difflib.get_close_matches(name, there, 3, 0.5)
    others = "" if prefix else ', or "torchvision:NAME" or "timm:NAME"'
    if close:
        return f"{name!r} is unknown: did you mean {' or '.join(map(repr, close))}?"
    return f"{name!r} is unknown: there are {', '.join(there[:20])}{', …' if len(there) > 20 else ''}{others}"


def option_types(name: str) -> dict[str, Any]:
    """Options of a network beyond channels and classes, with their types: what `build` takes as further arguments.

    Raises:
        ConfigError: there is no such network.
    """
    _check_name(name)
    maker = _NETWORKS.get(name)
    if maker is None:
        return {}
    bound = maker.keywords if isinstance(maker, partial) else {}
    kind = maker.func if isinstance(maker, partial) else maker
    hints = typing.get_type_hints(kind.__init__)
    return {n: hints[n] for n in inspect.signature(kind).parameters if n not in {"channels", "classes", *bound}}


def defaults(name: str, channels: int = 3) -> dict[str, Any]:
    """How the network's published weights were made to see: the fields of `lookalike.images.Preprocessing`.

    With one channel, mean and std are their averages over the colours, so that all three are the same: grey can then
    be taken from normalised pixels.

    Raises:
        ConfigError: there is no such network.
    """
    _check_name(name)
    found = {**_IMAGENET}
    if name == "mobilenet_v2_tf":
        found |= _HALF
    elif name == "small":
        found |= {**_HALF, "size": (64, 64), "fit": "squash", "crop_ratio": 1.0}
    elif name.startswith(_TORCHVISION):
        found |= _torchvision_defaults(name.removeprefix(_TORCHVISION))
    elif name.startswith(_TIMM):
        found |= _timm_defaults(name.removeprefix(_TIMM))
    if channels == 1:
        found |= {key: (round(sum(found[key]) / 3, 6),) * 3 for key in ("mean", "std")}
    return found


def _torchvision_defaults(name: str) -> dict[str, Any]:
    published = _published(name)
    if published is None:
        return {}
    steps = published.transforms()
    (size,) = steps.crop_size
    (short,) = steps.resize_size
    return {
        "size": (size, size),
        "crop_ratio": min(1.0, size / short),
        "interpolation": steps.interpolation.value,
        "mean": tuple(steps.mean),
        "std": tuple(steps.std),
    }


def _timm_defaults(name: str) -> dict[str, Any]:
    import timm

    published = timm.get_pretrained_cfg(name)
    if published is None:
        return {}
    _, height, width = published.input_size
    kept = {"bilinear", "bicubic", "lanczos"}
    return {
        "size": (height, width),
        "fit": "squash" if published.crop_mode == "squash" else "crop",
        "crop_ratio": min(1.0, published.crop_pct),
        "interpolation": published.interpolation if published.interpolation in kept else "bicubic",
        "mean": tuple(published.mean),
        "std": tuple(published.std),
    }


def _published(name: str) -> Any:
    """The entry in torchvision for the weights of a network, or None.

    The first version where there are several: the later recipes trade neighbours for accuracy (label smoothing and
    the like make features transfer worse: Kornblith et al. 2021).
    """
    import torchvision

    found = torchvision.models.get_model_weights(name)
    return getattr(found, "IMAGENET1K_V1", getattr(found, "DEFAULT", None))


def build(
    name: str,
    *,
    channels: int = 3,
    classes: int | None = None,
    weights: str | os.PathLike[str] | None = None,
    size: tuple[int, int] | None = None,
    seed: int = 0,
    cache: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Network:
    """A network by name, with random or with given weights.

    Args:
        name: one of `names`, or "torchvision:NAME", or "timm:NAME".
        channels: of the pictures, 1 or 3.
        classes: of a classifier; None builds none, which saves AlexNet and VGG most of their parameters.
        weights: None for random ones; "hub" for those torchvision or timm publishes; else as for `weights_file`:
            a file, a URL, a bundle folder, or "default". What became of them is in the network's `report`.
        size: (height, width) of the pictures; only networks that are built for one size care.
        seed: of the random weights.
        cache: folder for downloads.
        options: those of the network: see `option_types`.

    Raises:
        ConfigError: an unknown name, option, or number of channels.
        TrainingError: weights that cannot be had, or belong to another network.
        BundleError: a bundle that is damaged.
    """
    _check_name(name)
    if channels not in (1, 3):
        raise ConfigError([f"channels must be 1 or 3, got {channels}"], "network")
    if unknown := sorted(options.keys() - option_types(name).keys()):
        raise ConfigError([f"network {name!r} takes no option {one!r}" for one in unknown], "network")
    with seeded(seed):
        network = _made(name, channels, classes, size, weights == "hub", options)
    if weights is None or (weights == "hub" and name.startswith(_TIMM)):
        return network
    if weights == "hub":
        state, source = _hub_state(name), f"torchvision's {name.removeprefix(_TORCHVISION)}"
    else:
        path = weights_file(weights, cache)
        state, source = read_weights(path), str(path)
    network.report = load_weights(network, state, source, _fitting)
    return network


def _check_name(name: str) -> None:
    if wrong := nearest(name):
        raise ConfigError([wrong], "network")


def _made(
    name: str, channels: int, classes: int | None, size: tuple[int, int] | None, hub: bool, options: Mapping[str, Any]
) -> Network:
    if name.startswith(_TIMM):
        return TimmNetwork(name.removeprefix(_TIMM), channels, classes, size=size, pretrained=hub)
    if name.startswith(_TORCHVISION):
        return TorchvisionNetwork(name.removeprefix(_TORCHVISION), channels, classes)
    try:
        return _NETWORKS[name](channels, classes, **options)
    except (TypeError, ValueError) as error:
        raise ConfigError([f"network {name!r}: {error}"], "network") from error


def unpublished(name: str) -> str | None:
    """None where weights "hub" can be asked for; otherwise what is wrong with that. Nothing is fetched.

    Raises:
        ConfigError: there is no such network.
    """
    _check_name(name)
    if name.startswith(_TIMM):  # which tells in its own words, once the hub has been asked
        return None
    plain = name.removeprefix(_TORCHVISION)
    if name not in _UNPUBLISHED and _published(plain) is not None:
        return None
    return f'there are no weights "hub" for {name}: give a file, a URL or a bundle folder'


def _hub_state(name: str) -> dict[str, Tensor]:
    """The weights torchvision publishes; it downloads them once."""
    import torchvision

    if wrong := unpublished(name):
        raise TrainingError(wrong)
    plain = name.removeprefix(_TORCHVISION)
    published = _published(plain)
    try:
        state: dict[str, Tensor] = torchvision.models.get_model(plain, weights=published, progress=False).state_dict()
    except (OSError, RuntimeError) as error:
        raise TrainingError(f"torchvision's weights for {plain} cannot be fetched: {error}") from error
    return state


def _fitting(state: Mapping[str, Tensor]) -> list[str]:
    """Names of the networks that weights belong to, for an error message; ours first."""

    def fits(name: str) -> bool:
        try:
            with torch.device("meta"):  # shapes without numbers: no time, no memory
                network = _made(name, 3, None, None, False, {})
        except (NotImplementedError, RuntimeError):  # a few look at their numbers while they are made
            return False
        return matches(state, network)

    ours = [name for name in _NETWORKS if fits(name)]
    if "mobilenet_v2_tf" in ours:  # the same names with another padding: only who made the file knows which
        ours.append(f"{_TORCHVISION}mobilenet_v2")
    return ours or [f"{_TORCHVISION}{name}" for name in torchvision_names() if fits(f"{_TORCHVISION}{name}")]
