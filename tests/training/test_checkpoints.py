"""Checkpoints are whole or not there, and what cannot be read is refused with the way out."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from lookalike.errors import CheckpointError, TrainingError
from lookalike.training import checkpoints
from lookalike.training.checkpoints import load_checkpoint, restore_run, save_checkpoint, save_run


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    """Tensors keep bits and types, nested containers their shape; no scratch file is left."""
    state = {"step": 7, "weights": {"a": torch.randn(3, 2), "n": torch.tensor(4)}, "said": ["one", "two"]}

    save_checkpoint(tmp_path / "last.pt", state)
    found = load_checkpoint(tmp_path / "last.pt")

    assert found["step"] == 7 and found["said"] == ["one", "two"]
    assert torch.equal(found["weights"]["a"], state["weights"]["a"])
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No space left while writing: an error that says what to do, and the old file is still good."""
    save_checkpoint(tmp_path / "last.pt", {"step": 1})

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoints.os, "fsync", full)
    with pytest.raises(TrainingError, match=r"disk is full.*one before it is kept.*Make room"):
        save_checkpoint(tmp_path / "last.pt", {"step": 2})

    assert load_checkpoint(tmp_path / "last.pt")["step"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a disk that is always full")
def test_a_really_full_device_is_recognised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing through torch's own writer to a full device ends in the same error."""
    monkeypatch.setattr(Path, "with_suffix", lambda self, suffix: Path("/dev/full"))
    monkeypatch.setattr(Path, "unlink", lambda self, missing_ok=False: None)

    with pytest.raises(TrainingError, match="disk is full"):
        save_checkpoint(tmp_path / "last.pt", {"step": 2, "weights": torch.zeros(100_000)})


def test_other_failures_are_not_called_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A word of the message, or of the file's name, is no reason."""

    def forbidden(descriptor: int) -> None:
        raise OSError(errno.EACCES, "may not overwrite")

    monkeypatch.setattr(checkpoints.os, "fsync", forbidden)
    with pytest.raises(TrainingError, match="may not overwrite; there is none before it"):
        save_checkpoint(tmp_path / "last.pt", {"step": 2})


def test_damage_and_foreign_versions_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cut-off file and one of another version are CheckpointErrors that name the file."""
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"step": 1, "weights": torch.zeros(1000)})
    whole = path.read_bytes()

    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"last\.pt cannot be read"):
        load_checkpoint(path)

    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_checkpoint(path)

    monkeypatch.setattr(checkpoints, "VERSION", 2)
    path.write_bytes(whole)
    with pytest.raises(CheckpointError, match="version 1, this program reads version 2"):
        load_checkpoint(path)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    """A checkpoint with code in it is refused and the code does not run."""
    import pickle

    class Evil:
        def __reduce__(self) -> tuple:
            return (os.mkdir, (str(tmp_path / "owned"),))

    (tmp_path / "last.pt").write_bytes(pickle.dumps(Evil(), protocol=2))
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path / "last.pt")

    torch.save({"version": 1, "evil": Evil()}, tmp_path / "last.pt")
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path / "last.pt")

    assert not (tmp_path / "owned").exists()


@dataclass
class Numbers:
    step: int = 0
    losses: list[float] = field(default_factory=list)


@dataclass
class Fewer:
    step: int = 0


def test_a_run_comes_back_whole_or_is_refused(tmp_path: Path) -> None:
    """Each part by its name, and the numbers; none where nothing was saved; another run's are refused."""
    last = tmp_path / "last.pt"
    ours, theirs = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    assert restore_run(last, {"network": theirs, "average": None}, Numbers) is None

    save_run(last, {"network": ours, "average": None}, Numbers(7, [0.5]))

    assert restore_run(last, {"network": theirs, "average": None}, Numbers) == Numbers(7, [0.5])
    assert torch.equal(ours.weight, theirs.weight) and torch.equal(ours.bias, theirs.bias)
    assert load_checkpoint(last)["step"] == 7
    for parts in ({"network": torch.nn.Linear(4, 2)}, {"average": theirs}, {"other": theirs}):
        with pytest.raises(CheckpointError, match=r"(?s)last\.pt does not fit this run .*another folder"):
            restore_run(last, parts, Numbers)
    with pytest.raises(CheckpointError, match="does not fit this run"):
        restore_run(last, {"network": theirs}, Fewer)
