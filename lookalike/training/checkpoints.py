"""Save a run and go on exactly where it was: written whole or not at all, nothing unpickled but plain data.

What a step draws depends on (seed, step) alone, so a checkpoint holds no generator: weights, optimiser, averages,
memory and a few numbers are all there is.
"""

from __future__ import annotations

import errno
import os
import pickle
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from lookalike.errors import CheckpointError, TrainingError

# Raised when what a checkpoint holds changes, so that an older run folder is refused and not misread.
VERSION = 1
# What torch's zip writer says when the disk takes no more.
FULL = ("unexpected pos", "file write failed")

__all__ = ["VERSION", "Part", "Parts", "load_checkpoint", "restore_run", "save_checkpoint", "save_run"]


class Part(Protocol):
    """Of a run, what knows how to save itself: a network, an optimiser, an average, the collapse watch."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""

    def load_state_dict(self, state: dict[str, Any], /) -> object:
        """Go on from what `state_dict` gave."""


Parts = Mapping[str, Part | None]
Numbers = TypeVar("Numbers")


def save_run(path: Path, parts: Parts, numbers: Any) -> None:
    """Write everything a run needs to go on.

    Args:
        path: the checkpoint.
        parts: by name; None where a run has no such part.
        numbers: a dataclass of plain data, what changes from step to step besides the parts; `step` is among it.

    Raises:
        TrainingError: as `save_checkpoint`.
    """
    saved = {name: None if part is None else part.state_dict() for name, part in parts.items()}
    save_checkpoint(path, {**saved, "step": numbers.step, "state": asdict(numbers)})


def restore_run(path: Path, parts: Parts, kind: type[Numbers]) -> Numbers | None:
    """Bring the parts to where `save_run` left them.

    Args:
        path: the checkpoint.
        parts: by the names under which they were saved.
        kind: the class of the numbers.

    Returns:
        The numbers; None where nothing has been saved yet.

    Raises:
        CheckpointError: as `load_checkpoint`; or it was saved by other parts than these.
    """
    if not path.exists():
        return None
    found = load_checkpoint(path)
    try:
        for name, part in parts.items():
            if part is not None:
                part.load_state_dict(found[name])
        return kind(**found["state"])
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"checkpoint {path} does not fit this run ({error}): train into another folder"
        ) from error


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write `state` beside `path`, force it to disk, and rename: whatever happens, a whole checkpoint is there.

    Raises:
        TrainingError: the disk is full or forbids writing; the checkpoint before it is untouched.
    """
    scratch = path.with_suffix(".tmp")
    try:
        with scratch.open("wb") as file:
            torch.save({"version": VERSION, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    except (OSError, RuntimeError) as error:  # torch's zip writer turns a full disk into a RuntimeError
        scratch.unlink(missing_ok=True)
        full = getattr(error, "errno", None) == errno.ENOSPC or any(sign in str(error) for sign in FULL)
        reason = "the disk is full" if full else str(error)
        kept = "the one before it is kept" if path.exists() else "there is none before it"
        raise TrainingError(
            f"cannot save checkpoint {path} at step {state.get('step', '?')}: {reason}; {kept}. "
            "Make room and run the same command again: it goes on from there"
        ) from error


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Raises:
        CheckpointError: damaged, or written by another version of the format.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(
            f"checkpoint {path} cannot be read ({type(error).__name__}): delete it to start the run anew"
        ) from error
    if not isinstance(state, dict) or state.get("version") != VERSION:
        found = state.get("version") if isinstance(state, dict) else None
        raise CheckpointError(
            f"checkpoint {path} has version {found}, this program reads version {VERSION}: "
            "go on with the version that wrote it, or train into another folder"
        )
    return state
