"""Learning from use: what people took among what they were shown bends the space, and only if it helps.

A click says little (Joachims et al. 2017): this picture rather than those beside it. What a few thousand clicks can
carry is a change of what counts in the vectors there are, so one matrix is learned behind an encoder, beginning with
the identity: a softmax over what was shown, clicked against passed over, with pictures drawn at random as further
negatives (Bengio and Senécal 2008), and a price for leaving the identity.

Clicks are few, so that every question judges once: in each of `FOLDS` rounds three fifths of the questions teach, one
fifth chooses the price and when to stop, and the last one, which had no say, is asked. What is judged is thus the
procedure; the matrix that is kept has learned from all questions, as the rounds chose on the whole. All that was shown
for one question is on one side.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor
from torch.nn import functional

from lookalike.bundle import Bundle, write_bundle
from lookalike.errors import TrainingError
from lookalike.metrics import Interval, Values, mean_interval, paired_interval
from lookalike.training.export import surroundings
from lookalike.vectors import Vectors, unit

FOLDS = 5
# Fewer questions with a click and something passed over than this teach nothing that could be told from luck.
FEWEST = 50
# Prices of leaving the identity that are tried; the steepest first, as it changes least.
PRICES = (10.0, 1.0)
STEPS, LOOK_EVERY, RATE, TEMPERATURE = 120, 20, 2e-3, 0.1
# Drawn at random beside what was passed over.
NEGATIVES = 8
# Of a list of what was shown, the most that are looked at.
LONGEST = 64

__all__ = ["FEWEST", "Impression", "Learned", "bend", "learn", "triplet_shares"]


@dataclass(frozen=True)
class Impression:
    """One list that was shown for a question, and what became of it. All are rows of one array of vectors.

    Attributes:
        question: of what was asked.
        taken: clicked, or judged alike.
        passed: shown and not clicked, or judged not alike.
    """

    question: int
    taken: tuple[int, ...]
    passed: tuple[int, ...]

    @property
    def useful(self) -> bool:
        """Whether it says that something is rather wanted than something else."""
        return bool(self.taken and self.passed)


@dataclass(frozen=True)
class Learned:
    """What came of learning from clicks.

    Attributes:
        matrix: (dim, dim) float32; unit rows times it, brought to unit length, are the new vectors.
        price: of leaving the identity, as chosen; infinite where nothing helped and the matrix is the identity.
        steps: done with it.
        before, after: on questions that had no say, the share of (taken, passed) pairs in the right order.
        gain: their difference, question by question.
        clicks: pictures taken, over all impressions.
    """

    matrix: Vectors
    price: float
    steps: int
    before: Interval
    after: Interval
    gain: Interval
    clicks: int

    @property
    def better(self) -> bool:
        """Whether the 95 % interval of the gain lies above zero: only then is the matrix worth having."""
        return self.gain.low > 0

    def document(self) -> dict[str, Any]:
        """As JSON, without the matrix."""
        numbers = {name: asdict(getattr(self, name)) for name in ("before", "after", "gain")}
        price = None if np.isinf(self.price) else self.price
        return {
            "better": self.better,
            "price": price,
            "steps": self.steps,
            "clicks": self.clicks,
            **numbers,
        }

    def __str__(self) -> str:
        """The verdict in one line."""
        size = f"{self.gain.mean:+.4f} [{self.gain.low:+.4f}, {self.gain.high:+.4f}]"
        told = f"better than before by {size}" if self.better else f"no better than before: {size}"
        return (
            f"{told} of the pairs of a taken and a passed picture in the right order, {self.after.mean:.4f} against "
            f"{self.before.mean:.4f}, on {self.gain.count:,} questions, each held out once"
        )


def triplet_shares(vectors: Vectors, impressions: Sequence[Impression]) -> Values:
    """Of each impression, the share of its (taken, passed) pairs whose taken picture is closer to the question.

    Args:
        vectors: (n, dim) unit rows.
        impressions: each useful.

    Returns:
        (m,) float64; a tie counts as wrong, so that a constant encoder scores 0 and a random one a half.
    """
    shares = np.empty(len(impressions))
    for row, shown in enumerate(impressions):
        asked = vectors[shown.question]
        taken, passed = (vectors[list(rows)] @ asked for rows in (shown.taken, shown.passed))
        shares[row] = (taken[:, None] > passed[None, :]).mean()
    return shares


def learn(
    vectors: Vectors, impressions: Sequence[Impression], groups: Sequence[str] | None = None, *, seed: int = 0
) -> Learned:
    """Learn the matrix behind an encoder from what was taken and passed over.

    Args:
        vectors: (n, dim) float32 unit rows of all pictures shown and all questions.
        impressions: those that say nothing are left out.
        groups: of each impression, what it must share its side with: by default its question.
        seed: of the split and the random negatives.

    Raises:
        TrainingError: fewer than `FEWEST` groups have anything to say.
    """
    names = [str(shown.question) for shown in impressions] if groups is None else list(groups)
    kept = [(shown, name) for shown, name in zip(impressions, names, strict=True) if shown.useful]
    if len({name for _, name in kept}) < FEWEST:
        raise TrainingError(
            f"{len({name for _, name in kept})} questions have both a picture that was taken and one that was passed "
            f"over; at least {FEWEST} are needed to learn from clicks and to judge it: search on, and record what is "
            "taken"
        )
    rows, told = _renumbered(vectors, [shown for shown, _ in kept])
    fold = _folds([name for _, name in kept], seed)
    before, after, settings = triplet_shares(rows, told), np.empty(len(told)), Counter[tuple[float, int]]()
    for judge in range(FOLDS):
        choose = (judge + 1) % FOLDS
        teach = [shown for shown, at in zip(told, fold, strict=True) if at not in (judge, choose)]
        asked = [shown for shown, at in zip(told, fold, strict=True) if at == choose]
        price, steps, matrix = _chosen(rows, teach, asked, seed)
        settings[price, steps] += 1
        held = np.flatnonzero(fold == judge)
        after[held] = triplet_shares(unit(rows @ matrix), [told[i] for i in held])
    price, steps = min(settings, key=lambda setting: (-settings[setting], -setting[0]))
    matrix = dict(_Lesson(rows, told, seed).matrices(price)).get(steps, np.eye(rows.shape[1], dtype=np.float32))
    owners = [name for _, name in kept]
    before, after = _per_group(before, owners), _per_group(after, owners)
    clicks = sum(len(shown.taken) for shown in told)
    gain = paired_interval(after, before)
    return Learned(matrix, price, steps, mean_interval(before), mean_interval(after), gain, clicks)


def _renumbered(vectors: Vectors, impressions: Sequence[Impression]) -> tuple[Vectors, list[Impression]]:
    """Only the rows that are spoken of."""
    used = np.unique([row for shown in impressions for row in (shown.question, *shown.taken, *shown.passed)])
    place = {int(row): number for number, row in enumerate(used)}
    told = [
        Impression(place[shown.question], *(tuple(place[row] for row in rows) for rows in (shown.taken, shown.passed)))
        for shown in impressions
    ]
    return np.ascontiguousarray(vectors[used], dtype=np.float32), told


def _folds(names: Sequence[str], seed: int) -> npt.NDArray[np.int64]:
    """A fold for each impression, the same for equal names."""
    known, owner = np.unique(list(names), return_inverse=True)
    fold: npt.NDArray[np.int64] = np.random.default_rng(seed).permutation(len(known))[owner] % FOLDS
    return fold


def _per_group(values: Values, owners: Sequence[str]) -> Values:
    """The mean of each group: what was shown for one question again and again is one question."""
    _, group = np.unique(owners, return_inverse=True)
    means: Values = np.bincount(group, weights=values) / np.bincount(group)
    return means


def _chosen(
    vectors: Vectors, teach: Sequence[Impression], choose: Sequence[Impression], seed: int
) -> tuple[float, int, Vectors]:
    """Price, steps and matrix that do best on the questions that choose; the identity if none does better than it."""
    best: tuple[float, int, Vectors] = (np.inf, 0, np.eye(vectors.shape[1], dtype=np.float32))
    score = float(triplet_shares(vectors, choose).mean())
    lesson = _Lesson(vectors, teach, seed)
    for price in PRICES:
        for steps, matrix in lesson.matrices(price):
            found = float(triplet_shares(unit(vectors @ matrix), choose).mean())
            if found > score:
                best, score = (price, steps, matrix), found
    return best


class _Lesson:
    """The impressions as padded tensors: a row for each, with what was taken and what was passed over."""

    def __init__(self, vectors: Vectors, impressions: Sequence[Impression], seed: int) -> None:
        self._vectors = torch.from_numpy(np.ascontiguousarray(vectors, dtype=np.float32))
        self._seed = seed
        self._questions = torch.tensor([shown.question for shown in impressions])
        self._taken = _padded([shown.taken for shown in impressions])
        self._passed = _padded([shown.passed for shown in impressions])

    def matrices(self, price: float) -> list[tuple[int, Vectors]]:
        """What is learned at a price, now and then on the way: (steps, matrix)."""
        if np.isinf(price):
            return []
        dim = self._vectors.shape[1]
        identity = torch.eye(dim)
        matrix = identity.clone().requires_grad_()
        optimizer = torch.optim.Adam([matrix], lr=RATE)
        dice = torch.Generator().manual_seed(self._seed)
        found = []
        for step in range(1, STEPS + 1):
            loss = self._loss(matrix, dice) + price * (matrix - identity).square().sum() / dim
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % LOOK_EVERY == 0:
                found.append((step, matrix.detach().numpy().copy()))
        return found

    def _loss(self, matrix: Tensor, dice: torch.Generator) -> Tensor:
        """Each picture taken against all that was passed over or drawn; an impression counts once."""
        rows = functional.normalize(self._vectors @ matrix, dim=1)
        asked = rows[self._questions]
        drawn = torch.randint(len(rows), (len(asked), NEGATIVES), generator=dice)
        # What was taken or asked is no negative.
        known = torch.cat([self._taken, self._questions[:, None]], dim=1)
        drawn = drawn.masked_fill((drawn[:, :, None] == known[:, None, :]).any(2), -1)
        right, passed, others = (self._scores(rows, asked, lists) for lists in (self._taken, self._passed, drawn))
        against = torch.cat([passed, others], dim=1).logsumexp(dim=1, keepdim=True)
        costs = torch.where(self._taken >= 0, torch.logaddexp(right, against) - right, 0)
        return (costs.sum(1) / (self._taken >= 0).sum(1)).mean()

    @staticmethod
    def _scores(rows: Tensor, asked: Tensor, lists: Tensor) -> Tensor:
        scores = torch.einsum("nd,nkd->nk", asked, rows[lists.clamp(min=0)]) / TEMPERATURE
        return scores.masked_fill(lists < 0, -1e4)


def _padded(lists: Sequence[tuple[int, ...]]) -> Tensor:
    """(n, longest) int64, filled up with -1; of a long one its beginning."""
    longest = min(LONGEST, max(map(len, lists)))
    return torch.tensor([[*one[:longest], *[-1] * (longest - len(one))] for one in lists])


# ── the bundle ───────────────────────────────────────────────────────────────────────────────────────────────────────


def bend(
    bundle: Bundle,
    matrix: Vectors,
    to: str | os.PathLike[str],
    *,
    report: Mapping[str, Any],
    thresholds: Mapping[str, Any] | None = None,
) -> Bundle:
    """A bundle with a matrix behind each of its graphs: pictures, and words where it knows words.

    Args:
        bundle: stays as it is.
        matrix: (dim, dim), as `Learned.matrix`.
        to: the folder of the new bundle.
        report: becomes what the manifest says of its metrics.
        thresholds: that hold for the new vectors; those of `bundle` do not.

    Raises:
        BundleError: `to` is taken by something else.
    """
    manifest = {name: value for name, value in bundle.manifest.items() if name not in ("schema", "files")}
    manifest |= {
        "name": Path(os.fspath(to)).stem,
        "version": "",
        "recipe": {"clicks_on": {"name": bundle.name, "fingerprint": bundle.fingerprint}, **surroundings()},
        "metrics": dict(report),
        "thresholds": dict(thresholds or {}),
    }
    with tempfile.TemporaryDirectory(prefix="lookalike-") as scratch:
        folder = bundle.graph_folder(Path(scratch))
        files: dict[str, bytes | Path] = {name: folder / name for name in bundle.manifest["files"]}
        for kind in ("image", "text"):
            graph = (manifest.get(kind) or {}).get("graph")
            if graph is not None:
                files[graph] = _with_matrix(folder / graph, matrix)
        files["README.md"] = _card(manifest, bundle).encode()
        return write_bundle(to, manifest, files)


def _with_matrix(graph: Path, matrix: Vectors) -> bytes:
    """The graph with its first output multiplied by the matrix; weights that lie beside it stay there."""
    model = onnx.load(graph, load_external_data=False)
    output = model.graph.output[0].name
    taken = {name for node in model.graph.node for name in (*node.input, *node.output)}
    count = next(number for number in range(len(taken) + 1) if f"bend.{number}" not in taken)
    inner, weight = f"bend.{count}.rows", f"bend.{count}"
    for node in model.graph.node:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                names[place] = inner if name == output else name
    model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(matrix, dtype=np.float32), weight))
    model.graph.node.append(onnx.helper.make_node("MatMul", [inner, weight], [output]))
    return model.SerializeToString()


def _card(manifest: Mapping[str, Any], origin: Bundle) -> str:
    gain = manifest["metrics"]["gain"]
    return (
        f"# {manifest['name']}\n\n"
        f"{origin.name} (`{origin.fingerprint}`), bent by what its users took among what they were shown: its vectors "
        "times one matrix.\n\n"
        "On questions held out, the share of pairs of a taken and a passed picture in the right order changed by "
        f"{gain['mean']:+.4f} [{gain['low']:+.4f}, {gain['high']:+.4f}] (95 % paired bootstrap interval, "
        f"{gain['count']:,} questions). What people are not shown they cannot take: the measure is about the order of "
        "what the encoder before found.\n"
    )
