"""Vectors as NumPy arrays of shape (n, dim): checking, unit length, cosine, top-k."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from lookalike.errors import ShapeError

Vectors = npt.NDArray[np.float32]

__all__ = ["Vectors", "as_rows", "top_k", "unit"]


def as_rows(vectors: Any, dim: int | None = None, what: str = "vectors") -> Vectors:
    """Check and convert to a C-contiguous float32 array of shape (n, dim); one vector (dim,) becomes (1, dim).

    Raises:
        ShapeError: not one- or two-dimensional, another width than `dim`, or not finite.
    """
    try:
        rows = np.ascontiguousarray(vectors, dtype=np.float32)
    except (TypeError, ValueError) as error:
        kind = type(vectors).__name__
        raise ShapeError(f"{what} must be numbers of shape (n, {dim or 'dim'}), got {kind}") from error
    if rows.ndim == 1 and rows.size:
        rows = rows[None, :]
    if rows.ndim == 1:
        rows = rows.reshape(0, dim or 0)
    if rows.ndim != 2 or (dim is not None and rows.shape[1] != dim and rows.shape[0] > 0):
        raise ShapeError(f"{what} must have shape (n, {dim or 'dim'}), got {np.shape(vectors)}")
    if not np.isfinite(rows).all():
        raise ShapeError(
            f"{what} must be finite, got NaN or infinity in row {int(np.argmin(np.isfinite(rows).all(1)))}"
        )
    return rows


def unit(vectors: Any, dim: int | None = None, what: str = "vectors") -> Vectors:
    """Rows scaled to length 1: (n, dim) float32. Norms are taken in float64 so that unit rows stay as they are.

    Raises:
        ShapeError: as `as_rows`, or a row of zeros (it has no direction).
    """
    rows = as_rows(vectors, dim, what)
    norms = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))
    if rows.shape[0] and not norms.all():
        raise ShapeError(f"{what} must have a direction, got only zeros in row {int(np.argmin(norms))}")
    scaled: Vectors = (rows / norms[:, None]).astype(np.float32)
    return scaled


def top_k(scores: npt.NDArray[np.float32], k: int) -> npt.NDArray[np.intp]:
    """Columns of the `k` best scores of each row, best first, ties by column: (n, m) → (n, min(k, m)).

    Exact and linear in m: a partition finds the k-th score, and only columns at or above it are sorted.
    """
    n, m = scores.shape
    k = min(k, m)
    best = np.empty((n, k), dtype=np.intp)
    for row in range(n):
        line = scores[row]
        floor = np.partition(line, m - k)[m - k] if 0 < k < m else -np.inf
        columns = np.flatnonzero(line >= floor)
        best[row] = columns[np.argsort(-line[columns], kind="stable")[:k]]
    return best
