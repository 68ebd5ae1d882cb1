"""Two towers: words and pictures into one space, from captions, titles or clicks.

The picture tower is an encoder bundle and a projection. The encoder rests: its vectors are computed once, and a step
takes milliseconds. From a share of the run on it may learn, too, slowly, where its bundle carries the weights.

The text tower learns from hashed words, or is a sentence-transformers model, which rests as well, and a perceptron.
Such a model may also teach the tower of hashed words: how alike the texts of a batch are to it is kept.

::

    run/
      config.toml  metrics.jsonl  run.log  last.pt  best.pt  report.json  README.md     as in `lookalike.training.loop`
      data.json         parts, counts, fingerprint, what was left out; samples for the export to check its graphs with
      pixels/           the encoder's vectors, and the sentence model's; decoded pictures, once the encoder learns
      base.npz          what the bag of words answered, mapped onto the encoder's vectors by ridge regression

Everything a step draws depends on (seed, step) alone, so that a run that was stopped goes on bit for bit.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from lookalike.bundle import Bundle
from lookalike.captions import Captions, read_captions
from lookalike.encoder import Encoder, cores
from lookalike.errors import CatalogueError, CheckpointError, ConfigError, TrainingError
from lookalike.images import shown
from lookalike.metrics import Values
from lookalike.ranking import first_ranks
from lookalike.text import Hashing, Vocabulary
from lookalike.training.bagofwords import Linear, ridge
from lookalike.training.checkpoints import Parts, load_checkpoint, restore_run, save_checkpoint, save_run
from lookalike.training.config import TrainConfig
from lookalike.training.datasets import PixelCache
from lookalike.training.folder import RunFolder
from lookalike.training.judge import TITLES, Verdict, means
from lookalike.training.loop import Outcome, Report
from lookalike.training.machine import Stopper, averaged, device_for, optimizer_of, pace, seed_of
from lookalike.training.matching import Known, Matching
from lookalike.training.networks import EmbeddingNetwork, build
from lookalike.training.networks.text import Towers
from lookalike.training.networks.weights import read_weights, weights_file
from lookalike.training.sentences import Sentences
from lookalike.training.teacher import Distillation, looked
from lookalike.training.watch import CollapseWatch, health
from lookalike.vectors import Vectors, unit

Numbers = npt.NDArray[np.int64]

# Penalties that the ridge regression may choose from, on validation.
STRENGTHS = (1.0, 3.0, 10.0, 30.0)
# Texts and pictures that the export compares its graphs with.
SAMPLES = 64
# A network rebuilt from a bundle must give the bundle's vectors before it may learn on.
REBUILT = 0.999
# The measure that decides the verdict; the checkpoint is chosen by the sum of all.
DECIDES = "text_r_at_10"
KS = (1, 5, 10)

__all__ = ["Question", "answers", "build_towers", "rebuilt", "sentences_of", "train_towers"]


@dataclass(frozen=True)
class Question:
    """The held-out pictures of one part, the texts that fit them, and which fits which.

    Attributes:
        pictures: (p,) positions among all pictures.
        texts: (t,) positions among all texts.
        pairs: (m, 2) positions in `texts` and in `pictures`.
    """

    pictures: Numbers
    texts: Numbers
    pairs: Numbers

    @classmethod
    def of(cls, captions: Captions, pictures: Numbers) -> Question:
        """All texts that fit some of the pictures, and those of the pictures that have any."""
        _, pairs = captions.of(pictures)
        held = pictures[np.unique(pairs[:, 1])]
        texts, pairs = captions.of(held)
        return cls(held, texts, pairs)


def answers(texts: Vectors, pictures: Vectors, pairs: Numbers) -> dict[str, Values]:
    """Recall both ways, one number per picture.

    Words look for pictures (``text_r_at_K``) and pictures for words (``picture_r_at_K``). The captions of one picture
    are no independent questions: what they find is averaged.

    Args:
        texts: (t, dim) rows.
        pictures: (p, dim) rows.
        pairs: (m, 2) which text fits which picture; each picture has at least one.
    """
    by_text, by_picture = first_ranks(texts, pictures, pairs), first_ranks(pictures, texts, pairs[:, ::-1])
    whose, count = pairs[:, 1], np.bincount(pairs[:, 1], minlength=len(pictures))
    found = {}
    for k in KS:
        found[f"text_r_at_{k}"] = np.bincount(whose, weights=by_text[pairs[:, 0]] <= k, minlength=len(count)) / count
        found[f"picture_r_at_{k}"] = (by_picture <= k).astype(np.float64)
    return found


def sentences_of(config: TrainConfig, device: str = "cpu") -> Sentences | None:
    """The sentence model of a configuration, or None. Errors as `Sentences.load`."""
    table = config.sentences
    return Sentences.load(table.model, table.prefix, device) if table.model else None


def build_towers(config: TrainConfig, encoder_dim: int, sentences: Sentences | None) -> tuple[Vocabulary, Towers]:
    """The vocabulary and the towers of a configuration, with their first weights.

    Args:
        config: the configuration.
        encoder_dim: length of the picture encoder's vectors.
        sentences: its sentence model, of which only a text tower of sentences takes something.
    """
    table = config.text
    hashing = Hashing(table.trigrams, table.words, table.length)
    tower = sentences if table.tower == "sentences" else None
    towers = Towers.build(
        hashing.size if tower is None else tower.dim,
        encoder_dim,
        dim=table.dim,
        width=table.width,
        hidden=table.hidden,
        picture_hidden=table.picture_hidden,
        dropout=table.dropout,
        seed=config.seed,
        sentences=tower is not None,
    )
    return hashing if tower is None else tower.vocabulary, towers


def rebuilt(bundle: Bundle, pictures: list[str]) -> EmbeddingNetwork:
    """The network of a bundle in PyTorch, to be trained further.

    Args:
        bundle: with weights, made of a network by name.
        pictures: on which network and bundle must agree.

    Raises:
        ConfigError: the bundle has no weights, or the network made of them gives other vectors.
    """
    recipe = bundle.manifest.get("recipe", {})
    recipe = recipe.get("stages", [recipe])[-1]  # that of the encoder that ships tells of all its stages
    facts = recipe.get("network")
    table = facts if isinstance(facts, dict) else {"name": facts, "head": "none"}
    refused = f"text.unfreeze: the network of bundle {bundle.name} cannot be trained further"
    try:
        base = build(
            str(table["name"]),
            weights=str(bundle.path),
            channels=int(recipe.get("data", {}).get("channels", 3)),
            size=bundle.preprocessing.size,
            **table.get("options", {}),
        )
        shape = {name: table[name] for name in ("dim", "pool", "head", "skip", "normalise") if name in table}
        network = EmbeddingNetwork(base, **shape)
        state = read_weights(weights_file(bundle.path))
        if "whitening.weight" in state:
            wide = state["whitening.weight"].shape
            network.whiten(torch.zeros(wide[1]), torch.zeros(wide[1], wide[0]))
        network.load_state_dict(state, strict=False)
    except (TrainingError, ConfigError, KeyError, RuntimeError, TypeError) as error:
        raise ConfigError([f"{refused} ({error}); leave text.unfreeze at 1, or take another encoder"]) from error
    network.eval()
    pixels = np.stack([bundle.preprocessing.load(path) for path in pictures])
    with torch.inference_mode():
        ours = unit(network(torch.from_numpy(bundle.preprocessing.normalise(pixels))).numpy())
    theirs = Encoder(bundle, precision="fp32").images(pictures, strict=True)
    lowest = float((ours * theirs).sum(1).min()) if ours.shape == theirs.shape else math.nan
    if not lowest >= REBUILT:
        raise ConfigError(
            [
                f"{refused}: made anew from its recipe it gives other vectors (lowest cosine {lowest:.4f}), as where "
                "its graph holds more than the network (views, a mirrored copy); leave text.unfreeze at 1"
            ]
        )
    return network


def train_towers(
    config: TrainConfig,
    folder: str | os.PathLike[str],
    *,
    say: Callable[[str], None] = print,
    watch: Callable[[Report], None] | None = None,
) -> Outcome:
    """Train two towers, or go on with the run in `folder`. Arguments and errors as for `lookalike.training.train`."""
    device = device_for(config.loop.device)
    torch.set_num_threads(config.loop.threads or cores())
    place = RunFolder(Path(folder), say)
    try:
        place.claim(config)
        done: Outcome | None = place.outcome(Outcome, Verdict)
        return done if done is not None else Run(config, place, device, watch).go()
    finally:
        place.close()


@dataclass
class State:
    """What changes from step to step, besides the weights; lies in every checkpoint."""

    step: int = 0
    spent: float = 0.0
    best: float = -math.inf
    best_step: int = 0
    worse: int = 0
    asked: int = -1
    score: float | None = None
    losses: list[float] = field(default_factory=list)
    said: list[str] = field(default_factory=list)


class Learner(nn.Module):
    """All that learns: the towers, the loss with its temperature, and the encoder's network where it does."""

    def __init__(self, towers: Towers, loss: Matching, network: EmbeddingNetwork | None) -> None:
        super().__init__()
        self.towers, self.loss, self.network = towers, loss, network

    def groups(self, rate: float, decay: float, slower: float) -> list[dict[str, object]]:
        """Parameters for the optimiser: matrices with decay, vectors without, the encoder's slower."""
        found: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            key = (rate * slower if name.startswith("network.") else rate, decay if parameter.ndim > 1 else 0.0)
            found.setdefault(key, []).append(parameter)
        return [{"params": own, "lr": lr, "weight_decay": wd} for (lr, wd), own in found.items()]


