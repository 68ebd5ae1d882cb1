"""What a text tower has to beat: word counts mapped linearly onto pictures' vectors, by ridge regression or by CCA.

Both have a closed form. Of the counts, which are sparse, only their products are ever held.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lookalike.text import words
from lookalike.vectors import Vectors

Matrix = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]

__all__ = ["Counts", "Linear", "cca", "ridge"]


@dataclass(frozen=True)
class Counts:
    """Words and their weights: (1 + log count) · log(n / texts with the word), rows of unit length (tf-idf).

    Attributes:
        number: word → column.
        weight: (words,) the logarithm of each.
    """

    number: dict[str, int]
    weight: Matrix

    @classmethod
    def of(cls, texts: Sequence[str], most: int = 4000) -> Counts:
        """The `most` words that are in the most texts."""
        held = Counter(word for text in texts for word in set(words(text)))
        chosen = held.most_common(most)
        number = {word: column for column, (word, _) in enumerate(chosen)}
        return cls(number, np.log(max(len(texts), 1) / np.array([count for _, count in chosen], dtype=np.float64)))

    def __call__(self, texts: Sequence[str]) -> list[tuple[Rows, Matrix]]:
        """For each text its columns and their values; both empty where it has no known word."""
        found = []
        for text in texts:
            count = Counter(self.number[word] for word in words(text) if word in self.number)
            columns = np.array(sorted(count), dtype=np.int64)
            values = np.array([1 + np.log(count[int(c)]) for c in columns], dtype=np.float64) * self.weight[columns]
            found.append((columns, values / max(float(np.linalg.norm(values)), 1e-12)))
        return found


@dataclass(frozen=True)
class Linear:
    """Word counts → the space where both are compared.

    Attributes:
        counts: the words.
        matrix: (words, dim).
        mean: (picture dim,) subtracted from pictures' vectors.
        axes: (picture dim, dim) which they are then multiplied by, or None.
    """

    counts: Counts
    matrix: Matrix
    mean: Matrix
    axes: Matrix | None = None

    def texts(self, texts: Sequence[str]) -> Vectors:
        """(n, dim) float32. A text without a known word gets the mean of all words."""
        rows = np.empty((len(texts), self.matrix.shape[1]), dtype=np.float32)
        for row, (columns, values) in zip(rows, self.counts(texts), strict=True):
            row[:] = values @ self.matrix[columns] if len(columns) else self.matrix.mean(0)
        return rows

    def pictures(self, vectors: Vectors) -> Vectors:
        """(n, picture dim) → (n, dim) float32."""
        rows = vectors - self.mean
        return np.asarray(rows if self.axes is None else rows @ self.axes, dtype=np.float32)


@dataclass(frozen=True)
class _Products:
    """XᵀX, XᵀY and YᵀY of counts X and centred pictures' vectors Y, over pairs of a text and a picture."""

    counts: Counts
    mean: Matrix
    xx: Matrix
    xy: Matrix
    yy: Matrix

    @classmethod
    def of(cls, texts: Sequence[str], vectors: Vectors, pairs: Rows) -> _Products:
        counts = Counts.of(texts)
        mean = vectors[np.unique(pairs[:, 1])].mean(0, dtype=np.float64)
        rows = vectors.astype(np.float64) - mean
        size = len(counts.number)
        xx, xy = np.zeros((size, size)), np.zeros((size, rows.shape[1]))
        found = counts(texts)
        for text, picture in pairs:
            columns, values = found[text]
            xx[np.ix_(columns, columns)] += np.outer(values, values)
            xy[columns] += np.outer(values, rows[picture])
        shown = rows[pairs[:, 1]]
        return cls(counts, mean, xx, xy, shown.T @ shown)


def ridge(texts: Sequence[str], vectors: Vectors, pairs: Rows, strengths: Sequence[float]) -> list[Linear]:
    """Ridge regression from word counts onto the vectors of pictures, one for each strength of the penalty.

    Args:
        texts: (t,).
        vectors: (p, dim).
        pairs: (m, 2) which text goes with which picture.
        strengths: of the penalty on the squares of the matrix.
    """
    held = _Products.of(texts, vectors, pairs)
    eye = np.eye(len(held.xx))
    return [
        Linear(held.counts, np.asarray(np.linalg.solve(held.xx + s * eye, held.xy), dtype=np.float64), held.mean)
        for s in strengths
    ]


def cca(texts: Sequence[str], vectors: Vectors, pairs: Rows, dim: int, strength: float, power: float = 1.0) -> Linear:
    """Canonical correlation analysis between word counts and vectors of pictures (Hotelling 1936), regularised.

    Args:
        texts: (t,).
        vectors: (p, picture dim).
        pairs: (m, 2) which text goes with which picture.
        dim: canonical directions to keep.
        strength: added to the diagonals of both covariances, times their mean.
        power: of the correlation by which each direction is scaled (Gong et al. 2014 take 4; 0 is none).
    """
    held = _Products.of(texts, vectors, pairs)
    left, right = (_inverse_root(m, strength) for m in (held.xx, held.yy))
    u, correlation, v = np.linalg.svd(left @ held.xy @ right, full_matrices=False)
    scale = correlation[:dim].clip(0, 1) ** power
    return Linear(held.counts, left @ u[:, :dim] * scale, held.mean, right @ v.T[:, :dim] * scale)


def _inverse_root(matrix: Matrix, strength: float) -> Matrix:
    values, axes = np.linalg.eigh(matrix + strength * matrix.diagonal().mean() * np.eye(len(matrix)))
    root: Matrix = axes / np.sqrt(values) @ axes.T
    return root
