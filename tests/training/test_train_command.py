"""`lookalike train` and `lookalike export` as a person meets them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lookalike.cli import main
from lookalike.cli.teach import NO_BETTER
from lookalike.training.auto import choose
from lookalike.training.checkpoints import load_checkpoint
from lookalike.training.config import read_config

QUICK = ["loop.steps=6", "loop.validate_every=3", "loop.precision=fp32", "loop.tensorboard=false", "loop.threads=1"]
SMALL = [*QUICK, "data.size=[24, 24]", "network.name=small", "network.options={widths = [8, 12, 16]}", "network.dim=16"]


def options(values: list[str]) -> list[str]:
    return [part for value in values for part in ("--set", value)]


def configuration(folder: Path, pictures: Path) -> str:
    """A file for the small network."""
    config = folder / "mine.toml"
    config.write_text(f'name = "mine"\n[data]\nroot = "{pictures}"\n[sampler]\nclasses = 4\n')
    return str(config)


def run(*arguments: str) -> int:
    """Exit status of a command."""
    try:
        main(list(arguments))
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def test_pictures_in_bundle_and_verdict_out(classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder of class folders is all it needs: a bundle, a run folder with the configuration, an honest last word."""
    bundle = tmp_path / "shapes.bundle"

    status = run("train", str(classes), "--to", str(bundle), *options(QUICK))

    out, err = capsys.readouterr()
    assert status in (0, NO_BETTER)
    assert out.startswith("better than the base" if status == 0 else "no better than the base")
    assert "lookalike-default" in out or "default, at step 0" in out
    assert (bundle / "manifest.json").is_file()
    assert read_config(tmp_path / "shapes.bundle.run" / "config.toml").network.weights == "default"
    assert "step 6" in err
    assert run("search-nothing") == 2


