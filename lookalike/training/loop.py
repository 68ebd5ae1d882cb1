"""The loop: a configuration and a folder in, a run folder with a trained network and a verdict out.

::

    run/
      config.toml       the resolved configuration
      base/             first stage: the run that taught the base, where [base] names a recipe
      data.json         what became of the pictures: parts, counts, leaks, fingerprint, unreadable ones
      pixels/           the decoded pictures
      base.npz          what the base answered before step 0
      metrics.jsonl     a line per report and per validation; tensorboard/ shows the same
      last.pt           everything, to go on from; best.pt: the weights that are judged and exported
      run.log           what was said
      retrieval.json    last stage: what was tried with the vectors, and what was kept; whitening.npz with it
      thresholds.json   from which cosine on two pictures are alike, one is unknown, one is a duplicate
      report.json       the verdict and all its numbers; README.md says it in words

Everything a step draws (pictures, augmentation, dropout) depends on (seed, step) alone: a run that was stopped, by
Ctrl-C or by kill -9, goes on from its last checkpoint as if nothing had happened, bit for bit in float32 on a CPU, if
it ends by steps. One that ends by minutes depends on the clock.
"""

from __future__ import annotations

import copy
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from lookalike.encoder import cores
from lookalike.errors import ConfigError, TrainingError
from lookalike.metrics import Values
from lookalike.training.checkpoints import Parts, load_checkpoint, restore_run, save_checkpoint, save_run
from lookalike.training.config import TrainConfig, read_config
from lookalike.training.datasets import Prefetcher
from lookalike.training.distributed import Group, share_batch_norm
from lookalike.training.folder import RunFolder
from lookalike.training.judge import TITLES, Judge, Verdict, means
from lookalike.training.machine import (
    Stopper,
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
from lookalike.training.objective import Batch
from lookalike.training.prepare import Material, ask, base_answers, make_network, make_objective, prepare
from lookalike.training.retrieval import FILE as RETRIEVAL
from lookalike.training.retrieval import THRESHOLDS, Retrieval, choose, in_words, thresholds
from lookalike.training.watch import CollapseWatch, health

# Of the minutes given, what is left for the verdict and the export.
RESERVE = 0.05

__all__ = ["Outcome", "Report", "train"]


@dataclass(frozen=True)
class Report:
    """Where a run is: what a progress bar shows. `r_at_1` is the last validation's."""

    step: int
    progress: float
    loss: float
    active: float | None
    r_at_1: float | None
    pictures_per_second: float
    seconds_left: float


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Attributes:
        folder: the run folder.
        steps: how many were done.
        minutes: of training, over all resumptions.
        verdict: against the base; None where nothing was held out, and in processes that are not the first.
    """

    folder: Path
    steps: int
    minutes: float
    verdict: Verdict | None


def train(
    config: TrainConfig,
    folder: str | os.PathLike[str],
    *,
    say: Callable[[str], None] = print,
    watch: Callable[[Report], None] | None = None,
) -> Outcome:
    """Train, or go on with the run in `folder`.

    Args:
        config: what to do.
        folder: the run folder; made when it is missing. A run that is complete there is not repeated.
        say: gets each line meant for people.
        watch: gets a `Report` at every report.

    Raises:
        ConfigError, CatalogueError: the pictures do not allow what the configuration asks for.
        CheckpointError: the folder holds a run of another configuration or version.
        TrainingError: the loss is no number any more, no batch has anything to learn from, the disk is full.
        KeyboardInterrupt: after Ctrl-C, once the checkpoint is written.
    """
    device = device_for(config.loop.device)
    group = Group.join(device)
    torch.set_num_threads(config.loop.threads or max(1, cores() // group.size))
    try:
        return _trained(config, Path(folder), device, group, say, watch)
    finally:
        group.leave()


def _trained(
    config: TrainConfig,
    folder: Path,
    device: str,
    group: Group,
    say: Callable[[str], None],
    watch: Callable[[Report], None] | None,
) -> Outcome:
    """The stages of one run folder, each done once."""
    place = RunFolder(folder, say, group.first)
    try:
        if group.first:
            place.claim(config)
        group.wait()
        done: Outcome | None = place.outcome(Outcome, Verdict)
        if done is not None:
            return done
        if config.base.recipe is not None:
            place.say(f"stage 1 of 3, base: {config.base.recipe}")
            _trained(_base(config), folder / "base", device, group, say, watch)
            network = config.network.model_copy(update={"weights": str(folder / "base" / "best.pt")})
            config = config.model_copy(update={"network": network})
        return Run(config, place, device, group, watch).go()
    finally:
        place.close()


def _base(config: TrainConfig) -> TrainConfig:
    """The recipe of the first stage."""
    recipe = read_config(str(config.base.recipe))
    ours, theirs = config.network, recipe.network
    if (theirs.name, theirs.options) != (ours.name, ours.options):
        raise ConfigError(
            [f"base.recipe trains {theirs.name} {theirs.options}, this run {ours.name} {ours.options}: "
             "they must be the same network"]
        )  # fmt: skip
    return recipe


@dataclass
class State:
    """What changes from step to step, besides the weights; lies in every checkpoint.

    `taught` counts the steps with anything to learn from, `asked` is the last one that was validated.
    """

    step: int = 0
    spent: float = 0.0
    precision: str = ""
    best: float = -math.inf
    best_step: int = 0
    worse: int = 0
    taught: int = 0
    asked: int = -1
    score: float | None = None
    r_at_1: float | None = None
    losses: list[float] = field(default_factory=list)
    said: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Done:
    """What a step came to: the figures of a report are taken from the last one before it."""

    loss: float
    norm: float
    embeddings: Tensor
    batch: Batch
    dice: torch.Generator


class Run:
    """One run in its folder. Its parts are made in `__init__`, in the order in which they need one another."""

    def __init__(
        self,
        config: TrainConfig,
        place: RunFolder,
        device: str,
        group: Group,
        watch: Callable[[Report], None] | None,
    ) -> None:
        began = time.monotonic()
        self.config, self.place, self.device, self.group, self.watch = config, place, device, group, watch
        self.material: Material = prepare(config, place, group)
        torch.manual_seed(config.seed)
        self.network = make_network(config, self.material).to(device)
        if config.loop.channels_last:
            self.network = self.network.to(memory_format=torch.channels_last)
        self.objective = make_objective(config, self.material, self.network.dim).to(device)
        self.base = base_answers(config, self.material, self.network, place, group, device)
        if group.size > 1:
            share_batch_norm(self.network)
        self.average = averaged(self.network, config.optimizer.ema)
        self.optimizer = optimizer_for(config.optimizer, self.network, self.objective, config.network)
        self.rates = [entry["lr"] for entry in self.optimizer.param_groups]
        self.forward = compiled(self.network, place.say) if config.loop.compile else self.network
        self.collapse = CollapseWatch(self.objective.level)
        self.state = State()
        self.done: Done
        self.resume()
        if not self.state.precision:
            self.state.precision = group.same(precision_for(config.loop.precision, device, self._try))
        if config.loop.tensorboard:
            place.open_board(self.state.step)
        self.prepared = time.monotonic() - began

    # ── the loop ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def go(self) -> Outcome:
        """Train to the end, then give the verdict."""
        config, state = self.config.loop, self.state
        self.place.say(f"stage 2 of 3, {self.config.loss.kind}: {self._headline()}")
        saved = clock = time.monotonic()
        with Stopper() as stopper, self._ahead() as ahead:
            self.network.train()
            while not self._enough() and (progress := self._progress()) < 1:
                if self.group.same(stopper.asked):
                    self.save()
                    self.place.say(f"stopped at step {state.step:,}: the same command goes on from there")
                    raise KeyboardInterrupt
                self.step(progress, ahead)
                state.step += 1
                state.losses.append(self.done.loss)
                state.taught += self.done.norm > 0
                now = time.monotonic()
                state.spent, clock = state.spent + now - clock, now
                if state.step % config.report_every == 0:
                    self.report(float(np.mean(state.losses)), progress)
                    state.losses.clear()
                if state.step % config.validate_every == 0:
                    self.validate()
                if self.group.same(now - saved >= config.checkpoint_seconds):
                    self.save()
                    saved = time.monotonic()
        self._must_have_taught()
        if state.asked != state.step:
            self.validate()
        self.save()
        return self.finish()

    def step(self, progress: float, ahead: Iterator[tuple[int, tuple[Batch, Tensor]]]) -> None:
        """One step of the optimiser; `done` holds what it came to."""
        config, loop = self.config.optimizer, self.config.loop
        for entry, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            entry["lr"] = rate * pace(progress, config.warmup, loop.steps)
        self.optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for micro in range(config.accumulate):
            _, (batch, pixels) = next(ahead)
            batch = batch.to(self.device)
            torch.manual_seed(seed_of(self.config.seed, self.state.step, micro, self.group.rank))  # for dropout
            dice = torch.Generator().manual_seed(seed_of(self.config.seed, self.state.step, micro))
            pixels = shrunk(pixels.to(self.device), progress, loop.small_scale, loop.small_until)
            pictures = self.material.normalised(self.config.augment(pixels, dice))
            with autocast(self.device, self.state.precision):
                own = self.forward(pictures[self.group.part(len(pictures))])
            embeddings = self.group.gather(own.float())
            loss = self.objective(embeddings, batch, dice, progress)
            (loss / config.accumulate).backward()
            total += float(loss.detach()) / config.accumulate
        self.place.must_be_finite("loss", total, self.state.step, self.optimizer.param_groups[-1]["lr"])
        parameters = [p for entry in self.optimizer.param_groups for p in entry["params"]]
        self.group.average_gradients(parameters)
        norm = float(nn.utils.clip_grad_norm_(parameters, config.clip or math.inf))
        # A finite loss may have a gradient that is not.
        self.place.must_be_finite("gradient", norm, self.state.step, self.optimizer.param_groups[-1]["lr"])
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.network)
        self.done = Done(total, norm, embeddings.detach(), batch, dice)

    def _ahead(self) -> Prefetcher[tuple[Batch, Tensor]]:
        """Batches with their pixels, drawn and read in a thread while the network works."""

        def ready(index: int) -> tuple[Batch, Tensor]:
            batch = self.material.draw(index)
            return batch, self.material.cache.batch(batch.rows, channels_last=self.config.loop.channels_last)

        return Prefetcher(ready, start=self.state.step * self.config.optimizer.accumulate)

    def _try(self, precision: str) -> None:
        """A step forward and back on pictures that show nothing, with a copy of the network: to take its time."""
        count = self.group.part(len(self.material.draw(0).rows))
        shape = (count.stop - count.start, self.network.channels, *self.config.preprocessing().size)
        probe = copy.deepcopy(self.network).train()
        with autocast(self.device, precision):
            rows = probe(torch.zeros(shape, device=self.device).contiguous(memory_format=torch.channels_last))
        rows.float().sum().backward()

    def _progress(self) -> float:
        """0 at the start, 1 when the steps are done or the minutes are over; the same in all processes."""
        by_steps = self.state.step / self.config.loop.steps
        minutes = self.config.loop.minutes
        if minutes is None:
            return by_steps
        budget = max(60 * minutes * (1 - RESERVE) - self.prepared, 1.0)
        return float(self.group.same(max(by_steps, self.state.spent / budget)))

    def _enough(self) -> bool:
        """Whether validation has been no better for as long as the patience is."""
        return 0 < self.config.loop.patience <= self.state.worse

    def _must_have_taught(self) -> None:
        if self.state.taught or not self.state.step:
            return
        raise TrainingError(
            f"none of the first {self.state.step:,} batches had anything to learn from, the loss was "
            "0, or without a gradient: take a larger loss.margin, another miner, or more "
            "sampler.classes and sampler.pictures"
        )

    # ── looking and telling ──────────────────────────────────────────────────────────────────────────────────────────

    def report(self, loss: float, progress: float) -> None:
        """A line of metrics.jsonl, the collapse watch, and a word to whoever watches."""
        self._must_have_taught()
        state, done = self.state, self.done
        active = self.objective.active(done.embeddings, done.batch, done.dice, progress)
        found = health(done.embeddings, active)
        pictures = len(done.embeddings) * self.config.optimizer.accumulate
        rate = self.place.pace(state.step, state.spent) * pictures
        left = state.spent * (1 - progress) / max(progress, 1e-9)
        self.place.record(
            state.step,
            {
                "loss": loss,
                "rate": self.optimizer.param_groups[-1]["lr"],
                "gradient_norm": done.norm,
                "active_triplets": active,
                "mean_similarity": found.similarity,
                "effective_rank": found.rank,
                "pictures_per_second": rate,
                "minutes": state.spent / 60,
            },
        )
        if progress >= self.config.optimizer.warmup:  # before, an untrained network may well look collapsed
            for message in self.collapse.look(loss, found):
                self._warn(message)
        shown = f", {100 * active:.0f} % active triplets" if active is not None else ""
        self.place.note(
            f"step {state.step:,}: loss {loss:.4f}{shown}, {rate:,.0f} pictures/s, {left / 60:.1f} min left"
        )
        if self.watch is not None and self.group.first:
            self.watch(Report(state.step, progress, loss, active, state.r_at_1, rate, left))

    def _warn(self, message: str) -> None:
        self.state.said.append(message)
        self.place.say(f"warning, step {self.state.step:,}: {message}")

    def validate(self) -> None:
        """Ask the held-out pictures; keep the weights if they are the best so far."""
        judge, config, state = self.material.validation, self.config, self.state
        state.asked = state.step
        if judge is None:
            return
        if self.group.first:
            scores = means(self._asked_quickly(judge))
            state.score, state.r_at_1 = scores[config.validation.select], scores["r_at_1"]
            self.place.record(state.step, {f"validation/{name}": value for name, value in scores.items()})
            shown = ", ".join(f"{TITLES[name]} {value:.4f}" for name, value in scores.items())
            self.place.say(f"step {state.step:,}: {shown} ({state.spent / 60:.1f} min)")
        state.score = self.group.same(state.score)
        self.network.train()
        if state.score > state.best:
            state.best, state.best_step, state.worse = state.score, state.step, 0
            if config.loop.keep == "best":
                self._keep()
            return
        state.worse += 1
        if self._enough():
            self.place.say(f"no better for {state.worse} validations: stopping early, best at step {state.best_step:,}")

    def _asked_quickly(self, judge: Judge) -> dict[str, Values]:
        """The answers without moved views, which would take as many times longer; the verdict is with them."""
        served = self._served().eval()
        views, served.views = served.views, None
        try:
            return ask(served, judge, self.material, self.device)
        finally:
            served.views = views

    def _served(self) -> EmbeddingNetwork:
        """The network that is judged and exported: the average where there is one."""
        return self.network if self.average is None else self.average.module

    def _headline(self) -> str:
        parts = ", ".join(f"{name} {len(rows):,}" for name, rows in self.material.parts.items() if len(rows))
        count = sum(parameter.numel() for parameter in self.network.parameters())
        begin = f"goes on at step {self.state.step:,}" if self.state.step else "begins"
        source = self.config.network.weights
        start = "from random weights" if source is None else f"from {Path(source).name}"
        return (
            f"{begin} {start}: {self.config.network.name}, {count / 1e6:.2f} M parameters, {parts} pictures, "
            f"{self.device} in {self.state.precision}, {self.group.size} process{'es' if self.group.size > 1 else ''}"
        )

    # ── saving and ending ────────────────────────────────────────────────────────────────────────────────────────────

    def save(self) -> None:
        """Everything needed to go on."""
        if self.group.first:
            save_run(self.place.last, self._parts(), self.state)

    def _keep(self) -> None:
        if self.group.first:
            save_checkpoint(self.place.best, {"network": self._served().state_dict(), "step": self.state.step})

    def resume(self) -> None:
        """Go on from the last checkpoint, if there is one."""
        found = restore_run(self.place.last, self._parts(), State)
        if found is not None:
            self.state = found
            self.place.forget_after(found.step)

    def _parts(self) -> Parts:
        return {
            "network": self.network,
            "objective": self.objective,
            "optimizer": self.optimizer,
            "average": self.average,
            "watch": self.collapse,
        }

    def finish(self) -> Outcome:
        """Judge what was kept, write the report."""
        state = self.state
        if self.config.loop.keep == "last" or not self.place.best.exists():
            self._keep()
        self.group.wait()
        verdict = None
        served = self._served()
        if self.group.first:
            kept = load_checkpoint(self.place.best)
            served.load_state_dict(kept["network"])
            retrieval = self._retrieval(served.eval())
        if self.group.first and self.material.judge is not None:
            retrieval.apply(served, self.config)
            answers = ask(served, self.material.judge, self.material, self.device, retrieval.reranking)
            name, theirs = self.base
            verdict = Verdict.of(name, self.material.judged, self.config.validation.select, answers, theirs)
            found = thresholds(self.config, served, self.material, self.device)
            self.place.write(THRESHOLDS, json.dumps(found, indent=1) + "\n")
        outcome = Outcome(self.place.path, state.step, state.spent / 60, verdict)
        if self.group.first:
            self._write_report(outcome, kept["step"])
        self.group.wait()
        return outcome

    def _retrieval(self, served: EmbeddingNetwork) -> Retrieval:
        """The last stage, done once: how the vectors will be served."""
        found = Retrieval.load(self.place)
        if found is None:
            self.place.say("stage 3 of 3, retrieval: what may be done with the vectors is tried on validation")
            found = choose(self.config, served, self.material, self.device)
            found.save(self.place)
            for line in in_words(found, self.config.validation.select):
                self.place.say(line)
        return found

    def _write_report(self, outcome: Outcome, kept_step: int) -> None:
        document = {
            "steps": outcome.steps,
            "minutes": round(outcome.minutes, 2),
            "prepared_minutes": round(self.prepared / 60, 2),
            "kept_step": kept_step,
            "device": self.device,
            "precision": self.state.precision,
            "processes": self.group.size,
            "warnings": self.state.said,
            "retrieval": json.loads((self.place.path / RETRIEVAL).read_text(encoding="utf-8"))["steps"],
            "verdict": None if outcome.verdict is None else outcome.verdict.document(),
        }
        self.place.finish(self.config, document)
        self.place.say(str(outcome.verdict) if outcome.verdict else "nothing was held out: there is no verdict")
