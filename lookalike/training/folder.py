"""The run folder: who may use it, what is said and measured in it, and how it ends."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from lookalike.errors import CheckpointError, ConfigError, TrainingError
from lookalike.training.config import TrainConfig, read_config, write_config

# What may change between two goes of one run without making it another run.
FREE = (
    "loop.minutes",
    "loop.threads",
    "loop.report_every",
    "loop.checkpoint_seconds",
    "loop.tensorboard",
    "data.cache",
)

__all__ = ["RunFolder"]


class RunFolder:
    """The folder of a run, as the first process sees it; the others read and stay silent.

    Args:
        path: the folder.
        say: where lines for people go, besides run.log.
        first: whether this process writes.
    """

    def __init__(self, path: Path, say: Callable[[str], None], first: bool = True) -> None:
        self.path = path
        self.first = first
        self._say = say
        self._board: Any = None
        self._last: tuple[int, float] = (0, 0.0)

    @property
    def last(self) -> Path:
        """The checkpoint to go on from."""
        return self.path / "last.pt"

    @property
    def best(self) -> Path:
        """The weights that are judged and exported."""
        return self.path / "best.pt"

    def claim(self, config: TrainConfig) -> None:
        """Make the folder, or make sure that it holds a run of this very configuration.

        Raises:
            CheckpointError: it holds something else; the message lists the differences.
        """
        held = self.path / "config.toml"
        if held.exists():
            try:
                before = read_config(held, to_run=False)
            except ConfigError as error:
                raise CheckpointError(
                    f"{self.path} holds a run that this version cannot read ({error}): "
                    "go on with the version that began it, or train into another folder"
                ) from error
            differences = _differences(config, before)
            if differences:
                raise CheckpointError(
                    f"{self.path} holds a run of another configuration ({'; '.join(differences)}): "
                    "give that one, or train into another folder"
                )
            return
        try:
            if self.path.exists() and any(entry.suffix != ".tmp" for entry in self.path.iterdir()):
                raise CheckpointError(f"{self.path} is neither empty nor a run folder: choose another one")
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TrainingError(f"cannot make the run folder {self.path}: {error.strerror}") from error
        self.write("config.toml", write_config(config))

    def write(self, name: str, content: str | bytes) -> None:
        """A file, whole or not at all. Raises TrainingError where the disk does not take it."""
        scratch = self.path / f"{name}.tmp"
        try:
            scratch.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
            scratch.replace(self.path / name)
        except OSError as error:
            raise TrainingError(f"cannot write {self.path / name}: {error.strerror}; make room and go on") from error

    def write_arrays(self, name: str, values: Mapping[str, Any]) -> None:
        """Arrays by name, as a file of NumPy; like `write`."""
        content = BytesIO()
        np.savez(content, **values)
        self.write(name, content.getvalue())

    def arrays(self, name: str) -> dict[str, npt.NDArray[Any]] | None:
        """What `write_arrays` wrote; None where there is no such file, or none that can be read, which is said."""
        held = self.path / name
        try:
            with np.load(BytesIO(held.read_bytes()), allow_pickle=False) as stored:
                return {key: stored[key] for key in stored.files}
        except FileNotFoundError:
            return None
        except (OSError, ValueError, BadZipFile):
            self.say(f"note: {held} is damaged, and is made anew")
            return None

    def must_be_finite(self, name: str, value: float, step: int, rate: float) -> None:
        """Raises TrainingError where a number of a step is not finite; nothing of the step may have been kept."""
        if math.isfinite(value):
            return
        kept = f"; the last good checkpoint is kept in {self.path}" if self.last.exists() else ""
        raise TrainingError(
            f"the {name} is {value} at step {step:,} (rate {rate:.2g}): train into another folder with a lower "
            f'optimizer.rate, with optimizer.clip, or with loop.precision = "fp32"{kept}'
        )

    def say(self, line: str) -> None:
        """A line for people, here and in run.log."""
        if self.first:
            self._say(line)
            self.note(line)

    def note(self, line: str) -> None:
        """A line for run.log alone."""
        if self.first:
            self._append("run.log", f"{time.strftime('%H:%M:%S')} {line}\n")

    def record(self, step: int, values: Mapping[str, float | None]) -> None:
        """Numbers of a step: a line of metrics.jsonl, and TensorBoard."""
        if not self.first:
            return
        self._append("metrics.jsonl", json.dumps({"step": step, **values}) + "\n")
        if self._board is not None:
            for name, value in values.items():
                if value is not None:
                    self._board.add_scalar(name, value, step)

    def _append(self, name: str, text: str) -> None:
        try:
            with (self.path / name).open("a", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise TrainingError(f"cannot write {self.path / name}: {error.strerror}; make room and go on") from error

    def open_board(self, step: int) -> None:
        """TensorBoard's file, where TensorBoard is installed; what an earlier go wrote after `step` is taken back."""
        if not self.first:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return
        try:
            self._board = SummaryWriter(str(self.path / "tensorboard"), purge_step=step + 1)
        except OSError as error:
            raise TrainingError(f"cannot write {self.path / 'tensorboard'}: {error.strerror}; make room") from error

    def forget_after(self, step: int) -> None:
        """Drop the numbers of steps that will be done again."""
        held = self.path / "metrics.jsonl"
        if self.first and held.exists():
            lines = held.read_text(encoding="utf-8").splitlines()
            self.write("metrics.jsonl", "".join(f"{line}\n" for line in lines if _step_of(line) <= step))

    def pace(self, step: int, spent: float) -> float:
        """Steps per second since the last call."""
        (before, then), self._last = self._last, (step, spent)
        return (step - before) / max(spent - then, 1e-9) if step > before else 0.0

    def outcome(self, outcome: Any, verdict: Any) -> Any:
        """What a complete run came to, or None: made by the two classes given.

        Raises:
            CheckpointError: its report is damaged, or of another version.
        """
        held = self.path / "report.json"
        if not held.exists():
            return None
        try:
            document = json.loads(held.read_text(encoding="utf-8"))
            found = document["verdict"] and verdict.from_document(document["verdict"])
            made = outcome(self.path, document["steps"], document["minutes"], found)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{held} cannot be read ({type(error).__name__}: {error}): delete it to have the run judged again"
            ) from error
        self.say(f"{self.path} holds a complete run, which is not repeated")
        return made

    def finish(self, config: TrainConfig, document: Mapping[str, Any]) -> None:
        """The report, for programs and for people."""
        data = json.loads((self.path / "data.json").read_text(encoding="utf-8"))
        self.write("README.md", _in_words(config, document, data))
        self.write("report.json", json.dumps(document, indent=1) + "\n")

    def close(self) -> None:
        """Close what is open."""
        if self._board is not None:
            self._board.close()