def test_json_and_a_configuration_file(classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--json prints one document with the verdict; the run can be exported again by itself."""
    config = configuration(tmp_path, classes)

    status = run("train", config, "--to", str(tmp_path / "a"), "--run", str(tmp_path / "r"), "--json", *options(SMALL))
    document = json.loads(capsys.readouterr().out)
    assert run("export", str(tmp_path / "r"), "--to", str(tmp_path / "b"), "--json") == 0
    again = json.loads(capsys.readouterr().out)

    assert document["verdict"]["better"] == (status == 0)
    assert document["steps"] == 6
    assert again["name"] == "mine" and again["check"]["lowest_cosine"] >= 0.9999


def test_errors_are_one_line_each_and_all_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Bad configurations, missing pictures, a taken folder: status 1 and what to do."""
    config = tmp_path / "bad.toml"
    config.write_text('[data]\nroot = "x"\nlabel = "y"\n[loss]\nkind = "triplet"\nmargn = 1\n')

    assert run("train", str(config), "--to", str(tmp_path / "b")) == 1
    err = capsys.readouterr().err
    assert "did you mean 'labels'" in err
    assert "unknown key loss.margn: did you mean 'margin'?" in err
    assert "add [miner]" in err
    assert "Traceback" not in err

    assert run("train", str(tmp_path / "missing"), "--to", str(tmp_path / "b")) == 1
    assert "no such folder" in capsys.readouterr().err

    (tmp_path / "one" / "class").mkdir(parents=True)
    assert run("train", str(tmp_path / "one"), "--to", str(tmp_path / "b")) == 1
    assert "holds no labelled picture" in capsys.readouterr().err


@pytest.mark.slow
def test_changed_pictures_are_noticed(
    tmp_path: Path, draw_classes: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Going on with other pictures than it began with would be another run."""
    pictures = draw_classes(tmp_path / "pictures")
    command = ["train", configuration(tmp_path, pictures), "--to", str(tmp_path / "b"), *options(SMALL)]
    run(*command)
    (tmp_path / "b.run" / "report.json").unlink()
    shutil.copy(pictures / "class00" / "0.png", pictures / "class00" / "new.png")
    capsys.readouterr()

    assert run(*command) == 1
    assert "have changed since the run" in capsys.readouterr().err


def test_what_is_chosen_fits_the_pictures(tmp_path: Path, classes: Path, draw_classes: Callable[..., Path]) -> None:
    """Few classes are split by picture, many by class; drawings in alphabets get a small network of their own."""
    few = choose(draw_classes(tmp_path / "few", classes=4))
    many = choose(classes)

    assert few.data.split == "picture" and few.sampler.classes <= 4
    assert many.data.split == "class" and many.network.weights == "default"

    pair = sorted((classes / "class00").iterdir())[:2]
    (tmp_path / "pairs.csv").write_text(f"left,right,same\n{pair[0]},{pair[1]},1\n" + other_pairs(classes))
    paired = choose(classes, str(tmp_path / "pairs.csv"))
    assert paired.loss.kind == "pair_contrastive" and paired.sampler.kind == "pairs"


def test_drawings_get_a_network_of_their_own(tmp_path: Path) -> None:
    """Small grey pictures of hundreds of classes; those on white paper are cut to the ink, others stay as they are."""
    from PIL import Image

    for number, name in enumerate(f"alphabet{a}/character{c:02}" for a in range(14) for c in range(15)):
        for place, ground in (("paper", 255), ("slate", 0)):
            folder = tmp_path / place / name
            folder.mkdir(parents=True)
            for picture in range(2):
                sheet = Image.new("L", (40, 40), ground)
                sheet.paste((number + picture) % 256, (10, 10, 30, 30))
                sheet.save(folder / f"{picture}.png")
    paper, slate = choose(tmp_path / "paper"), choose(tmp_path / "slate")

    for drawings in (paper, slate):
        assert drawings.network.name == "small" and drawings.data.channels == 1
        assert drawings.data.split == "category" and drawings.sampler.kind == "category"
    assert paper.data.fit == "trim" and slate.data.fit is None


def other_pairs(classes: Path) -> str:
    """A line for each further class, both alike and different."""
    lines = []
    for number in range(1, 12):
        own = sorted((classes / f"class{number:02}").iterdir())
        lines += [f"{own[0]},{own[1]},1", f"{own[0]},{next((classes / 'class00').iterdir())},0"]
    return "\n".join(lines) + "\n"


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
def test_kill_9_loses_nothing(classes: Path, tmp_path: Path) -> None:
    """A process killed while it trains; the same command ends with the bits of a run that was never killed."""
    extra = [
        *SMALL[1:],
        "loop.steps=400",
        "loop.checkpoint_seconds=0.0",
        "loop.validate_every=1000",
    ]

    def command(name: str) -> list[str]:
        source = configuration(tmp_path, classes)
        return [sys.executable, "-m", "lookalike", "train", source, "--to", str(tmp_path / name), *options(extra)]

    subprocess.run(command("whole"), env=environment(), capture_output=True, timeout=300)
    process = subprocess.Popen(
        command("killed"), env=environment(), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    last = tmp_path / "killed.run" / "last.pt"
    deadline = time.monotonic() + 120
    while not (last.exists() and load_checkpoint(last)["step"] >= 20) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 0 < load_checkpoint(last)["step"] < 400
    done = subprocess.run(command("killed"), env=environment(), capture_output=True, text=True, timeout=300)

    assert done.returncode in (0, NO_BETTER), done.stderr
    whole, killed = (load_checkpoint(tmp_path / f"{name}.run" / "last.pt")["network"] for name in ("whole", "killed"))
    for name, value in whole.items():
        assert torch.equal(value, killed[name]), name


@pytest.mark.slow
def test_two_processes_train_as_one(classes: Path, tmp_path: Path) -> None:
    """torchrun with two processes: the weights after some steps are those of one process, up to rounding."""
    extra = [*SMALL, "optimizer.rate=1e-3", "optimizer.kind=sgd", "augment.rotate=10.0"]
    results = {}
    for count in (1, 2):
        start = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}", "-m", "lookalike"]
        command = [sys.executable, *(start if count > 1 else ["-m", "lookalike"])]
        command += ["train", configuration(tmp_path, classes), "--to", str(tmp_path / f"b{count}"), *options(extra)]
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
        assert (tmp_path / f"b{count}" / "manifest.json").is_file(), done.stderr[-2000:]
        results[count] = load_checkpoint(tmp_path / f"b{count}.run" / "last.pt")

    assert results[1]["step"] == results[2]["step"] == 6
    for name, value in results[1]["network"].items():
        torch.testing.assert_close(
            results[2]["network"][name], value, atol=1e-4, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}"
        )
