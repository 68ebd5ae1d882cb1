"""Weights from a file, a URL or a bundle into a network: names matched, differences said, nothing ever unpickled."""

from __future__ import annotations

import hashlib
import os
import urllib.error
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

import torch
from torch import Tensor, nn

from lookalike.bundle import MANIFEST, Bundle, default_path
from lookalike.errors import TrainingError

if TYPE_CHECKING:
    from lookalike.training.networks.base import Network

__all__ = ["Report", "first_convolution", "load_weights", "matches", "missing_weights", "read_weights", "weights_file"]

# The weights in a bundle folder.
_IN_BUNDLE = "weights.safetensors"
# What training programs put around a network's own names; our own bundles say "base." and "base.net.".
_WRAPPERS = ("module.", "_orig_mod.", "network.", "model.", "base.", "net.")
# Where training programs keep the weights within a checkpoint.
_INNER = ("state_dict", "model_state_dict", "model", "model_ema", "network")  # the last: runs of our own


@dataclass(frozen=True)
class Report:
    """What became of a file of weights.

    Attributes:
        source: where they are from.
        loaded: how many tensors were taken.
        dropped: names in the file that the network has no use for: another classifier, an embedding head.
        fresh: names of the network's classifier that are not in the file, and start at random.
        summed: the first convolution was summed over colours, for a network that takes one channel.
    """

    source: str
    loaded: int
    dropped: tuple[str, ...] = ()
    fresh: tuple[str, ...] = ()
    summed: bool = False

    def __str__(self) -> str:
        parts = [f"{self.loaded} tensors from {self.source}"]
        if self.dropped:
            parts.append(f"left out: {_first(self.dropped)}")
        if self.fresh:
            parts.append(f"starts at random: {_first(self.fresh)}")
        if self.summed:
            parts.append("first convolution summed over colours")
        return "; ".join(parts)


def load_weights(
    network: Network, state: Mapping[str, Tensor], source: str, fits: Callable[[Mapping[str, Tensor]], list[str]]
) -> Report:
    """Put weights into a network, and say what was done.

    The classifier may differ or be missing, and is then left out. Everything else must be there, in the right shape.
    Colour weights for a network that takes one channel are summed over the colours: the same answer, for a grey
    picture whose channels are normalised alike.

    Args:
        network: its `published` names are what is looked for.
        state: names → tensors, as `read_weights` gives them.
        source: where they are from, for the report and the error.
        fits: names of networks that some weights would fit, for the error.

    Raises:
        TrainingError: they belong to another network: with the first names that are missing or too many.
    """
    target = network.published().state_dict()
    inside, outside = _unwrapped(state, target)
    summed = _sum_over_colours(network, inside, target)
    differs = {name for name, value in inside.items() if name in target and target[name].shape != value.shape}
    missing = {name for name in target if name not in inside and not name.endswith("num_batches_tracked")}
    left_over = inside.keys() - target.keys()
    if wrong := {n for n in differs | missing | left_over if not n.startswith(network.classifier_names)}:
        raise TrainingError(_complaint(source, wrong & missing, wrong & left_over, wrong & differs, fits(state)))
    kept = {name: value for name, value in inside.items() if name in target and name not in differs}
    network.published().load_state_dict(kept, strict=False)
    dropped = sorted({*outside, *left_over, *differs})
    return Report(source, len(kept), tuple(dropped), tuple(sorted(differs | missing)), summed)


def first_convolution(module: nn.Module) -> str:
    """Name of the convolution that sees the pixels: the first one defined.

    Raises:
        ValueError: there is none.
    """
    for name, part in module.named_modules():
        if isinstance(part, nn.Conv2d):
            return str(name)
    raise ValueError(f"{type(module).__name__} has no convolution")


def _sum_over_colours(network: Network, state: dict[str, Tensor], target: Mapping[str, Tensor]) -> bool:
    name = f"{first_convolution(network.published())}.weight"
    fits = name in state and state[name].ndim == 4 and state[name].shape[1] == 3 and target[name].shape[1] == 1
    if fits:
        state[name] = state[name].sum(1, keepdim=True)
    return fits


def matches(state: Mapping[str, Tensor], network: Network) -> bool:
    """Whether `load_weights` would take these weights for a network, for colours or for grey."""
    target = network.published().state_dict()
    inside, _ = _unwrapped(state, target)
    first = f"{first_convolution(network.published())}.weight"
    if first in inside:
        inside[first], target[first] = inside[first][:, :1], target[first][:, :1]
    shapes = {name: value.shape for name, value in inside.items()}
    wanted = {name: value.shape for name, value in target.items()}
    return all(
        name.startswith(network.classifier_names) or name.endswith("num_batches_tracked")
        for name in shapes.keys() | wanted.keys()
        if shapes.get(name) != wanted.get(name)
    )


