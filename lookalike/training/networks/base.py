"""What every network here is: pixels to feature maps, feature maps to logits, and the stages in between.

A network's parameters carry the names under which its weights are published, so that ``load_state_dict`` is all it
takes to use them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lookalike.training.networks.weights import Report

__all__ = ["Network", "channel_shuffle", "seeded"]


class Network(nn.Module):
    """A network that gives feature maps, and logits where it was built with a classifier.

    Subclasses set the attributes below and define `features` (a method, or a submodule of that name where the
    published parameter names want one).

    Attributes:
        width: channels of the feature maps.
        channels: of the pictures it takes, 1 or 3.
        classes: of its classifier; None without one.
        tokens: the features are one vector per picture, pooled as the network itself defines (vision transformers):
            pooling them again means nothing.
        classifier_names: prefixes of the parameter names that belong to the classifier: weights whose classifier
            differs are used all the same.
        features: (n, channels, h, w) normalised pixels → (n, width, h', w') feature maps.
        report: what was loaded from which weights; None for a network with random weights.
    """

    width: int
    channels: int
    classes: int | None
    tokens: bool = False
    classifier_names: tuple[str, ...] = ("fc.",)
    features: Callable[[Tensor], Tensor]
    report: Report | None = None

    def __init__(self, width: int, channels: int, classes: int | None) -> None:
        super().__init__()
        self.width, self.channels, self.classes = width, channels, classes

    def forward(self, pixels: Tensor) -> Tensor:
        """(n, channels, h, w) normalised pixels → (n, classes) logits.

        Raises:
            ValueError: it was built without a classifier.
        """
        if self.classes is None:
            raise ValueError("this network has no classifier: build it with classes=…, or use .features")
        return self.classify(self.features(pixels))

    def classify(self, maps: Tensor) -> Tensor:
        """(n, width, h', w') feature maps → (n, classes) logits: average pooling and one linear layer."""
        logits: Tensor = self.fc(maps.mean((2, 3)))
        return logits

    def stages(self) -> list[nn.Module]:
        """Its parts from input to output, for freezing and for rates that fall towards the input. No classifier."""
        raise NotImplementedError

    def drop_classifier(self) -> None:
        """Remove the classifier: its parameters are gone, and `forward` with them."""
        for name in self.classifier_names:
            if hasattr(self, name.rstrip(".")):
                delattr(self, name.rstrip("."))
        self.classes = None

    def published(self) -> nn.Module:
        """The module whose ``state_dict`` carries the published parameter names."""
        return self

    def unused(self) -> frozenset[str]:
        """Names of parameters that `features` does not depend on, besides the classifier's."""
        return frozenset()

    def undecayed(self) -> frozenset[str]:
        """Names of parameters that weight decay should leave alone although they are not vectors."""
        return frozenset()


def channel_shuffle(maps: Tensor, groups: int) -> Tensor:
    """Deal the channels of (n, c, h, w) out anew: channel i of group g becomes channel i · groups + g.

    A convolution in groups sees only its own group's channels; shuffled, the next one sees some of every group
    (Zhang et al. 2017, section 3.1). The batch size is left open, so that an exported graph needs no shape arithmetic.
    Maps with the channels innermost in memory stay so: as rows of the other order they would slow down all that
    follows, and its gradients.
    """
    channels, height, width = maps.shape[1:]
    if maps.is_contiguous(memory_format=torch.channels_last) and not maps.is_contiguous():
        dealt = maps.permute(0, 2, 3, 1).unflatten(-1, (groups, channels // groups)).transpose(-1, -2).flatten(-2)
        return dealt.permute(0, 3, 1, 2)
    grouped = maps.reshape(-1, groups, channels // groups, height, width)
    return grouped.transpose(1, 2).reshape(-1, channels, height, width)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within, torch's own initialisers draw from `seed`; the global generator is as before afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
