"""`lookalike index` on ten thousand pictures: memory, first run, second run, and kill -9 in the middle.

    python benchmarks/index_folder.py [--data DIR] [--model BUNDLE] [--pictures 10000] [--out …/index-folder.json]

Needs `lookalike[demo]` (scikit-image and scikit-learn for their photographs), about 5 GB of disk and Linux (memory is
read from /proc). The command line is run as a user runs it, in a process of its own.

=================  ===================================================================================================
camera, 1 to 2 MP  JPEGs cut from large mosaics of enlarged photographs with a sensor's grain, each different
small, real        products and photographs with a short side of 128 to 160 pixels, where `--data` has them
=================  ===================================================================================================
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
from encode import DATE, camera_like, machine, median_and_spread, members, photographs, versions
from PIL import Image

PARTS = (0.25, 0.25, 0.5)  # the folder in three parts, so that memory can be seen at a quarter, a half, and the whole
SECOND_RUNS = 5
KILLS = (0.2, 0.5, 0.8)  # of the seconds of an undisturbed run


# ── pictures ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@cache
def mosaics() -> list[np.ndarray]:
    """Large pictures to cut from: 24 megapixels each, with their grain."""
    dice, photos = np.random.default_rng(7), photographs()
    return [np.asarray(Image.open(io.BytesIO(camera_like(6000, 4000, dice, photos, 95)))) for _ in range(6)]


def cut(number: int) -> bytes:
    """Picture `number`: another place, size, side and brightness for each."""
    dice = np.random.default_rng([11, number])
    whole = mosaics()[number % len(mosaics())]
    width = int(dice.integers(1152, 1633))
    height = width * 3 // 4
    left, top = dice.integers(whole.shape[1] - width), dice.integers(whole.shape[0] - height)
    piece = whole[top : top + height, left : left + width]
    lookup = np.clip(np.arange(256) * dice.uniform(0.8, 1.2), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(lookup[piece]).save(buffer, "JPEG", quality=int(dice.integers(80, 93)))
    return buffer.getvalue()


def write_cut(task: tuple[int, Path]) -> None:
    number, path = task
    path.write_bytes(cut(number))


def places(home: Path, count: int) -> list[Path]:
    """Where the pictures go: three folders, in sub-folders of at most 500."""
    bounds = np.cumsum([0, *(int(count * part) for part in PARTS)])
    return [
        home / f"part {part}" / f"{number // 500:03}" / f"{number:05}.jpg"
        for part, (start, end) in enumerate(pairwise(bounds))
        for number in range(start, end)
    ]


def make_camera(home: Path, count: int) -> None:
    paths = places(home, count)
    for folder in {path.parent for path in paths}:
        folder.mkdir(parents=True)
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        for _ in pool.imap_unordered(write_cut, enumerate(paths), chunksize=50):
            pass


def make_small(home: Path, count: int, data: Path) -> bool:
    contents = members(data, "fashion_products.zip", 10**6) + members(data, "flickr8k.zip", 10**6)
    contents = list(dict.fromkeys(contents))[:count]  # identical files would not be encoded twice
    for path, content in zip(places(home, len(contents)), contents, strict=False):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return bool(contents)


# ── the command, watched ─────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Ran:
    """One run of the command: what it said, and what it took."""

    seconds: float
    peak_mib: float
    peak_anonymous_mib: float
    bytes_read: int
    cores_busy_elsewhere: float
    summary: dict


def status_field(process: int, file: str, name: str) -> int:
    try:
        lines = Path(f"/proc/{process}/{file}").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(name)), 0)


def busy_seconds() -> float:
    """Seconds all cores together have worked since the machine started."""
    user, nice, system, *_ = map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:])
    return (user + nice + system) / os.sysconf("SC_CLK_TCK")


def own_seconds() -> float:
    """Seconds this process and its children that have ended worked."""
    return sum(os.times()[:4])


def run(arguments: list[str], kill_after: float | None = None) -> Ran:
    """Run the command line; poll its memory and what it read; kill it, without a chance to tidy up, if asked to."""
    began, elsewhere = time.perf_counter(), busy_seconds() - own_seconds()
    command = [sys.executable, "-m", "lookalike", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    peak = anonymous = read = 0
    while process.poll() is None:
        peak = max(peak, status_field(process.pid, "status", "VmHWM"))
        anonymous = max(anonymous, status_field(process.pid, "status", "RssAnon"))
        read = max(read, status_field(process.pid, "io", "rchar"))
        if kill_after is not None and time.perf_counter() - began > kill_after:
            process.send_signal(signal.SIGKILL)
        time.sleep(0.005)
    seconds = time.perf_counter() - began
    elsewhere = max(0.0, busy_seconds() - own_seconds() - elsewhere) / seconds
    assert process.stdout is not None
    said = process.stdout.read()
    if kill_after is None and process.returncode != 0:
        sys.exit(f"lookalike {' '.join(arguments[:1])} ended with status {process.returncode}")
    summary = json.loads(said) if said and process.returncode == 0 else {}
    return Ran(seconds, peak / 1024, anonymous / 1024, read, elsewhere, summary)


def measure(folder: Path, home: Path, model: list[str], say: Callable[[str], None]) -> dict:
    """First runs on a quarter, a half and the whole; second runs; killed and resumed runs."""
    parts = [str(folder / f"part {part}") for part in range(len(PARTS))]
    memory, index = [], str(home / "index")
    for upto in range(1, len(parts) + 1):
        shutil.rmtree(index, ignore_errors=True)
        first = run(["index", *parts[:upto], "--to", index, "--json", *model])
        memory.append(
            {
                "pictures": first.summary["total"],
                "peak_rss_mib": round(first.peak_mib),
                "peak_anonymous_mib": round(first.peak_anonymous_mib),
                "seconds": round(first.seconds, 2),
                "cores_busy_elsewhere": round(first.cores_busy_elsewhere, 2),
            }
        )
        say(f"first run {memory[-1]}")
    seconds, elsewhere = [], []
    for _ in range(SECOND_RUNS):
        again = run(["index", *parts, "--to", index, "--json", *model])
        assert again.summary["unchanged"] == first.summary["total"], again.summary
        assert again.summary["encoded"] == 0
        seconds.append(again.seconds)
        elsewhere.append(round(again.cores_busy_elsewhere, 2))
    say(f"second runs {seconds}, cores busy elsewhere {elsewhere}")
    count = first.summary["total"]
    one = next(folder.rglob("*.jpg"))
    alone = run(["index", str(one), "--to", str(home / "one"), "--json", *model])
    return {
        "pictures": count,
        "mean_bytes": sum(path.stat().st_size for path in folder.rglob("*.jpg")) // count,
        "memory": memory,
        "first_run_seconds": round(first.seconds, 2),
        "pictures_per_second": round(count / first.seconds, 1),
        "second_run_seconds": {**median_and_spread(seconds), "rounds": [round(s, 3) for s in seconds]},
        "cores_busy_elsewhere": {"first": round(first.cores_busy_elsewhere, 2), "second": elsewhere},
        "first_to_second": round(first.seconds / statistics.median(seconds), 1),
        "kill -9": killed(parts, home, model, first, alone.bytes_read - one.stat().st_size, say),
    }


def killed(
    parts: list[str], home: Path, model: list[str], whole: Ran, code_bytes: int, say: Callable[[str], None]
) -> dict:
    """Kill a run three times, start it again each time: what was kept, and what share of the pictures was read twice.

    A run reads `code_bytes` before it comes to the pictures: its libraries and the bundle.
    """
    index = str(home / "killed")
    kept, read = [], 0
    for share in KILLS:
        begin = kept[-1] if kept else 0
        left = whole.seconds * (share - begin / whole.summary["total"])
        read += (
            run(["index", *parts, "--to", index, "--json", *model], kill_after=max(left, 1.0)).bytes_read - code_bytes
        )
        kept.append(run(["info", index, "--json"]).summary["pictures"])
    last = run(["index", *parts, "--to", index, "--json", *model])
    read += last.bytes_read - code_bytes
    result = {
        "kept_after_each_kill": kept,
        "encoded_by_the_last_run": last.summary["encoded"],
        "total": last.summary["total"],
        "share_of_pictures_read_twice": round(read / (whole.bytes_read - code_bytes) - 1, 4),
    }
    assert last.summary["total"] == whole.summary["total"] == kept[-1] + last.summary["encoded"], result
    say(f"killed {result}")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with fashion_products.zip and flickr8k.zip")
    parser.add_argument("--model", help="a bundle; by default the one that ships")
    parser.add_argument("--pictures", type=int, default=10_000)
    parser.add_argument("--scratch", type=Path, help="where pictures and indexes go; by default a temporary folder")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "index-folder.json")
    asked = parser.parse_args()
    model = ["--model", asked.model] if asked.model else []
    bundle = run(["info", asked.model or "default", "--json"]).summary
    report: dict = {
        "what": __doc__.splitlines()[0],
        "command": "python benchmarks/index_folder.py"
        + " --data DIR" * bool(asked.data)
        + f" --pictures {asked.pictures}" * (asked.pictures != 10_000),
        "date": DATE,
        "machine": machine(),
        "versions": versions("lookalike", "openvino", "pillow", "numpy", "qdrant-edge-py"),
        "encoder": {name: bundle[name] for name in ("name", "fingerprint", "dim")},
        "note": "peak_rss counts pages of mapped files (libraries, the index) too, peak_anonymous does not",
        "settings": {},
    }
    with tempfile.TemporaryDirectory(dir=asked.scratch) as home:
        for name in ("camera, 1 to 2 MP", "small, real"):
            folder = Path(home) / name / "pictures"
            folder.mkdir(parents=True)
            if name.startswith("camera"):
                make_camera(folder, asked.pictures)
            elif asked.data is None or not make_small(folder, asked.pictures, asked.data):
                continue
            report["settings"][name] = measure(
                folder, folder.parent, model, lambda text, name=name: print(f"{name}: {text}", flush=True)
            )
            shutil.rmtree(folder.parent)
    asked.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