class Run:
    """One run in its folder."""

    def __init__(
        self, config: TrainConfig, place: RunFolder, device: str, watch: Callable[[Report], None] | None
    ) -> None:
        began = time.monotonic()
        self.config, self.place, self.device, self.watch = config, place, device, watch
        table = config.text
        self.encoder = Encoder.default() if table.encoder == "default" else Encoder.load(table.encoder)
        self.cache = Path(config.data.cache or place.path / "pixels")
        self.captions, self.vectors = _material(config, self.encoder, self.cache, place)
        self.parts = self.captions.parts(config.data.validation, config.data.test, config.seed)
        self.validation = Question.of(self.captions, self.parts["validation"])
        self.test = Question.of(self.captions, self.parts["test"])
        self.pairs, self.refused = (_within(table, self.parts, self.captions) for table in self._tables())
        if len(self.pairs) < 2 or not len(self.validation.pairs):
            raise ConfigError(
                [f"{shown(config.data.root)} leaves {len(self.pairs)} pairs to train on and "
                 f"{len(self.validation.pairs)} held out for validation: more pictures with words are needed"]
            )  # fmt: skip
        sentences = sentences_of(config, device)
        if sentences is not None and table.tower == "sentences":
            sentences.graph()  # that a bundle can carry it is known before anything is learned
        self._tell_data(sentences)
        vocabulary, towers = build_towers(config, self.encoder.dim, sentences)
        self.ids, self.sentences = self._texts(vocabulary, sentences)
        self.lessons = Distillation(vectors=0.0, similarities=1.0, temperature=config.sentences.temperature)
        self.known = Known(self.captions.pairs)
        network = rebuilt(self.encoder.bundle, self._some_pictures(8)) if table.unfreeze < 1 else None
        loss = Matching(table.temperature, table.coldest, table.hard, table.margin)
        self.learner = Learner(towers, loss, network).to(device)
        self.pixels = self._decoded() if network is not None else None
        self.base = self._base()
        self.average = averaged(self.learner, config.optimizer.ema)
        self.optimizer = self._optimizer()
        self.rates = [entry["lr"] for entry in self.optimizer.param_groups]
        self.collapse = CollapseWatch()
        self.state = State()
        self._resume()
        if config.loop.tensorboard:
            place.open_board(self.state.step)
        self.prepared = time.monotonic() - began

    # ── the loop ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def go(self) -> Outcome:
        """Train to the end, then give the verdict."""
        config, state = self.config.loop, self.state
        self.place.say(self._headline())
        saved = clock = time.monotonic()
        with Stopper() as stopper:
            while not self._enough() and (progress := self._progress()) < 1:
                if stopper.asked:
                    self._save()
                    self.place.say(f"stopped at step {state.step:,}: the same command goes on from there")
                    raise KeyboardInterrupt
                state.losses.append(self._step(progress))
                state.step += 1
                now = time.monotonic()
                state.spent, clock = state.spent + now - clock, now
                if state.step % config.report_every == 0:
                    self._report(progress)
                if state.step % config.validate_every == 0:
                    self._validate()
                if now - saved >= config.checkpoint_seconds:
                    self._save()
                    saved = time.monotonic()
        if state.asked != state.step:
            self._validate()
        self._save()
        return self._finish()

    def _step(self, progress: float) -> float:
        """One step of the optimiser; gives the loss."""
        config, table = self.config.optimizer, self.config.text
        for entry, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            entry["lr"] = rate * pace(progress, config.warmup, self.config.loop.steps)
        live = self.learner.network is not None and progress >= table.unfreeze
        dice = np.random.default_rng([self.config.seed, self.state.step])
        torch.manual_seed(seed_of(self.config.seed, self.state.step))  # for dropout
        count = min(table.unfreeze_batch if live else table.batch, len(self.pairs))
        batch = self.pairs[dice.choice(len(self.pairs), count, replace=False)]
        others = self._passed_over(batch[:, 0], dice)
        self.learner.train()
        if self.learner.network is not None:
            self.learner.network.eval()  # its batch statistics are those of the many pictures it was taught on
        pictures = np.concatenate([batch[:, 1], others])
        fits = torch.from_numpy(self.known(batch[:, 0], pictures)).to(self.device)
        rows = self._queries(batch[:, 0], live)
        loss: Tensor = self.learner.loss(rows, self._pictures(pictures, live), fits)
        if self.ids is not None and self.sentences is not None:
            loss = loss + self.config.sentences.weight * self._untaught(batch[:, 0], rows)
        value, rate = float(loss.detach()), self.optimizer.param_groups[-1]["lr"]
        self.place.must_be_finite("loss", value, self.state.step, rate)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = float(nn.utils.clip_grad_norm_(self.learner.parameters(), config.clip or math.inf))
        self.place.must_be_finite("gradient", norm, self.state.step, rate)
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.learner)
        return value

    def _untaught(self, queries: Numbers, rows: Tensor) -> Tensor:
        """How far the texts of a batch are from being as alike as they are to the teacher; of each text one row."""
        assert self.sentences is not None
        texts, first = np.unique(queries, return_index=True)
        first = first[texts < len(self.captions.texts)]
        if not len(first):  # pictures alone
            return rows.sum() * 0
        targets = self.sentences[torch.from_numpy(queries[first])].to(rows.device)
        return self.lessons(rows[torch.from_numpy(first).to(rows.device)], targets)

    def _passed_over(self, queries: Numbers, dice: np.random.Generator) -> Numbers:
        """For each query of a batch that has any, one picture that was shown for it and not clicked."""
        order = self.refused
        first = np.searchsorted(order[:, 0], queries)
        count = np.searchsorted(order[:, 0], queries, side="right") - first
        drawn = first + (dice.random(len(queries)) * count).astype(np.int64)
        return np.unique(order[drawn[count > 0], 1])

    def _queries(self, queries: Numbers, live: bool) -> Tensor:
        """(n, dim): texts through their tower, pictures through theirs."""
        texts = len(self.captions.texts)
        if (queries < texts).all():
            return self.learner.towers.text(self._batch_texts(queries))
        rows = torch.empty(len(queries), self.config.text.dim, device=self.device)
        words = torch.from_numpy(queries < texts)
        if words.any():
            rows = rows.masked_scatter(words[:, None].to(self.device), self._queries(queries[queries < texts], live))
        asked = self._pictures(queries[queries >= texts] - texts, live)
        return rows.masked_scatter(~words[:, None].to(self.device), asked)

    def _batch_texts(self, texts: Numbers) -> Tensor:
        """What the text tower takes: ids, or the sentence model's vectors."""
        if self.ids is None:
            assert self.sentences is not None
            return self.sentences[torch.from_numpy(texts)].to(self.device)
        ids = self.ids[torch.from_numpy(texts)]
        return ids[:, : int((ids != 0).sum(1).max())].to(self.device, torch.int64)

    def _pictures(self, pictures: Numbers, live: bool) -> Tensor:
        """(n, dim), from the vectors of the resting encoder or through the one that learns."""
        network = self.learner.network
        if not live or network is None or self.pixels is None:
            vectors = torch.from_numpy(self.vectors[pictures]).to(self.device)
        else:
            vectors = network(self._normalised(pictures))
        return self.learner.towers.projection(vectors)

    def _normalised(self, pictures: Numbers) -> Tensor:
        assert self.pixels is not None
        how = self.encoder.bundle.preprocessing
        mean, std = (torch.tensor(values, device=self.device)[:, None, None] for values in (how.mean, how.std))
        channels = self.pixels.pixels.shape[3]
        return (self.pixels.batch(pictures).to(self.device).float() / 255 - mean[:channels]) / std[:channels]

    def _progress(self) -> float:
        by_steps = self.state.step / self.config.loop.steps
        minutes = self.config.loop.minutes
        if minutes is None:
            return by_steps
        return max(by_steps, self.state.spent / max(60 * minutes - self.prepared, 1.0))

    # ── looking and telling ──────────────────────────────────────────────────────────────────────────────────────────

    def embed(self, question: Question, live: bool) -> tuple[Vectors, Vectors]:
        """(t, dim) of its texts and (p, dim) of its pictures, by what is judged and exported.

        Args:
            question: what is asked.
            live: pictures go through the encoder's network; else its vectors from before are taken.
        """
        served = self._served().eval()
        with torch.inference_mode():
            texts = [served.towers.text(self._batch_texts(part)).cpu().numpy() for part in _blocks(question.texts)]
            pictures = []
            for part in _blocks(question.pictures):
                rows = (
                    served.network(self._normalised(part))
                    if live and served.network is not None
                    else torch.from_numpy(self.vectors[part]).to(self.device)
                )
                pictures.append(served.towers.projection(rows).cpu().numpy())
        return np.concatenate(texts), np.concatenate(pictures)

    def _awake(self) -> bool:
        """Whether the encoder has begun to learn."""
        return self.learner.network is not None and self._progress() > self.config.text.unfreeze

    def _report(self, progress: float) -> None:
        state = self.state
        loss = float(np.mean(state.losses))
        state.losses.clear()
        texts = np.unique(self.pairs[self.pairs[:, 0] < len(self.captions.texts), 0])[:256]
        with torch.inference_mode():
            rows = self.learner.eval().towers.text(self._batch_texts(texts))
        found = health(rows)
        rate = self.place.pace(state.step, state.spent) * min(self.config.text.batch, len(self.pairs))
        left = state.spent * (1 - progress) / max(progress, 1e-9)
        temperature = self.learner.loss.temperature
        self.place.record(
            state.step,
            {
                "loss": loss,
                "rate": self.optimizer.param_groups[0]["lr"],
                "temperature": temperature,
                "mean_similarity": found.similarity,
                "effective_rank": found.rank,
                "pairs_per_second": rate,
                "minutes": state.spent / 60,
            },
        )
        if progress >= self.config.optimizer.warmup:
            for message in self.collapse.look(loss, found):
                state.said.append(message)
                self.place.say(f"warning, step {state.step:,}: {message}")
        self.place.note(f"step {state.step:,}: loss {loss:.4f}, temperature {temperature:.4f}, {rate:,.0f} pairs/s")
        if self.watch is not None:
            self.watch(Report(state.step, progress, loss, None, state.score, rate, left))

    def _enough(self) -> bool:
        """Whether validation has been no better for as long as the patience is."""
        return 0 < self.config.loop.patience <= self.state.worse

    def _validate(self) -> None:
        """Ask the held-out pictures; keep the weights if they are the best so far."""
        state = self.state
        state.asked = state.step
        scores = means(answers(*self.embed(self.validation, self._awake()), self.validation.pairs))
        state.score = scores["text_r_at_1"]
        self.place.record(state.step, {f"validation/{name}": value for name, value in scores.items()})
        told = ", ".join(f"{TITLES[name]} {scores[name]:.4f}" for name in (DECIDES, "picture_r_at_10"))
        self.place.say(f"step {state.step:,}: {told} ({state.spent / 60:.1f} min)")
        if (score := sum(scores.values())) > state.best:
            state.best, state.best_step, state.worse = score, state.step, 0
            self._keep()
            return
        state.worse += 1
        if self._enough():
            self.place.say(f"no better for {state.worse} validations: stopping early, best at step {state.best_step:,}")

    def _served(self) -> Learner:
        served: Learner = self.learner if self.average is None else self.average.module
        return served

    def _headline(self) -> str:
        parts = ", ".join(f"{name} {len(rows):,}" for name, rows in self.parts.items() if len(rows))
        count = sum(parameter.numel() for parameter in self.learner.towers.parameters())
        begin = f"goes on at step {self.state.step:,}" if self.state.step else "begins"
        read = f" and {self.config.sentences.model}" if self.sentences is not None else ""
        return (
            f"{begin}: two towers, {count / 1e6:.2f} M parameters beside {self.encoder.name}{read}; {parts} pictures, "
            f"{len(self.captions.texts):,} texts, {len(self.pairs):,} pairs to learn from, {self.device}"
        )

    # ── before and after ─────────────────────────────────────────────────────────────────────────────────────────────

    def _tables(self) -> tuple[Numbers, Numbers]:
        refused = self.captions.refused
        return self.captions.pairs, refused[np.argsort(refused[:, 0], kind="stable")]

    def _some_pictures(self, count: int) -> list[str]:
        rows = self.parts["train"]
        chosen = rows[np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int))]
        return [self.captions.pictures[row] for row in chosen]

    def _texts(self, vocabulary: Vocabulary, sentences: Sentences | None) -> tuple[Tensor | None, Tensor | None]:
        """(t, m) ids where the text tower takes these, and (t, d) vectors where there is a sentence model."""
        texts = self.captions.texts
        hashed = self.config.text.tower == "hashing"
        ids = torch.from_numpy(vocabulary(texts)).to(torch.int32) if hashed else None
        if sentences is None:
            return ids, None
        return ids, torch.from_numpy(sentences.once(texts, self.cache, self.place.say))

    def _tell_data(self, sentences: Sentences | None) -> None:
        held = self.place.path / "data.json"
        if held.exists():
            found = json.loads(held.read_text(encoding="utf-8"))
            if sentences is not None:
                sentences.check(found["sentences"])
            if found["fingerprint"] != self.captions.fingerprint():
                raise CheckpointError(
                    f"{self.place.path} is a run on other captions or pictures than {self.config.data.root} holds now: "
                    "train into another folder"
                )
            return
        document = {
            "pictures": {name: len(rows) for name, rows in self.parts.items()},
            "texts": len(self.captions.texts),
            "pairs": len(self.pairs),
            "fingerprint": self.captions.fingerprint(),
            "notes": self.captions.notes,
            "samples": {"pictures": self._some_pictures(SAMPLES), "texts": self.captions.texts[:SAMPLES]},
        }
        if sentences is not None:
            document["sentences"] = sentences.to_document()
        self.place.write("data.json", json.dumps(document, indent=1, ensure_ascii=False) + "\n")

    def _decoded(self) -> PixelCache:
        how = self.encoder.bundle.preprocessing
        assert self.learner.network is not None
        channels = self.learner.network.channels
        return PixelCache.build(self.captions.pictures, how, channels=channels, folder=self.cache, say=self.place.say)

    def _base(self) -> dict[str, Values]:
        """What the bag of words finds of the part that gives the verdict; computed once."""
        held = self.place.arrays("base.npz")
        if held is not None:
            return held
        rows = self.pairs[self.pairs[:, 0] < len(self.captions.texts)]
        texts, place = np.unique(rows[:, 0], return_inverse=True)
        models = ridge(
            [self.captions.texts[i] for i in texts], self.vectors, np.stack([place, rows[:, 1]], axis=1), STRENGTHS
        )

        def ask(model: Linear, question: Question) -> dict[str, Values]:
            asked = model.texts([self.captions.texts[i] for i in question.texts])
            return answers(asked, model.pictures(self.vectors[question.pictures]), question.pairs)

        best = max(models, key=lambda model: sum(means(ask(model, self.validation)).values()))
        found = ask(best, self._judged()[1])
        self.place.write_arrays("base.npz", found)
        told = ", ".join(f"{TITLES[name]} {means(found)[name]:.4f}" for name in (DECIDES, "picture_r_at_10"))
        self.place.say(f"base: bag of words by ridge regression onto {self.encoder.name}: {told}")
        return found

    def _judged(self) -> tuple[str, Question]:
        return ("test", self.test) if len(self.test.pairs) else ("validation", self.validation)

    def _optimizer(self) -> torch.optim.Optimizer:
        table = self.config.optimizer
        groups = self.learner.groups(table.rate, table.weight_decay, self.config.text.unfreeze_rate)
        return optimizer_of(table, groups)

    def _save(self) -> None:
        save_run(self.place.last, self._parts(), self.state)

    def _keep(self) -> None:
        state = {"learner": self._served().state_dict(), "step": self.state.step, "awake": self._awake()}
        save_checkpoint(self.place.best, state)

    def _resume(self) -> None:
        found = restore_run(self.place.last, self._parts(), State)
        if found is not None:
            self.state = found
            self.place.forget_after(found.step)

    def _parts(self) -> Parts:
        return {"learner": self.learner, "optimizer": self.optimizer, "average": self.average, "watch": self.collapse}

    def _finish(self) -> Outcome:
        """Judge what was kept, write the report."""
        kept = load_checkpoint(self.place.best)
        self._served().load_state_dict(kept["learner"])
        part, question = self._judged()
        name = f"bag of words, by ridge regression onto {self.encoder.name}"
        found = answers(*self.embed(question, kept["awake"]), question.pairs)
        verdict = Verdict.of(name, part, DECIDES, found, self.base)
        outcome = Outcome(self.place.path, self.state.step, self.state.spent / 60, verdict)
        document = {
            "steps": outcome.steps,
            "minutes": round(outcome.minutes, 2),
            "prepared_minutes": round(self.prepared / 60, 2),
            "kept_step": kept["step"],
            "device": self.device,
            "precision": "fp32",
            "temperature": round(self.learner.loss.temperature, 5),
            "warnings": self.state.said,
            "verdict": verdict.document(),
        }
        self.place.finish(self.config, document)
        self.place.say(str(verdict))
        return outcome


