"""The whole encoder as it is trained: base, pooling, head, unit length; what rests, and what learns how fast."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lookalike.errors import ConfigError
from lookalike.training.networks.base import Network, seeded
from lookalike.training.networks.heads import HeadKind, SkipHead, head, principal_directions
from lookalike.training.networks.pooling import pooling
from lookalike.training.networks.views import Views

__all__ = ["EmbeddingNetwork", "Serving", "unit_rows"]

# Rows shorter than this are not stretched to unit length: they have no direction worth the name.
_SHORTEST = 1e-6
# Brightness of a colour as television counts it (ITU-R BT.601), as Pillow does.
_LUMA = (0.299, 0.587, 0.114)


def unit_rows(rows: Tensor) -> Tensor:
    """(n, dim) → rows of unit length in float32; rows shorter than 1e-6 become shorter ones, and zeros stay zeros."""
    rows = rows.float()
    return rows / rows.square().sum(1, keepdim=True).clamp(min=_SHORTEST**2).sqrt()


class EmbeddingNetwork(nn.Module):
    """Pixels to embedding vectors.

    Args:
        base: what gives the feature maps; its classifier, if it has one, is removed.
        dim: length of the embedding. Head "none" gives the pooled features as they are, whatever `dim` says.
        pool: "average", "max", "average+max", "gem", "grid:G" or "attention:H". A base of tokens pools them itself:
            "average".
        head: "linear", "mlp" or "none".
        skip: start as the base's own features, see `SkipHead`.
        normalise: unit rows; else the head's output as it is.
        views: in evaluation mode, the mean over moved views of the picture, see also `whiten`.
        hidden: width of the mlp's hidden layer; default: that of the pooled features.
        seed: of the head's random weights.

    Attributes:
        dim: length of the embedding.
        width: length of the pooled features.
        channels: of the pictures.

    Raises:
        ConfigError: pool, head, skip and dim do not go together, or not with the base.
    """

    def __init__(
        self,
        base: Network,
        *,
        dim: int | None = None,
        pool: str = "average",
        head: HeadKind = "linear",
        skip: bool = False,
        normalise: bool = True,
        views: Views | None = None,
        hidden: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        base.drop_classifier()
        self.base, self.views, self.normalise = base, views, normalise
        self.whitening: nn.Linear | None = None
        self.channels = base.channels
        try:
            self.pool = pooling(pool, base.width)
            self.width = base.width * int(self.pool.factor)
            self.dim = self.width if head == "none" or dim is None else dim
            with seeded(seed):
                self.head = _head(head, self.width, self.dim, skip=skip, hidden=hidden)
        except ValueError as error:
            raise ConfigError([str(error)], "network") from error
        if base.tokens and pool != "average":
            raise ConfigError([f'pool {pool!r} is not for a network of tokens, which pools them: "average"'], "network")
        self._frozen: int | Literal["all"] = 0
        self._batch_norm_frozen = False
        self._set_learning()

    def forward(self, pixels: Tensor) -> Tensor:
        """(n, channels, h, w) normalised pixels → (n, dim): unit rows in float32 with `normalise`."""
        if self.training:
            return self.project(self.pooled(pixels))
        if self.views is None:
            rows = self.project(self.pooled(pixels))
        else:
            rows = self.views.mean(self.project(self.pooled(self.views(pixels))))
            rows = unit_rows(rows) if self.normalise else rows
        return rows if self.whitening is None else unit_rows(self.whitening(unit_rows(rows)))

    @torch.no_grad()
    def whiten(self, mean: Tensor, axes: Tensor) -> None:
        """From now on, in evaluation mode, turn unit rows into (row - mean) @ axes, of unit length.

        Args:
            mean: (dim,) of unit rows.
            axes: (dim, kept); the embedding then has `kept` numbers.
        """
        self.whitening = nn.Linear(axes.shape[0], axes.shape[1]).to(axes.device).requires_grad_(False)
        self.whitening.weight.copy_(axes.T)
        self.whitening.bias.copy_(-mean @ axes)
        self.dim = int(axes.shape[1])

    def pooled(self, pixels: Tensor) -> Tensor:
        """(n, channels, h, w) → (n, width) pooled features, before the head: what can be kept while the base rests."""
        features: Tensor = self.pool(self.base.features(pixels))
        return features

    def project(self, features: Tensor) -> Tensor:
        """(n, width) pooled features → (n, dim)."""
        rows: Tensor = self.head(features)
        return unit_rows(rows) if self.normalise else rows

    @torch.no_grad()
    def initialise_from(self, features: Tensor, *, centre: bool = False) -> None:
        """Start the head as the principal directions of pooled features, which keeps nearly all of their ranking.

        Args:
            features: (n, width) from `pooled`, of a few thousand training pictures.
            centre: subtract their mean: often a better ranking, but not the base's.

        Raises:
            ValueError: the head is neither linear nor a skip head, or the features have another width.
        """
        directions, mean = principal_directions(features, self.dim, centre=centre)
        if isinstance(self.head, SkipHead):
            self.head.set_projection(directions, mean)
        elif isinstance(self.head, nn.Linear):
            self.head.weight.copy_(directions)
            self.head.bias.copy_(-directions @ mean)
        else:
            raise ValueError("only a linear head or one with skip can start from principal directions")

    def freeze(self, stages: int | Literal["all"]) -> None:
        """Let the first `stages` stages of the base rest, and the others learn: 0 none, "all" the whole base.

        What rests has no gradient, and stays in evaluation mode (batch statistics, dropout) even after ``train()``.

        Raises:
            ConfigError: the base has fewer stages.
        """
        count = len(self.base.stages())
        if stages != "all" and not 0 <= stages <= count:
            raise ConfigError(
                [f'freeze must be from 0 to {count}, the stages of the base, or "all"; got {stages!r}'], "network"
            )
        self._frozen = stages
        self._set_learning()

    def freeze_batch_norm(self) -> None:
        """Let all batch normalisation of the base rest: its running statistics are used, its scales do not learn.

        For small sets of pictures, whose batches say little about the statistics. The head's is not touched.
        """
        self._batch_norm_frozen = True
        self._set_learning()

    def train(self, mode: bool = True) -> EmbeddingNetwork:
        """As `nn.Module.train`, but what rests stays in evaluation mode."""
        super().train(mode)
        for part in self._resting():
            part.eval()
        return self

    def parameter_groups(
        self, lr: float, weight_decay: float, layer_decay: float = 1.0, head_factor: float = 1.0
    ) -> list[dict[str, Any]]:
        """All parameters that learn, each once, as groups for an optimiser.

        Args:
            lr: rate of the top stage of the base.
            weight_decay: of kernels and matrices; vectors (biases, scales of normalisations) have none.
            layer_decay: each stage's rate is this times that of the stage above it.
            head_factor: the rate of pooling and head is this times `lr`.
        """
        stages = reversed(self.base.stages())
        factors = {id(p): layer_decay**depth for depth, stage in enumerate(stages) for p in stage.parameters()}
        undecayed = self.base.undecayed()
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            if not parameter.requires_grad:
                continue
            inner = name.removeprefix("base.")
            factor = head_factor if inner == name else factors.get(id(parameter), 1.0)
            decay = weight_decay if parameter.ndim > 1 and inner not in undecayed else 0.0
            groups.setdefault((factor, decay), []).append(parameter)
        return [
            {"params": parameters, "lr": lr * factor, "weight_decay": decay}
            for (factor, decay), parameters in groups.items()
        ]

    def count_parameters(self, *, learning: bool = False) -> int:
        """How many numbers it has; those that learn alone with `learning`."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad or not learning)

    def _resting(self) -> list[nn.Module]:
        """The modules that stay in evaluation mode. Looked up each time: layers may have been replaced."""
        resting = [self.base] if self._frozen == "all" else self.base.stages()[: self._frozen]
        if self._batch_norm_frozen:
            resting += [part for part in self.base.modules() if isinstance(part, _BatchNorm)]
        return resting

    def _set_learning(self) -> None:
        unused = self.base.unused()
        for name, parameter in self.base.named_parameters():
            parameter.requires_grad_(name not in unused)
        for part in self._resting():
            part.requires_grad_(False)
        self.train(self.training)


# `head` is also the name of an argument, above.
_head = head


class Serving(nn.Module):
    """A network as it is served: it takes (n, 3, h, w), as every encoder here does, whatever it was trained on.

    A network of one channel gets the brightness, taken from normalised pixels: mean and std must be the same for all
    three channels (`defaults` with one channel gives such ones).
    """

    luma: Tensor

    def __init__(self, network: EmbeddingNetwork) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("luma", torch.tensor(_LUMA)[:, None, None], persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """(n, 3, h, w) normalised pixels → (n, dim)."""
        if self.network.channels == 1:
            pixels = (pixels * self.luma).sum(1, keepdim=True)
        rows: Tensor = self.network(pixels)
        return rows