def _complaint(source: str, missing: set[str], extra: set[str], differs: set[str], fits: list[str]) -> str:
    parts = [
        f"{len(names)} {what} ({_first(sorted(names))})"
        for names, what in ((missing, "missing"), (extra, "unknown"), (differs, "of another shape"))
        if names
    ]
    advice = f"they fit {' or '.join(fits)}" if fits else "they fit no network by name here"
    return f"weights {source} belong to another network: {', '.join(parts)}; {advice}"


def _first(names: Sequence[str], count: int = 3) -> str:
    return ", ".join(names[:count]) + (", …" if len(names) > count else "")


def weights_file(source: str | os.PathLike[str], cache: str | os.PathLike[str] | None = None) -> Path:
    """Where the weights lie on this machine; downloads them first if they are elsewhere.

    Args:
        source: a .safetensors, .pth or .pt file; an http(s) URL of one; a bundle folder; or "default", the bundle
            that ships.
        cache: folder for downloads; default: torch's own (``TORCH_HOME``).

    Raises:
        TrainingError: there is no such file, or the download failed.
        BundleError: a bundle that is damaged.
    """
    text = os.fspath(source)
    if _is_url(text):
        folder = Path(cache) if cache is not None else Path(torch.hub.get_dir()) / "checkpoints"
        return _downloaded(text, folder)
    path = default_path() if text == "default" else Path(text)
    if path.is_dir():
        Bundle.load(path)
    if wrong := missing_weights(text):
        raise TrainingError(wrong)
    return path / _IN_BUNDLE if path.is_dir() else path


def missing_weights(source: str | os.PathLike[str]) -> str | None:
    """None where `weights_file` finds something, or would have to fetch it; otherwise what is wrong. Reads nothing."""
    text = os.fspath(source)
    if _is_url(text):
        return None
    path = default_path() if text == "default" else Path(text)
    if path.is_dir():
        if (path / _IN_BUNDLE).is_file():
            return None
        what = "bundle" if (path / MANIFEST).is_file() else "folder"
        return f"{what} {path} has no {_IN_BUNDLE}: it cannot be trained further"
    if path.is_file():
        return None
    return f"no weights at {path}: give a .safetensors or .pth file, a URL, or a bundle folder"


def _is_url(text: str) -> bool:
    return urlparse(text).scheme in ("http", "https")


def read_weights(path: Path) -> dict[str, Tensor]:
    """Names → tensors of a .safetensors, .pth or .pt file; floating ones in float32.

    A .pth file is a pickle; only tensors and plain containers are accepted from it, never code.

    Raises:
        TrainingError: it is damaged, holds anything else, or has another suffix.
    """
    try:
        content = _content(path)
    except TrainingError:
        raise
    except Exception as error:  # damaged files end in nearly any exception of the two readers
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise TrainingError(f"weights {path} cannot be read: {reason}") from error
    for name in _INNER:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise TrainingError(f"weights {path} hold no table of named tensors (a state_dict): save one")
    return {str(name): value.float() if value.is_floating_point() else value for name, value in content.items()}


def _content(path: Path) -> Any:
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    if suffix not in (".pth", ".pt"):
        raise TrainingError(f"weights {path}: the name must end in .safetensors, .pth or .pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's advice to those who wrote the file
        return torch.load(path, map_location="cpu", weights_only=True)


def _downloaded(url: str, folder: Path) -> Path:
    """Fetch once. A name that ends in -<hash>.pth, as PyTorch publishes weights, is checked against the content."""
    name = Path(urlparse(url).path).name
    path = folder / f"{hashlib.sha256(url.encode()).hexdigest()[:12]}-{name}"
    if path.is_file():
        return path
    match = torch.hub.HASH_REGEX.search(name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), hash_prefix=match.group(1) if match else None, progress=False)
        read_weights(path)
    except (OSError, RuntimeError, urllib.error.URLError) as error:
        raise TrainingError(f"weights {url} cannot be fetched: {error}") from error
    except TrainingError:
        path.unlink()
        raise
    return path


def _unwrapped(
    state: Mapping[str, Tensor], target: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights without what a training program put before every name, and those beside the network (its head)."""
    inside, outside = dict(state), dict[str, Tensor]()
    while not inside.keys() & target.keys():
        prefix = next((p for p in _WRAPPERS if any(name.startswith(p) for name in inside)), None)
        if prefix is None:
            break
        outside |= {name: value for name, value in inside.items() if not name.startswith(prefix)}
        inside = {n.removeprefix(prefix): value for n, value in inside.items() if n.startswith(prefix)}
    return inside, outside
