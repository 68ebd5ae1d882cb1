"""What two towers minimise: each query finds its own picture among those of the batch, and each picture its query.

A query is a text or a picture. Those of a batch are negatives of one another only where nothing says that they belong
together: the same caption of another picture, another caption of the same picture, another picture clicked for the same
query are known to fit, and are left out of the comparison.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from lookalike.errors import ShapeError
from lookalike.training._distances import full_precision, precise
from lookalike.training._loss import at_least

Numbers = npt.NDArray[np.int64]

__all__ = ["Known", "Matching"]


class Known:
    """Which queries and pictures are known to fit.

    Args:
        pairs: (m, 2) int64, a query and a picture each.
    """

    def __init__(self, pairs: Numbers) -> None:
        self._span = int(pairs[:, 1].max(initial=0)) + 1
        self._codes = np.unique(pairs[:, 0] * self._span + pairs[:, 1])

    def __call__(self, queries: Numbers, pictures: Numbers) -> npt.NDArray[np.bool_]:
        """(n,) queries and (m,) pictures → (n, m) whether each fits each."""
        codes = queries[:, None] * self._span + pictures[None]
        place = np.searchsorted(self._codes, codes).clip(max=len(self._codes) - 1)
        fits: npt.NDArray[np.bool_] = (self._codes[place] == codes) & (pictures < self._span)
        return fits


class Matching(nn.Module):
    """Softmax over the negatives of a batch, both ways, with a learned temperature; and the hardest ones, if wanted.

    The cross-entropy is that of CLIP (Radford et al. 2021; DSSM's of Huang et al. 2013 is its half from query to
    picture, with sampled negatives); what is known to fit is left out of its sums. The hinge is that of VSE++ (Faghri
    et al. 2018): max(0, margin - own cosine + cosine of the hardest negative), both ways.

    Args:
        temperature: at the start; cosines are divided by it.
        coldest: it never falls below.
        hard: weight of the hinge over the hardest negatives; 0 is without it.
        margin: of the hinge.
    """

    def __init__(
        self, temperature: float = 0.07, coldest: float = 0.01, hard: float = 0.0, margin: float = 0.2
    ) -> None:
        super().__init__()
        self.coldest = at_least("coldest", coldest, 0, above=True)
        self.hard, self.margin = at_least("hard", hard, 0), at_least("margin", margin, 0)
        self.scale = nn.Parameter(torch.tensor(-math.log(at_least("temperature", temperature, coldest))))

    @property
    def temperature(self) -> float:
        """As it is now."""
        return max(math.exp(-float(self.scale.detach())), self.coldest)

    def forward(self, queries: Tensor, pictures: Tensor, fits: Tensor) -> Tensor:
        """The loss of a batch.

        Args:
            queries: (B, d) unit rows.
            pictures: (B + E, d) unit rows: that of each query, then E others, negatives of those they do not fit.
            fits: (B, B + E) bool, what is known to fit; each query's own picture is taken to.

        Raises:
            ShapeError: the shapes do not go together.
        """
        count = len(queries)
        if queries.ndim != 2 or len(pictures) < count or fits.shape != (count, len(pictures)):
            raise ShapeError(
                f"queries (B, d), pictures (B + E, d) and fits (B, B + E) must go together, got "
                f"{tuple(queries.shape)}, {tuple(pictures.shape)} and {tuple(fits.shape)}"
            )
        with full_precision(queries):
            cosines = precise(queries) @ precise(pictures).T
            own = torch.eye(count, len(pictures), dtype=torch.bool, device=cosines.device)
            known = fits & ~own
            logits = cosines * self.scale.clamp(max=-math.log(self.coldest)).exp()
            logits = logits.masked_fill(known, -torch.inf)
            target = torch.arange(count, device=cosines.device)
            loss = functional.cross_entropy(logits, target) + functional.cross_entropy(logits[:, :count].T, target)
            if self.hard:
                others, mine = cosines.masked_fill(known | own, -torch.inf), cosines.diagonal()
                across = others.amax(1), others[:, :count].amax(0)
                loss = loss + self.hard * sum((self.margin - mine + other).clamp(min=0).mean() for other in across)
            return loss / 2
