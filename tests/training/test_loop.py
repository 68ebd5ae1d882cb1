"""The loop trains, stops, goes on as if never stopped, and says honestly what came of it."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lookalike.errors import CheckpointError, ConfigError, TrainingError
from lookalike.training import loop
from lookalike.training.checkpoints import load_checkpoint
from lookalike.training.config import TrainConfig
from lookalike.training.folder import RunFolder
from lookalike.training.loop import Run, train
from lookalike.training.machine import Stopper

Configure = Callable[..., TrainConfig]


def quiet(line: str) -> None:
    """Nobody listens."""


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested containers of a checkpoint as one level, but for the clock."""
    if isinstance(value, dict):
        return {k: v for name, part in value.items() for k, v in flat(part, f"{prefix}{name}/").items()}
    if isinstance(value, list | tuple):
        return {k: v for i, part in enumerate(value) for k, v in flat(part, f"{prefix}{i}/").items()}
    return {} if prefix.endswith("spent/") else {prefix: value}


def assert_same_state(one: Path, other: Path) -> None:
    """Both folders end with the same bits, and with the same numbers on the way."""
    left, right = (flat(load_checkpoint(folder / "last.pt")) for folder in (one, other))
    assert left.keys() == right.keys()
    for name, value in left.items():
        same = torch.equal(value, right[name]) if isinstance(value, torch.Tensor) else value == right[name]
        assert same, name
    assert history(one) == history(other)


def history(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("minutes", "pictures_per_second")} for line in lines]


def dies_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on, a run that has done so many steps dies in the middle of the next one."""
    step = Run.step

    def mortal(self: Run, *arguments: Any) -> None:
        step(self, *arguments)
        if self.state.step == steps:
            raise MemoryError("killed")

    monkeypatch.setattr(Run, "step", mortal)


RECIPES: dict[str, dict[str, Any]] = {
    "supervised contrastive, average of weights": {"optimizer": {"ema": 0.9}},
    "triplets and memory": {
        "loss": {"kind": "triplet"},
        "miner": {"schedule": [[0.0, "random"], [0.5, "semi_hard"]]},
        "memory": {"size": 32, "start": 0.2},
        "augment": {"rotate": 10.0, "flip": 0.5, "elastic": 0.02},
    },
    "muon and class centres": {"optimizer": {"kind": "muon", "momentum": 0.95}, "loss": {"kind": "proxy_anchor"}},
    "class centres and dropout": {
        "network": {"name": "alexnet", "options": {}},
        "data": {"size": [64, 64]},
        "loss": {"kind": "arcface"},
        "optimizer": {"kind": "sgd", "rate": 0.01, "accumulate": 2},
    },
}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())
def test_a_killed_run_goes_on_bit_for_bit(
    recipe: dict[str, Any], configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the middle of a step and started again: weights, optimiser, averages, memory and history are equal."""
    config = configure(**recipe)
    train(config, tmp_path / "whole", say=quiet)

    with monkeypatch.context() as patched:
        dies_after(5, patched)
        with pytest.raises(MemoryError):
            train(config, tmp_path / "killed", say=quiet)
    assert load_checkpoint(tmp_path / "killed" / "last.pt")["step"] == 5
    train(config, tmp_path / "killed", say=quiet)

    assert_same_state(tmp_path / "whole", tmp_path / "killed")
    reports = [json.loads((tmp_path / name / "report.json").read_text())["verdict"] for name in ("whole", "killed")]
    assert reports[0] == reports[1]


def test_ctrl_c_saves_and_says_how_to_go_on(configure: Configure, tmp_path: Path) -> None:
    """The first Ctrl-C ends the step, writes the checkpoint and stops; the same call goes on to the same end."""
    config = configure()
    train(config, tmp_path / "whole", say=quiet)
    said: list[str] = []

    def interrupt(report: loop.Report) -> None:
        if report.step == 4:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "stopped", say=said.append, watch=interrupt)
    assert said[-1] == "stopped at step 4: the same command goes on from there"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    train(config, tmp_path / "stopped", say=quiet)

    assert_same_state(tmp_path / "whole", tmp_path / "stopped")


@pytest.mark.skipif(sys.platform != "linux", reason="signals have no stack of their own elsewhere")
def test_ctrl_c_needs_no_small_stack_of_its_own() -> None:
    """Where faulthandler has set one for signals, a run that waits for Ctrl-C does without: AMX's tiles overflow it."""

    class Stack(ctypes.Structure):
        _fields_ = (("base", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))

    # A stack that is large enough for whatever comes meanwhile.
    memory, now = ctypes.create_string_buffer(1 << 20), Stack()
    given = Stack(ctypes.addressof(memory), 0, len(memory))
    library = ctypes.CDLL(None)
    assert library.sigaltstack(ctypes.byref(given), None) == 0
    with Stopper():
        library.sigaltstack(None, ctypes.byref(now))
    assert now.flags == 2  # SS_DISABLE


