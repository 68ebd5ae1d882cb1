"""What a network is like, found out without its numbers: its width, its stages, the pictures it takes.

On torch's meta device a network is made of shapes alone: that costs milliseconds and no memory, however large it is. So
whatever does not go with it can be said before a picture is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from lookalike.errors import ConfigError, LookalikeError
from lookalike.training.networks.base import Network
from lookalike.training.networks.registry import build

__all__ = ["Sketch", "sketch"]


@dataclass(frozen=True)
class Sketch:
    """A network of shapes without numbers.

    Attributes:
        network: on the meta device, in evaluation mode.
        width: channels of its feature maps.
        stages: how many there are to freeze.
        tokens: it pools its features itself.
    """

    network: Network
    width: int
    stages: int
    tokens: bool

    def refusal(self, size: tuple[int, int]) -> str:
        """Why it takes no pictures of (height, width) pixels, in the words of whoever made it; "" where it does."""
        try:
            with torch.no_grad():
                self.network.features(torch.zeros(2, self.network.channels, *size, device="meta"))
        except Exception as error:  # a network of someone else raises whatever its parts do
            return "" if _wants_numbers(error) else _said(error)
        return ""


def sketch(
    name: str, *, channels: int = 3, size: tuple[int, int] | None = None, options: Mapping[str, Any] | None = None
) -> Sketch | None:
    """A network as `build` would make it, without its numbers; no weights are looked for.

    Args:
        name: as for `build`.
        channels: of the pictures, 1 or 3.
        size: (height, width) of the pictures; only networks that are built for one size care.
        options: those of the network.

    Returns:
        None for the few networks that look at their numbers while they are made: of these nothing is known.

    Raises:
        ConfigError: there is no such network, or it cannot be made so.
    """
    try:
        with torch.device("meta"):
            network = build(name, channels=channels, size=size, **(options or {}))
    except ConfigError:
        raise
    except Exception as error:  # as above
        if _wants_numbers(error) or (error.__cause__ is not None and _wants_numbers(error.__cause__)):
            return None
        raise ConfigError([_said(error) if isinstance(error, LookalikeError) else f"{name}: {_said(error)}"]) from error
    return Sketch(network.eval(), network.width, len(network.stages()), network.tokens)


def _wants_numbers(error: BaseException) -> bool:
    """Whether this is about the sketch, and not about the network."""
    return isinstance(error, NotImplementedError) or "meta" in str(error)


def _said(error: BaseException) -> str:
    return " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