def _material(config: TrainConfig, encoder: Encoder, cache: Path, place: RunFolder) -> tuple[Captions, Vectors]:
    """Captions of the pictures that can be read, and the encoder's vectors of these."""
    if not config.data.root.lower().endswith(".csv"):
        raise CatalogueError(f"{shown(config.data.root)} is no CSV file: captions are rows of one (picture, caption)")
    captions = read_captions(config.data.root, config.text.columns)
    there = np.array([os.path.isfile(path) for path in captions.pictures])  # noqa: PTH113
    captions = _reduced(captions, there, "were not found")
    vectors = looked(encoder, captions.pictures, cache, place.say)
    readable = np.isfinite(vectors[:, 0])
    captions = _reduced(captions, readable, "cannot be read")
    return captions, unit(vectors[readable])


def _reduced(captions: Captions, kept: npt.NDArray[np.bool_], why: str) -> Captions:
    if kept.all():
        return captions
    lost = next(path for path, there in zip(captions.pictures, kept, strict=True) if not there)
    if not kept.any():
        raise CatalogueError(f"none of {len(kept):,} pictures is there, e.g. {shown(lost)}: paths are relative to the "
                             "CSV file")  # fmt: skip
    captions.notes.append(f"{int((~kept).sum()):,} pictures {why}, e.g. {shown(lost)}")
    return captions.keep(kept)


def _within(table: Numbers, parts: dict[str, Numbers], captions: Captions) -> Numbers:
    """The rows of training pictures; of queries by picture, those whose query is one, too."""
    train = np.zeros(len(captions.pictures), dtype=bool)
    train[parts["train"]] = True
    query = table[:, 0] - len(captions.texts)
    kept: Numbers = table[train[table[:, 1]] & ((query < 0) | train[query.clip(min=0)])]
    return kept


def _blocks(rows: Numbers, size: int = 256) -> list[Numbers]:
    return [rows[first : first + size] for first in range(0, len(rows), size)]