def test_a_complete_run_is_not_repeated(configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its outcome is read back, verdict included."""
    first = train(configure(), tmp_path, say=quiet)
    monkeypatch.setattr(Run, "step", None)

    again = train(configure(), tmp_path, say=quiet)

    assert again.steps == first.steps == 8
    assert str(again.verdict) == str(first.verdict)
    assert again.verdict == first.verdict


def test_a_folder_of_another_run_is_refused_with_the_differences(configure: Configure, tmp_path: Path) -> None:
    """What was and what is; a folder that is no run at all is not touched."""
    train(configure(), tmp_path / "run", say=quiet)
    with pytest.raises(CheckpointError, match=r"optimizer\.rate was 0\.003, is 0\.1"):
        train(configure(optimizer={"rate": 0.1}), tmp_path / "run", say=quiet)

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(CheckpointError, match="neither empty nor a run folder"):
        train(configure(), tmp_path / "mine", say=quiet)


def test_training_helps_where_there_is_something_to_learn(configure: Configure, tmp_path: Path) -> None:
    """Held-out classes are found better than by the network's random features, and the report says so."""
    config = configure(loop={"steps": 60, "validate_every": 30}, network={"weights": str(untrained(tmp_path))})

    outcome = train(config, tmp_path / "run", say=quiet)

    verdict = outcome.verdict
    assert verdict is not None and verdict.part == "test"
    assert verdict.ours["map_at_r"].mean > verdict.theirs["map_at_r"].mean
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["verdict"]["better"] == verdict.better
    assert report["verdict"]["text"] in (tmp_path / "run" / "README.md").read_text()


def untrained(folder: Path) -> Path:
    """Random weights of the small network, as a file."""
    from safetensors.torch import save_file

    from lookalike.training.networks import build

    state = build("small", widths=(8, 12, 16), seed=5).state_dict()
    save_file({name: value.contiguous() for name, value in state.items()}, folder / "random.safetensors")
    return folder / "random.safetensors"


def spoil(monkeypatch: pytest.MonkeyPatch, call: int, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """From here on, what the loss gives at its call-th call is changed."""
    from lookalike.training.losses import SupervisedContrastive

    forward, calls = SupervisedContrastive._of_batch, []

    def broken(self: Any, *arguments: Any) -> torch.Tensor:
        calls.append(1)
        value = forward(self, *arguments)
        return change(value) if len(calls) == call else value

    monkeypatch.setattr(SupervisedContrastive, "_of_batch", broken)


class InfiniteGradient(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, value: torch.Tensor) -> torch.Tensor:
        return value.clone()

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * float("inf")


@pytest.mark.parametrize(
    ("change", "name"), [(lambda loss: loss * float("nan"), "loss is nan"), (InfiniteGradient.apply, "gradient is ")]
)
def test_numbers_that_are_none_stop_a_run_and_keep_the_checkpoint(
    change: Callable[[torch.Tensor], torch.Tensor],
    name: str,
    configure: Configure,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The error names the step and the advice; the weights on disk are from before, and the run goes on from them."""
    train(configure(), tmp_path / "whole", say=quiet)
    with monkeypatch.context() as patched:
        spoil(patched, 6, change)
        with pytest.raises(TrainingError, match=rf"{name}.*at step 5.*another folder.*lower optimizer\.rate.*is kept"):
            train(configure(), tmp_path / "run", say=quiet)

    kept = load_checkpoint(tmp_path / "run" / "last.pt")
    assert kept["step"] == 5
    assert all(torch.isfinite(v).all() for v in kept["network"].values() if v.is_floating_point())
    train(configure(), tmp_path / "run", say=quiet)
    assert_same_state(tmp_path / "whole", tmp_path / "run")


def test_a_first_step_that_fails_promises_no_checkpoint(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is none yet."""
    spoil(monkeypatch, 1, lambda loss: loss * float("nan"))
    with pytest.raises(TrainingError, match="nan at step 0") as caught:
        train(configure(), tmp_path, say=quiet)
    assert "checkpoint" not in str(caught.value)


def test_a_run_with_nothing_to_learn_from_is_refused(configure: Configure, tmp_path: Path) -> None:
    """Semi-hard negatives within a margin of nothing: there is no triplet in any batch, and no gradient."""
    idle = configure(loss={"kind": "triplet"}, miner={"kind": "semi_hard", "margin": 1e-12, "otherwise": "skip"})
    with pytest.raises(TrainingError, match=r"none of the first 2 batches.*larger loss\.margin"):
        train(idle, tmp_path, say=quiet)


def test_a_collapse_is_said_in_log_and_report(configure: Configure, tmp_path: Path) -> None:
    """A rate far too high for hard negatives: the watch speaks while it runs, and the run folder remembers."""
    said: list[str] = []
    config = configure(
        loss={"kind": "triplet", "margin": 0.2},
        miner={"kind": "hard"},
        optimizer={"rate": 3.0, "clip": 0.0, "warmup": 0.0, "kind": "sgd"},
        loop={"steps": 30, "validate_every": 30},
    )

    train(config, tmp_path, say=said.append)

    warnings = [line for line in said if line.startswith("warning")]
    assert any("collapsed" in line or "direction" in line or "margin" in line for line in warnings), said
    assert json.loads((tmp_path / "report.json").read_text())["warnings"]
    assert "warning" in (tmp_path / "run.log").read_text()


def test_early_stopping_keeps_the_best(configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Validations that only get worse: it stops after so many, and judges the first weights."""
    scores = iter(np.linspace(0.9, 0.1, 20))
    monkeypatch.setattr(loop, "means", lambda answers: dict.fromkeys(answers, float(next(scores))))

    outcome = train(configure(loop={"steps": 100, "validate_every": 2, "patience": 3}), tmp_path, say=quiet)

    assert outcome.steps == 8
    assert load_checkpoint(tmp_path / "best.pt")["step"] == 2


def test_a_run_that_stopped_early_and_was_killed_goes_on_to_its_verdict(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not to further steps, and not to a second validation of the last one."""
    config = configure(loop={"steps": 100, "validate_every": 2, "patience": 3})
    scores = iter(np.linspace(0.9, 0.1, 20))
    monkeypatch.setattr(loop, "means", lambda answers: dict.fromkeys(answers, float(next(scores))))
    with monkeypatch.context() as patched:
        patched.setattr(Run, "finish", lambda run: (_ for _ in ()).throw(MemoryError("killed")))
        with pytest.raises(MemoryError):
            train(config, tmp_path, say=quiet)

    outcome = train(config, tmp_path, say=quiet)

    assert outcome.steps == 8
    assert [line["step"] for line in history(tmp_path) if "loss" not in line] == [2, 4, 6, 8]
    assert json.loads((tmp_path / "report.json").read_text())["kept_step"] == 2


def test_a_run_killed_before_its_verdict_does_not_validate_again(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its last steps end between two validations, and the last one is asked once."""
    config = configure(loop={"steps": 5, "validate_every": 4})
    with monkeypatch.context() as patched:
        patched.setattr(Run, "finish", lambda run: (_ for _ in ()).throw(MemoryError("killed")))
        with pytest.raises(MemoryError):
            train(config, tmp_path, say=quiet)

    train(config, tmp_path, say=quiet)

    assert [line["step"] for line in history(tmp_path) if "loss" not in line] == [4, 5]


def test_without_validation_the_last_step_is_the_one_that_is_kept(configure: Configure, tmp_path: Path) -> None:
    """The report says so."""
    train(configure(data={"validation": 0.0}), tmp_path, say=quiet)

    assert json.loads((tmp_path / "report.json").read_text())["kept_step"] == 8
    assert "kept: step 8" in (tmp_path / "README.md").read_text()


def test_a_run_of_another_version_is_named_as_one(configure: Configure, tmp_path: Path) -> None:
    """A configuration with a key that this version lacks, and a report that it cannot read."""
    train(configure(), tmp_path, say=quiet)
    held = tmp_path / "report.json"
    report = json.loads(held.read_text())
    for broken in ("{", json.dumps({**report, "verdict": {"of": "tomorrow"}}), json.dumps({"steps": 8})):
        held.write_text(broken)
        with pytest.raises(CheckpointError, match=r"report\.json cannot be read .*delete it to have"):
            train(configure(), tmp_path, say=quiet)
    held.unlink()
    assert train(configure(), tmp_path, say=quiet).steps == 8
    assert json.loads(held.read_text())["verdict"] == report["verdict"]

    config = tmp_path / "config.toml"
    config.write_text(config.read_text().replace("[loop]", "[loop]\ntomorrow = 1"))
    with pytest.raises(CheckpointError, match=r"this version cannot read.*loop\.tomorrow"):
        train(configure(), tmp_path, say=quiet)


def test_pictures_that_change_before_the_first_checkpoint_are_asked_anew(
    classes: Path, configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the base answered about others is not compared with; a damaged file of answers is made anew."""
    pictures = tmp_path / "pictures"
    shutil.copytree(classes, pictures)
    config = configure(data={"root": str(pictures)}, loop={"steps": 2})
    with monkeypatch.context() as patched:
        dies_after(0, patched)
        with pytest.raises(MemoryError):
            train(config, tmp_path / "run", say=quiet)
    before = dict(np.load(tmp_path / "run" / "base.npz"))
    for folder in sorted(pictures.iterdir()):
        (sorted(folder.iterdir())[0]).unlink()

    train(config, tmp_path / "run", say=quiet)

    after = dict(np.load(tmp_path / "run" / "base.npz"))
    assert len(before["r_at_1"]) == 18 and len(after["r_at_1"]) == 15

    (tmp_path / "run" / "base.npz").write_bytes(b"PK\x03\x04 and no more")
    (tmp_path / "run" / "report.json").unlink()
    said: list[str] = []
    train(config, tmp_path / "run", say=said.append)
    assert any("base.npz is damaged, and is made anew" in line for line in said)
    assert np.array_equal(np.load(tmp_path / "run" / "base.npz")["r_at_1"], after["r_at_1"])


def test_arrays_of_a_run_folder_are_those_that_were_written(tmp_path: Path) -> None:
    """No fewer and no more, text among them."""
    written = {"name": np.array("base"), "r_at_1": np.array([1.0, 0.0])}
    place = RunFolder(tmp_path, quiet)
    place.write_arrays("base.npz", written)

    found = place.arrays("base.npz")

    assert found is not None and found.keys() == written.keys()
    assert all(np.array_equal(found[name], values) for name, values in written.items())
    assert place.arrays("none.npz") is None


def test_what_was_left_by_a_kill_while_the_folder_was_made_is_no_hindrance(
    configure: Configure, tmp_path: Path
) -> None:
    """A configuration that was not written to its end."""
    (tmp_path / "config.toml.tmp").write_text("[da")

    assert train(configure(loop={"steps": 1}), tmp_path, say=quiet).steps == 1


@pytest.mark.parametrize(
    "tables",
    [
        {"loss": {"kind": "arcface"}},
        {"loss": {"kind": "triplet"}, "miner": {"kind": "random"}, "memory": {"size": 32}},
        {
            "loss": {"kind": "learned_metric"},
            "sampler": {"kind": "pairs", "pairs": 8},
            "network": {"head": "none", "normalise": False},
        },
    ],
    ids=["class centres", "memory", "learned metric"],
)
def test_without_a_head_the_loss_takes_what_the_network_gives(
    tables: dict[str, Any], configure: Configure, tmp_path: Path
) -> None:
    """network.dim says nothing then."""
    tables = {**tables, "network": {"head": "none", "dim": 5, **tables.get("network", {})}}
    assert train(configure(**tables, loop={"steps": 2}), tmp_path, say=quiet).steps == 2


def test_tensorboard_bfloat16_averages_and_small_pictures_in_one_run(configure: Configure, tmp_path: Path) -> None:
    """What the other tests leave off: the numbers of metrics.jsonl stand in TensorBoard's file, too."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = configure(
        loop={"tensorboard": True, "precision": "bf16", "small_scale": 0.7, "small_until": 0.5},
        optimizer={"ema": 0.9, "accumulate": 2, "clip": 0.1},
    )
    train(config, tmp_path, say=quiet)

    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in board.Scalars("loss")] == [2, 4, 6, 8]
    wanted = [line["loss"] for line in history(tmp_path) if "loss" in line]
    assert [event.value for event in board.Scalars("loss")] == pytest.approx(wanted)
    assert [event.step for event in board.Scalars("validation/r_at_1")] == [4, 8]


def test_minutes_end_a_run(configure: Configure, tmp_path: Path) -> None:
    """A run whose steps would take hours ends with its minutes, with a verdict."""
    outcome = train(configure(loop={"steps": 10**6, "minutes": 0.03, "validate_every": 10**6}), tmp_path, say=quiet)

    assert outcome.steps < 10**5
    assert outcome.verdict is not None


LOSSES: dict[str, dict[str, Any]] = {
    "contrastive pairs": {"loss": {"kind": "pair_contrastive"}, "sampler": {"kind": "pairs", "pairs": 8}},
    "learned metric": {
        "loss": {"kind": "learned_metric"},
        "sampler": {"kind": "pairs", "pairs": 8},
        "network": {"normalise": False},
    },
    "exact all triplets": {"loss": {"kind": "all_triplets"}},
    "hard triplets, soft margin, raw vectors": {
        "loss": {"kind": "triplet", "soft": True, "margin": 0.0, "distance": "euclidean"},
        "miner": {"kind": "hard"},
        "network": {"normalise": False},
    },
    "distance-weighted": {"loss": {"kind": "triplet"}, "miner": {"kind": "distance_weighted"}},
    "nt-xent": {"loss": {"kind": "nt_xent"}},
    "n-pairs": {"loss": {"kind": "n_pairs"}},
    "cross-entropy": {"loss": {"kind": "cross_entropy"}},
    "hinge": {"loss": {"kind": "multi_hinge"}},
    "proxy-anchor": {"loss": {"kind": "proxy_anchor"}},
    "by picture, everything in one": {"data": {"split": "picture"}, "network": {"skip": True, "dim": 8}},
    "grey, views, frozen stages": {
        "data": {"channels": 1},
        "views": {"count": 3},
        "network": {"freeze": 1, "freeze_batch_norm": True, "layer_decay": 0.5, "head_rate": 2.0},
    },
}


@pytest.mark.parametrize("tables", LOSSES.values(), ids=LOSSES.keys())
def test_every_way_of_learning_runs_to_its_verdict(
    tables: dict[str, Any], configure: Configure, tmp_path: Path
) -> None:
    """Four steps, finite losses, a verdict."""
    outcome = train(configure(**tables, loop={"steps": 4}), tmp_path, say=quiet)

    assert outcome.verdict is not None
    losses = [line["loss"] for line in history(tmp_path) if "loss" in line]
    assert len(losses) == 2 and np.isfinite(losses).all()


def test_triplets_and_pairs_from_files(classes: Path, configure: Configure, tmp_path: Path) -> None:
    """A list of pairs or of triplets takes the place of class folders."""
    paths = sorted(classes.rglob("*.png"))
    by_class = [paths[i : i + 6] for i in range(0, len(paths), 6)]
    triplets = ["anchor,positive,negative"]
    pairs = ["left,right,same"]
    for number, own in enumerate(by_class):
        other = by_class[(number + 1) % len(by_class)]
        for i in range(5):
            triplets.append(f"{own[i]},{own[i + 1]},{other[i]}")
            pairs += [f"{own[i]},{own[i + 1]},1", f"{own[i]},{other[i]},0"]
    (tmp_path / "triplets.csv").write_text("\n".join(triplets))
    (tmp_path / "pairs.csv").write_text("\n".join(pairs))
    ways = {
        "triplets": {"loss": {"kind": "triplet"}, "sampler": {"kind": "triplets", "pairs": 8}},
        "pairs": {"loss": {"kind": "pair_contrastive"}, "sampler": {"kind": "pairs", "pairs": 8}},
    }

    for name, tables in ways.items():
        config = configure(**tables, data={"labels": str(tmp_path / f"{name}.csv")}, loop={"steps": 2})
        assert train(config, tmp_path / name, say=quiet).steps == 2


def test_what_the_pictures_do_not_allow_is_said_before_anything_runs(configure: Configure, tmp_path: Path) -> None:
    """More classes in a batch than there are: the error gives both numbers and the remedy."""
    with pytest.raises(ConfigError, match=r"lower sampler\.classes"):
        train(configure(sampler={"classes": 30}), tmp_path, say=quiet)


def test_data_json_says_what_became_of_the_pictures(configure: Configure, tmp_path: Path) -> None:
    """Parts without a class in common, and a fingerprint that follows the pictures."""
    train(configure(loop={"steps": 1}), tmp_path, say=quiet)

    data = json.loads((tmp_path / "data.json").read_text())
    folders = {side: {Path(path).parent for path in paths} for side, paths in data["paths"].items()}
    assert sum(data["pictures"].values()) == 72
    assert not folders["train"] & folders["test"] and not folders["train"] & folders["validation"]
    assert len(data["fingerprint"]) == 64


def test_large_parts_are_asked_in_whole_classes(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More held-out pictures than can be asked: fewer classes, each with all of its pictures, and it is said."""
    from lookalike.training import prepare

    monkeypatch.setattr(prepare, "JUDGED", 13)
    said: list[str] = []

    outcome = train(configure(loop={"steps": 1}), tmp_path, say=said.append)

    assert outcome.verdict is not None and outcome.verdict.ours["map_at_r"].count == 12
    assert any("the verdict asks 13 of 18 held-out pictures" in line for line in said)
