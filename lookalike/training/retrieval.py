"""The last stage: from a trained network to what answers searches. Each step is tried on validation, and has to help.

Flip averaging, principal axes evened out and cut ("PCA whitening", Jégou and Chum 2012), query expansion and
k-reciprocal re-ranking are old friends of retrieval, and each of them makes some encoders worse. So each is asked the
questions of the validation part, with what was kept before it, and stays only if the paired 95 % interval of the
difference lies above zero. The verdict, on other pictures, is then about the encoder with all that was kept.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch

from lookalike.errors import CheckpointError, ShapeError
from lookalike.metrics import Interval, Values, paired_interval
from lookalike.rerank import Reranking
from lookalike.splits import duplicates
from lookalike.thresholds import calibrate
from lookalike.training.config import TrainConfig
from lookalike.training.folder import RunFolder
from lookalike.training.judge import TITLES, Judge, embed
from lookalike.training.networks import EmbeddingNetwork
from lookalike.training.prepare import Material, views_of
from lookalike.training.teacher import Axes
from lookalike.vectors import Vectors

# Training pictures whose vectors give the principal axes.
FITTED = 8_000
# Shares of the numbers, and powers of the deviation, that are tried.
KEPT = (1.0, 0.5)
POWERS = (0.5, 1.0)
EXPANSIONS = (Reranking(expansion=2), Reranking(expansion=5))
NEIGHBOURS = Reranking(k1=20, k2=6, weight=0.3)
FILE, AXES = "retrieval.json", "whitening.npz"
THRESHOLDS = "thresholds.json"

__all__ = ["Retrieval", "Step", "choose", "thresholds"]


@dataclass(frozen=True)
class Step:
    """One thing tried: what it was, the measure with it, the difference to before, and whether it stays."""

    name: str
    value: float
    difference: Interval
    kept: bool

    def __str__(self) -> str:
        gap = self.difference
        done = "kept" if self.kept else "left"
        return f"{self.name}: {gap.mean:+.4f} [{gap.low:+.4f}, {gap.high:+.4f}], {done}"


@dataclass(frozen=True)
class Retrieval:
    """What is done with a network's vectors.

    Attributes:
        flip: the mean with the vector of the mirror image.
        axes: principal axes to project on, or None.
        reranking: what a search does after its first ranking.
        steps: what was tried, in order.
    """

    flip: bool = False
    axes: Axes | None = None
    reranking: Reranking = field(default_factory=Reranking)
    steps: tuple[Step, ...] = ()

    def apply(self, network: EmbeddingNetwork, config: TrainConfig) -> None:
        """Build the flip and the axes into a network, which then serves so."""
        if self.flip:
            flipped = config.model_copy(update={"views": config.views.model_copy(update={"flip": True})})
            device = next(network.parameters()).device
            views = views_of(flipped, config.preprocessing().size)
            assert views is not None, "a flip makes two views"
            network.views = views.to(device)
        if self.axes is not None:
            mean, axes = (torch.from_numpy(part) for part in (self.axes.mean, self.axes.axes))
            device = next(network.parameters()).device
            network.whiten(mean.to(device), axes.to(device))

    def save(self, place: RunFolder) -> None:
        """Into the run folder, from which the stage is not done again."""
        if self.axes is not None:
            place.write_arrays(AXES, {"mean": self.axes.mean, "axes": self.axes.axes, "kept": self.axes.kept})
        document = {
            "flip": self.flip,
            "whiten": self.axes is not None,
            "reranking": self.reranking.to_document(),
            "steps": [asdict(step) for step in self.steps],
        }
        place.write(FILE, json.dumps(document, indent=1) + "\n")

    @classmethod
    def load(cls, place: RunFolder) -> Retrieval | None:
        """From the run folder, or None where the stage has not been done."""
        if not (place.path / FILE).exists():
            return None
        try:
            document = json.loads((place.path / FILE).read_text(encoding="utf-8"))
            axes = None
            if document["whiten"]:
                with np.load(place.path / AXES, allow_pickle=False) as held:
                    axes = Axes(held["mean"], held["axes"], float(held["kept"]))
            steps = tuple(Step(**{**s, "difference": Interval(**s["difference"])}) for s in document["steps"])
            return cls(document["flip"], axes, Reranking.from_document(document["reranking"]), steps)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{place.path / FILE} is damaged ({error}): delete it, and run again") from error


def choose(config: TrainConfig, network: EmbeddingNetwork, material: Material, device: str) -> Retrieval:
    """Try what [retrieval] names on the validation part; the network is left as it was.

    Args:
        config: which steps, and the measure that decides.
        network: in evaluation mode, with the weights that will be served.
        material: the pictures.
        device: where the network lives.
    """
    judge, table = material.validation, config.retrieval
    if judge is None:
        return Retrieval()
    trial = _Trial(config, network, material, judge, device)
    if table.flip and not config.views.flip:
        trial.offer("flip averaging", [{"flip": True}])
    if table.whiten and config.validation.select != "triplet_accuracy":
        trial.offer("whitening", trial.whitenings())
    if config.validation.select in ("map_at_r", "r_at_1"):  # the others know no neighbours
        if table.expansion:
            trial.offer("query expansion", [{"reranking": some} for some in EXPANSIONS])
        if table.k_reciprocal:
            before = trial.chosen.reranking
            both = replace(NEIGHBOURS, expansion=before.expansion, alpha=before.alpha)
            trial.offer("k-reciprocal re-ranking", [{"reranking": both}])
    return trial.chosen


def thresholds(config: TrainConfig, network: EmbeddingNetwork, material: Material, device: str) -> dict[str, Any]:
    """From which cosine on two pictures are alike, one is unknown, one is a duplicate; see `lookalike.thresholds`.

    Chosen on the validation part, in which near-duplicates say nothing about one another. Without labels, a picture and
    its altered copies are the class; what is unknown is then not asked.

    Args:
        config: how the pictures were parted.
        network: in evaluation mode, as it will be served, with what `choose` has kept.
        material: the pictures.
        device: where the network lives.

    Returns:
        What the manifest of the bundle will hold; empty where nothing was held out, or too little to choose on.
    """
    judge = material.validation
    if judge is None:
        return {}
    mean, std = material.mean.to(device), material.std.to(device)
    vectors = embed(network, material.cache, judge.rows, mean, std, device)
    labelled = config.data.labels != "none"
    groups = duplicates(material.cache.caches[0].pixels, judge.rows) if labelled else None
    try:
        found = calibrate(
            vectors, judge.labels, groups=groups, copies=None if labelled else judge.labels, named=labelled
        )
    except ShapeError:  # no two pictures of one class that are not nearly the same picture
        return {}
    document = found.document()
    part = f"validation, split by {config.data.split}" if labelled else "validation, altered copies"
    return {**document, "calibration": {"part": part, **document["calibration"]}}


class _Trial:
    """What is kept so far, and its answers."""

    def __init__(
        self, config: TrainConfig, network: EmbeddingNetwork, material: Material, judge: Judge, device: str
    ) -> None:
        self._config, self._network, self._material, self._judge = config, network, material, judge
        self._device = device
        self._held: dict[tuple[bool, bool], Vectors] = {}
        self.chosen = Retrieval()
        self._answers: Values | None = None  # asked for when there is something to compare them with

    def offer(self, name: str, variants: Any) -> None:
        """The best of some variants is kept if it is better than what there is, beyond doubt."""
        found = [(replace(self.chosen, **change), change) for change in variants]
        if not found:
            return
        answers = [self._ask(candidate) for candidate, _ in found]
        best = int(np.argmax([np.nanmean(values) for values in answers]))
        before = self._ask(self.chosen) if self._answers is None else self._answers
        self._answers = before
        gap = paired_interval(answers[best], before)
        kept = gap.low > 0
        told = _told(name, found[best][1])
        step = Step(told, float(np.nanmean(answers[best])), gap, kept)
        if kept:
            self.chosen, self._answers = found[best][0], answers[best]
        self.chosen = replace(self.chosen, steps=(*self.chosen.steps, step))

    def whitenings(self) -> Iterator[dict[str, Axes]]:
        """Axes of the training pictures' vectors, whole and cut, evened out more and less."""
        train = self._vectors(self.chosen.flip, judged=False)
        spanned = Axes.spanned(train)
        for share in KEPT:
            dim = max(2, round(share * spanned))
            if dim < len(train):
                for power in POWERS:
                    yield {"axes": Axes.of(train, dim, power)}

    def _ask(self, candidate: Retrieval) -> Values:
        vectors = self._vectors(candidate.flip, judged=True)
        if candidate.axes is not None:
            vectors = candidate.axes(vectors)
        return self._judge.ask(vectors, candidate.reranking or None)[self._config.validation.select]

    def _vectors(self, flip: bool, judged: bool) -> Vectors:
        """Of the validation part, or of training pictures; each set is embedded once."""
        if (flip, judged) not in self._held:
            material = self._material
            rows = self._judge.rows
            if not judged:
                rows = np.random.default_rng(0).permutation(material.parts["train"])[:FITTED]
            mean, std = material.mean.to(self._device), material.std.to(self._device)
            with _served_as(self._network, Retrieval(flip), self._config) as network:
                self._held[flip, judged] = embed(network, material.cache, rows, mean, std, self._device)
        return self._held[flip, judged]


class _served_as:  # noqa: N801 - reads as a function
    """A network for a while as `retrieval` would serve it."""

    def __init__(self, network: EmbeddingNetwork, retrieval: Retrieval, config: TrainConfig) -> None:
        self._network, self._retrieval, self._config = network, retrieval, config
        self._before = network.views, network.whitening, network.dim

    def __enter__(self) -> Callable[[Any], Any]:
        self._retrieval.apply(self._network, self._config)
        return self._network

    def __exit__(self, *_: object) -> None:
        self._network.views, self._network.whitening, self._network.dim = self._before


def _told(name: str, change: Mapping[str, Any]) -> str:
    """The step in words: "whitening to 64 numbers"."""
    if isinstance(axes := change.get("axes"), Axes):
        return f"{name} to {axes.axes.shape[1]} numbers, {100 * axes.kept:.0f} % of the variance"
    reranking = change.get("reranking")
    if isinstance(reranking, Reranking) and not reranking.k1:
        return f"{name} by {reranking.expansion}"
    return name


def in_words(retrieval: Retrieval, measure: str) -> list[str]:
    """A line for each step, for people."""
    return [f"retrieval, {TITLES[measure]} on validation: {step}" for step in retrieval.steps]
