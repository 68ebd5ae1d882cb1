"""Which products go beside these: what looks like them and is not the same thing again; or what goes with them.

**Beside a product** stand its nearest neighbours by cosine, without the product itself and without what is all but the
same (equal files, near-identical pictures, its group: a size, a colour). Of several variants among the answers one
stands for all and names the others. Liked and disliked products make one question, as in a search. With `diverse`,
answers are chosen by maximal marginal relevance (Carbonell and Goldstein 1998): each is the best trade of being near to
the question and far from what has been chosen before it.

**What goes with a product** lies in other categories (`across`). By looks alone that is the nearest of other
categories. Where it is known what was clicked or bought together (`CoOccurrence`), it is learned, by counting and in
this order:

* *which categories*: the share of each among the partners of the product, smoothed towards that of its category, and
  that towards that of all (Dirichlet priors: MacKay and Peto 1995). Answers come from the categories in proportion to
  these shares, by highest averages (calibrated: Steck 2018).
* *how it looks*: near the mean vector of the partners in a category (the setting is that of McAuley et al. 2015,
  "Image-based Recommendations on Styles and Substitutes"; the partners' mean takes the place of the transformation
  that they learn).
* *which item*: item-to-item similarity, the cosine of two items' columns of customers (Linden, Smith and York 2003),
  here their count over the root of the product of both totals. The more is known of a product, the more this weighs
  beside looks.

A product of which little or nothing is known borrows from those that look like it (a kernel over cosines: Nadaraya and
Watson 1964). So a new product, or a picture that was never in the catalogue, has answers from the first day, and a new
product is found by its looks.

A score is the cosine with the question, as everywhere; answers need not come in its order.
"""

from __future__ import annotations

from lookalike.recommend.beside import Recommender, maximal_marginal_relevance
from lookalike.recommend.judging import Judgement, judge
from lookalike.recommend.together import CoOccurrence

__all__ = ["CoOccurrence", "Judgement", "Recommender", "judge", "maximal_marginal_relevance"]
