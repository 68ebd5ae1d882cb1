"""A network as a classifier of a closed set of categories: the same ones are taught, validated and tested.

The loop of `lookalike.training.loop` teaches embeddings, and judges them on what they have never seen. A classifier has
a score for each category it was taught, so it is judged by what it calls new pictures. The two share their parts:
network, loss, augmentation, optimiser, precision. What a step draws depends on (seed, step) alone.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from lookalike.encoder import cores
from lookalike.errors import ConfigError, TrainingError
from lookalike.training.config import TrainConfig
from lookalike.training.datasets import PixelCache, Prefetcher
from lookalike.training.judge import embed
from lookalike.training.losses import LOSSES
from lookalike.training.machine import (
    autocast,
    averaged,
    compiled,
    device_for,
    optimizer_for,
    pace,
    precision_for,
    seed_of,
    shrunk,
)
from lookalike.training.networks import EmbeddingNetwork
from lookalike.training.prepare import make_network
from lookalike.training.samplers import ClassBalanced, EveryPicture

Rows = npt.NDArray[np.int64]

__all__ = ["Classifier", "Pictures", "Point", "Taught", "teach", "unfit"]


@dataclass(frozen=True)
class Pictures:
    """What a classifier is taught, and judged by.

    Attributes:
        cache: the decoded pictures.
        labels: (n,) the category of each, from 0 to `classes` - 1.
        parts: "train" and "validation" → rows of the cache.
        classes: how many categories there are; each is in every part.
    """

    cache: PixelCache
    labels: Rows
    parts: Mapping[str, Rows]
    classes: int


class Classifier(nn.Module):
    """A network, and the linear classifier that its loss holds.

    Attributes:
        network: pixels → features.
        loss: features and labels → the number to minimise; it also holds the vector of each category.
    """

    def __init__(self, network: EmbeddingNetwork, loss: Any) -> None:
        super().__init__()
        self.network, self.loss = network, loss

    def forward(self, pixels: Tensor) -> Tensor:
        """(n, channels, h, w) normalised pixels → (n, classes) scores; the highest names the category."""
        scores: Tensor = self.loss.scores(self.network(pixels).float())
        return scores


@dataclass(frozen=True)
class Point:
    """A point of the learning curve.

    Attributes:
        step: after how many.
        minutes: since the first step.
        loss: mean over the batches since the last point, as they were augmented.
        accuracy: the share of these pictures named rightly while they were taught.
        validation_loss: mean over the held-out pictures.
        validation_accuracy: the share of them named rightly.
    """

    step: int
    minutes: float
    loss: float
    accuracy: float
    validation_loss: float
    validation_accuracy: float


@dataclass(frozen=True)
class Taught:
    """What a training came to.

    Attributes:
        classifier: with the weights that were kept, in evaluation mode.
        kept_step: the step they are from: the best one on validation, or the last.
        curve: a point for each validation.
        minutes: from the first step to the last validation.
        precision: that was computed in.
        device: on which.
    """

    classifier: Classifier
    kept_step: int
    curve: list[Point]
    minutes: float
    precision: str
    device: str

    def predict(self, config: TrainConfig, cache: PixelCache, rows: Rows) -> Rows:
        """The category that each picture is taken for: (m,) int64. Pictures are not augmented."""
        mean, std = _normalisation(config, self.device)
        return embed(self.classifier, cache, rows, mean, std, self.device).argmax(1).astype(np.int64)


def unfit(config: TrainConfig) -> list[str]:
    """What a classifier has no use for in a configuration, a line each; empty where it can be taught."""
    loss = LOSSES.get(config.loss.kind)
    checks = [
        (
            not hasattr(loss, "scores"),
            f'loss.kind {config.loss.kind!r} gives no score to each category: write "cross_entropy" or "multi_hinge"',
        ),
        (
            config.sampler.kind not in ("every", "classes"),
            f'sampler.kind {config.sampler.kind!r} is for embeddings: write "every" or "classes"',
        ),
        (config.network.skip, "network.skip: it keeps a ranking of neighbours, and a classifier has none"),
        (config.base.recipe is not None, "base.recipe: give its bundle or checkpoint as network.weights"),
        (bool(config.teacher.bundles), "teacher.bundles: a classifier learns from the categories alone"),
        (config.memory.size > 0, "memory.size: there is nothing to compare with"),
        (config.optimizer.accumulate > 1, "optimizer.accumulate: lower sampler.classes and optimizer.rate instead"),
    ]
    return [problem for wrong, problem in checks if wrong]


def teach(config: TrainConfig, pictures: Pictures, say: Callable[[str], None] = print) -> Taught:
    """Teach a network to tell the categories apart, and keep the weights that do best on validation.

    Of the configuration, [data] beyond size and channels, [validation], [views] and [retrieval] do not matter here.

    Args:
        config: the network, its loss, and how it is taught.
        pictures: decoded with the preprocessing of `config`.
        say: gets a line at each validation.

    Raises:
        ConfigError: the configuration is not one of a classifier, see `unfit`, or does not go with the pictures.
        TrainingError: the loss is no number any more.
    """
    if problems := unfit(config):
        raise ConfigError(problems, f"classifier {config.name}")
    torch.set_num_threads(config.loop.threads or cores())
    return _Run(config, pictures, device_for(config.loop.device), say).go()


def _normalisation(config: TrainConfig, device: str) -> tuple[Tensor, Tensor]:
    preprocessing, channels = config.preprocessing(), config.data.channels
    mean, std = (
        torch.tensor(values[:channels], device=device).view(-1, 1, 1)
        for values in (preprocessing.mean, preprocessing.std)
    )
    return mean, std


class _Run:
    """One training."""

    def __init__(self, config: TrainConfig, pictures: Pictures, device: str, say: Callable[[str], None]) -> None:
        self.config, self.pictures, self.device, self.say = config, pictures, device, say
        self.mean, self.std = _normalisation(config, device)
        self.draw = _sampler(config, pictures)
        torch.manual_seed(config.seed)
        network = make_network(config)
        classifier = Classifier(network, _loss(config, network.dim, pictures.classes)).to(device)
        if config.loop.channels_last:
            classifier = classifier.to(memory_format=torch.channels_last)
        self.classifier = classifier
        self.forward = compiled(classifier.network, say) if config.loop.compile else classifier.network
        self.average = averaged(classifier, config.optimizer.ema)
        self.optimizer = optimizer_for(config.optimizer, classifier.network, classifier.loss, config.network)
        self.rates = [entry["lr"] for entry in self.optimizer.param_groups]
        self.precision = precision_for(config.loop.precision, device, self._try)
        self.curve: list[Point] = []
        self.best: tuple[float, int, dict[str, Tensor]] = (-1.0, 0, {})

    def go(self) -> Taught:
        loop = self.config.loop
        self.say(self._headline())
        began, step, worse = time.monotonic(), 0, 0
        done: list[tuple[float, float]] = []
        with Prefetcher(self._batch) as ahead:
            self.classifier.train()
            while (progress := self._progress(step, began)) < 1 or not step:
                done.append(self._step(step, progress, *next(ahead)[1]))
                step += 1
                if step % loop.validate_every == 0:
                    worse = 0 if self._validate(step, began, done) else worse + 1
                    if loop.patience and worse >= loop.patience:
                        break
        if done:
            self._validate(step, began, done)
        minutes = (time.monotonic() - began) / 60
        kept = self._served()
        if loop.keep == "best":
            kept.load_state_dict(self.best[2])
        kept_step = self.best[1] if loop.keep == "best" else step
        return Taught(kept.eval(), kept_step, self.curve, minutes, self.precision, self.device)

    def _progress(self, step: int, began: float) -> float:
        """0 at the start, 1 when the steps are done or the minutes are over."""
        loop = self.config.loop
        by_clock = 0.0 if loop.minutes is None else (time.monotonic() - began) / (60 * loop.minutes)
        return max(step / loop.steps, by_clock)

    def _batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Pixels and labels of a step; drawn and read in a thread, ahead."""
        rows = self.pictures.parts["train"][self.draw(step)]
        pixels = self.pictures.cache.batch(rows, channels_last=self.config.loop.channels_last)
        return pixels, torch.from_numpy(self.pictures.labels[rows])

    def _step(self, step: int, progress: float, pixels: Tensor, labels: Tensor) -> tuple[float, float]:
        """One step of the optimiser: its loss, and the share of the batch that was named rightly."""
        config = self.config
        for entry, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            entry["lr"] = rate * pace(progress, config.optimizer.warmup, config.loop.steps)
        self.optimizer.zero_grad(set_to_none=True)
        torch.manual_seed(seed_of(config.seed, step))  # for dropout
        dice = torch.Generator().manual_seed(seed_of(config.seed, step, 1))
        pixels, labels = pixels.to(self.device), labels.to(self.device)
        pixels = config.augment(shrunk(pixels, progress, config.loop.small_scale, config.loop.small_until), dice)
        normalised = ((pixels - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        with autocast(self.device, self.precision):
            features = self.forward(normalised)
        loss = self.classifier.loss(features.float(), labels)
        loss.backward()
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingError(
                f"{config.name}: the loss is {value} at step {step:,}: lower optimizer.rate, set optimizer.clip, or "
                'take loop.precision = "fp32"'
            )
        nn.utils.clip_grad_norm_(self.classifier.parameters(), config.optimizer.clip or math.inf)
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.classifier)
        with torch.no_grad():
            right = self.classifier.loss.scores(features.float()).argmax(1) == labels
        return value, float(right.float().mean())

    def _validate(self, step: int, began: float, done: list[tuple[float, float]]) -> bool:
        """A point of the curve; the weights are remembered if no earlier ones did better. Whether they are."""
        served, rows = self._served().eval(), self.pictures.parts["validation"]
        features = embed(served.network, self.pictures.cache, rows, self.mean, self.std, self.device)
        labels = torch.from_numpy(self.pictures.labels[rows])
        with torch.inference_mode():
            on_device = torch.from_numpy(features).to(self.device)
            loss = float(served.loss(on_device, labels.to(self.device)))
            right = served.loss.scores(on_device).argmax(1).cpu() == labels
        self.classifier.train()
        taught = np.mean(done, axis=0)
        done.clear()
        minutes = (time.monotonic() - began) / 60
        accuracy = float(right.float().mean())
        self.curve.append(Point(step, minutes, float(taught[0]), float(taught[1]), loss, accuracy))
        self.say(
            f"{self.config.name}, step {step:,}: loss {taught[0]:.3f}, validation loss {loss:.3f}, accuracy "
            f"{accuracy:.3f} ({minutes:.1f} min)"
        )
        if better := accuracy > self.best[0]:
            self.best = accuracy, step, copy.deepcopy(served.state_dict())
        return better

    def _served(self) -> Classifier:
        """What is judged: the average of the weights where there is one."""
        kept: Classifier = self.classifier if self.average is None else self.average.module
        return kept

    def _try(self, precision: str) -> None:
        """A step forward and back with a copy of the network, to take its time."""
        probe = copy.deepcopy(self.classifier.network).train()
        pixels, _ = self._batch(0)
        with autocast(self.device, precision):
            rows = probe((pixels.to(self.device) / 255).contiguous(memory_format=torch.channels_last))
        rows.float().sum().backward()

    def _headline(self) -> str:
        network, count = self.config.network, sum(p.numel() for p in self.classifier.parameters())
        height, width = self.config.preprocessing().size
        start = "random weights" if network.weights is None else "given weights"
        parts = ", ".join(f"{name} {len(rows):,}" for name, rows in self.pictures.parts.items())
        return (
            f"{self.config.name}: {network.name} from {start}, {count / 1e6:.2f} M parameters, {width} × {height} "
            f"pixels, {parts} pictures, {self.device} in {self.precision}"
        )


def _sampler(config: TrainConfig, pictures: Pictures) -> Callable[[int], Rows]:
    """Step → positions among the training pictures."""
    table, train = config.sampler, pictures.parts["train"]
    if table.kind == "classes":
        labels = pictures.labels[train]
        return ClassBalanced(labels, classes=table.classes, pictures=table.pictures, seed=config.seed).batch
    return EveryPicture(len(train), distinct=table.classes, copies=table.pictures, seed=config.seed).batch


def _loss(config: TrainConfig, dim: int, classes: int) -> Any:
    dice = torch.Generator().manual_seed(config.seed)
    try:
        return LOSSES[config.loss.kind](dim=dim, classes=classes, generator=dice, **config.loss.options)
    except (TypeError, ValueError) as error:
        raise ConfigError([f"loss: {error}"], f"classifier {config.name}") from error