def _differences(ours: TrainConfig, theirs: TrainConfig) -> list[str]:
    left, right = _flat(ours.model_dump(mode="json")), _flat(theirs.model_dump(mode="json"))
    return [
        f"{name} was {right.get(name)!r}, is {left.get(name)!r}"
        for name in sorted(left.keys() | right.keys())
        if left.get(name) != right.get(name) and name not in FREE
    ]


def _flat(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in document.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError):  # a line cut off by kill -9
        return float("inf")


def _in_words(config: TrainConfig, document: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    verdict = document["verdict"]
    lines = [f"# Run {config.name}", ""]
    lines += [f"**{verdict['text']}.**" if verdict else "**Nothing was held out: there is no verdict.**", ""]
    if verdict:
        lines += ["| measure | trained | base | difference, paired 95 % interval |", "|---|---|---|---|"]
        for name, gap in verdict["differences"].items():
            ours, theirs = verdict["ours"][name], verdict["theirs"][name]
            cells = [f"{x['mean']:.4f} [{x['low']:.4f}, {x['high']:.4f}]" for x in (ours, theirs, gap)]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        lines.append("")
    lines += [
        f"{document['steps']:,} steps in {document['minutes']:.1f} minutes on {document['device']} in "
        f"{document['precision']}, kept: step {document['kept_step']:,}.",
        "",
        "Pictures: "
        + ", ".join(f"{name} {count:,}" for name, count in data["pictures"].items())
        + f"; fingerprint {data['fingerprint'][:16]}.",
        "",
    ]
    lines += [f"- {note}" for note in [*data["notes"], *(f"warning: {w}" for w in document["warnings"])]]
    return "\n".join(lines).rstrip() + "\n"
