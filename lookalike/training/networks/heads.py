"""From pooled features to a vector of the wanted length: linear, a small perceptron, or one that starts as nothing."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

__all__ = ["HeadKind", "SkipHead", "head", "principal_directions"]

HeadKind = Literal["none", "linear", "mlp"]


def head(kind: HeadKind, width: int, dim: int, *, skip: bool = False, hidden: int | None = None) -> nn.Module:
    """A head by name: (n, width) → (n, dim).

    Args:
        kind: "none" gives what it gets; "linear" is one layer; "mlp" has a hidden layer with batch normalisation.
        width: length of the pooled features.
        dim: length of the embedding; with "none" it must be `width`.
        skip: see `SkipHead`.
        hidden: width of the hidden layer; default: that of the features.

    Raises:
        ValueError: no such head, or one that cannot give `dim` numbers.
    """
    if kind == "none":
        if dim != width or skip:
            raise ValueError(
                f'head "none" gives the {width} features as they are: dim {dim}, skip {skip} are not for it'
            )
        return nn.Identity()
    if kind not in ("linear", "mlp"):
        raise ValueError(f"head must be none, linear or mlp, got {kind!r}")
    middle = hidden or width
    branch = nn.Linear(width, dim)
    if kind == "mlp":
        branch = nn.Sequential(
            nn.Linear(width, middle, bias=False),
            nn.BatchNorm1d(middle),
            nn.ReLU(inplace=True),
            nn.Linear(middle, dim),
        )
    return SkipHead(width, dim, branch) if skip else branch


class SkipHead(nn.Module):
    """A fixed map plus a learned branch behind a gate that starts at zero (Quaterion's skip-connection head).

    At step 0 the embedding is the fixed map alone. For dim == width that is the identity: the ranking is the base's,
    and learning can only start from there. For dim < width something must be given up: the fixed map is an
    orthogonal projection, random at first, which keeps cosines only roughly; `set_projection` with the principal
    directions of real features (see `EmbeddingNetwork.initialise_from`) keeps nearly all of the ranking.

    Attributes:
        centre: (width,) subtracted before the projection; zero unless set.
        projection: (dim, width) with orthonormal rows, or None for the identity.
        gate: (dim,) learned factors of the branch.
    """

    centre: Tensor
    projection: Tensor | None

    def __init__(self, width: int, dim: int, branch: nn.Module) -> None:
        super().__init__()
        if dim > width:
            raise ValueError(f"dim {dim} is more than the {width} features, and a skip head adds none: at most {width}")
        self.branch = branch
        self.gate = nn.Parameter(torch.zeros(dim))
        self.register_buffer("centre", torch.zeros(width))
        fixed = None if dim == width else nn.init.orthogonal_(torch.empty(dim, width))
        self.register_buffer("projection", fixed)

    def set_projection(self, matrix: Tensor, centre: Tensor | None = None) -> None:
        """Set the fixed map: (dim, width) and, to be subtracted first, (width,).

        Raises:
            ValueError: the shapes are others. With dim == width only a centre can be set: any rotation of the
                features ranks as they do.
        """
        wanted = None if self.projection is None else self.projection.shape
        if wanted is not None and matrix.shape != wanted:
            raise ValueError(f"the projection must have shape {tuple(wanted)}, got {tuple(matrix.shape)}")
        if centre is not None and centre.shape != self.centre.shape:
            raise ValueError(f"the centre must have shape {tuple(self.centre.shape)}, got {tuple(centre.shape)}")
        if self.projection is not None:
            self.projection.copy_(matrix)
        if centre is not None:
            self.centre.copy_(centre)

    def forward(self, features: Tensor) -> Tensor:
        """(n, width) → (n, dim)."""
        fixed = features - self.centre
        if self.projection is not None:
            fixed = nn.functional.linear(fixed, self.projection)
        result: Tensor = fixed + self.gate * self.branch(features)
        return result


def principal_directions(features: Tensor, count: int, *, centre: bool = False) -> tuple[Tensor, Tensor]:
    """The directions along which features differ most, after scaling their rows to unit length.

    Cosines are products of those rows, so leaving out the weakest directions changes cosines least. Centred, the
    directions are those of the differences from the mean: what all pictures have in common no longer counts, which
    often ranks better, but differently.

    Args:
        features: (n, width), n at least 2.
        count: how many directions, at most width.
        centre: subtract the mean first.

    Returns:
        (count, width) orthonormal rows, strongest first, and (width,) what to subtract: zeros without `centre`.
    """
    if features.ndim != 2 or len(features) < 2 or not 0 < count <= features.shape[1]:
        raise ValueError(
            f"features must have shape (n, width) with n at least 2 and width at least {count}, "
            f"got {tuple(features.shape)}"
        )
    rows = features.detach().double()
    mean = rows.mean(0) if centre else torch.zeros_like(rows[0])
    rows = nn.functional.normalize(rows - mean, dim=1)
    _, directions = torch.linalg.eigh(rows.T @ rows)  # columns, weakest first
    return directions.flip(1).T[:count].to(features.dtype), mean.to(features.dtype)
