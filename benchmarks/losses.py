"""Triplet loss over a batch, side by side with pytorch-metric-learning: time, memory and value, by batch size.

    python benchmarks/losses.py [--batch 128 256 …] [--rounds 7] [--json benchmarks/results/losses.json]

Needs `lookalike[train]` and pytorch-metric-learning. Two comparisons, each mining + loss + gradient in the embeddings
(128 numbers of unit length, four pictures a class, margin 0.2, Euclidean distance):

============  ========================================================================================================
all triplets  `AllTriplets` and `TripletMarginLoss` without a miner: the mean over all triplets that cost anything
semi-hard     `SemiHard` + `Triplet`, and `TripletMarginMiner(type_of_triplets="semihard")` + `TripletMarginLoss`. Ours
              takes the hardest semi-hard negative of each positive pair, theirs all of them, so the values differ by
              design; `value_difference` compares ours with their loss over the hardest of their triplets
============  ========================================================================================================

First, each contender runs once in a process of its own, which tells its peak of extra memory. One that needs more than
--limit GiB, or more than --patience seconds, is left out from there on: its numbers are null. Then both take turns in
one process (ours, theirs, ours, …), so that whatever else the machine does hits them alike; times are medians over the
rounds, and the ratio is the median of theirs / ours within a round. Spreads are in `rounds`.

Run it on a machine that does nothing else. Where that cannot be, set OMP_WAIT_POLICY=PASSIVE: OpenMP's threads wait for
one another by spinning, which on busy cores turns an operation of microseconds into a time slice, and most of all in
many small ones, which is what ours are.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch
from pytorch_metric_learning import losses as peer_losses
from pytorch_metric_learning import miners as peer_miners
from torch.nn import functional

from lookalike.training.losses import AllTriplets, Triplet
from lookalike.training.miners import SemiHard

DIM, PER_CLASS, MARGIN, SPREAD = 128, 4, 0.2, 1.3
BATCHES = (128, 256, 512, 1024, 2048, 4096, 8192)
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
Call = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


# ── contenders ───────────────────────────────────────────────────────────────────────────────────────────────────────


def ours_all() -> Call:
    return AllTriplets(MARGIN, "euclidean")


def peer_all() -> Call:
    return peer_losses.TripletMarginLoss(MARGIN)


def ours_semi_hard() -> Call:
    miner, loss = SemiHard(MARGIN, "skip", "euclidean"), Triplet(MARGIN, "euclidean")
    return lambda rows, labels: loss(rows, labels, miner(rows, labels))


def peer_semi_hard() -> Call:
    miner, loss = peer_miners.TripletMarginMiner(MARGIN, "semihard"), peer_losses.TripletMarginLoss(MARGIN)
    return lambda rows, labels: loss(rows, labels, miner(rows, labels))


def peer_hardest_semi_hard() -> Call:
    """Their loss over the nearest negative of their semi-hard triplets, pair by pair. Not timed."""
    miner, loss = peer_miners.TripletMarginMiner(MARGIN, "semihard"), peer_losses.TripletMarginLoss(MARGIN)

    def call(rows: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        anchor, positive, negative = miner(rows, labels)
        distance = torch.cdist(rows, rows).detach()[anchor, negative]
        order = torch.argsort(distance, stable=True)
        order = order[torch.argsort((anchor * len(rows) + positive)[order], stable=True)]
        pair = (anchor * len(rows) + positive)[order]
        first = order[torch.cat([torch.ones(1, dtype=torch.bool), pair[1:] != pair[:-1]])]
        return loss(rows, labels, (anchor[first], positive[first], negative[first]))

    return call


COMPARISONS = {
    "all triplets": (ours_all, peer_all, peer_all),
    "semi-hard": (ours_semi_hard, peer_semi_hard, peer_hardest_semi_hard),
}


def embeddings(batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Classes of four around random centres, about as far apart as early in training."""
    dice = torch.Generator().manual_seed(batch)
    labels = torch.arange(batch) // PER_CLASS
    centres = torch.randn(batch // PER_CLASS + 1, DIM, generator=dice)
    rows = centres[labels] + SPREAD * torch.randn(batch, DIM, generator=dice)
    return functional.normalize(rows).requires_grad_(), labels


def step(call: Call, rows: torch.Tensor, labels: torch.Tensor) -> float:
    rows.grad = None
    value = call(rows, labels)
    value.backward()
    return value.item()


# ── memory, in a process of its own ──────────────────────────────────────────────────────────────────────────────────


def peak_kib() -> int:
    """The most memory the process has held since `forget_peak`."""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024 if sys.platform == "darwin" else 1)


def forget_peak() -> None:
    """On Linux, start the peak anew from what is held now."""
    if Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")


def child(name: str, side: int, batch: int, limit: float) -> None:
    """Print the seconds of a step and its peak of extra memory, in MiB."""
    call, (rows, labels) = COMPARISONS[name][side](), embeddings(batch)
    step(call, *embeddings(32))
    forget_peak()
    before = peak_kib()
    if Path("/proc/self/statm").exists():
        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + int(limit * 2**30),) * 2)
    began = time.perf_counter()
    step(call, rows, labels)
    print(json.dumps({"seconds": time.perf_counter() - began, "mib": (peak_kib() - before) / 1024}))


def alone(name: str, side: int, batch: int, asked: argparse.Namespace) -> dict[str, Any]:
    """What `child` says, or why it could not."""
    command = [sys.executable, __file__, "--child", name, str(side), str(batch)]
    command += ["--limit", str(asked.limit), "--threads", str(asked.threads)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=asked.patience, check=False)
    except subprocess.TimeoutExpired:
        return {"reason": f"more than {asked.patience:g} s for a step"}
    if done.returncode == 0:
        return json.loads(done.stdout)
    short = any(word in done.stderr for word in ("MemoryError", "allocate memory", "alloc")) or done.returncode < 0
    return {"reason": f"more than {asked.limit:g} GiB" if short else done.stderr.strip().splitlines()[-1]}


# ── rows ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def measure(name: str, batch: int, asked: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """A row of results, and the rounds behind it."""
    ours, peer, same = (make() for make in COMPARISONS[name])
    memory = [alone(name, side, batch, asked) for side in (0, 1)]
    runs = {"ours": ours} | ({"peer": peer} if "mib" in memory[1] else {})
    rows, labels = embeddings(batch)
    seconds: dict[str, list[float]] = {side: [] for side in runs}
    for side in runs:
        step(runs[side], rows, labels)
    for _ in range(asked.rounds):
        for side, call in runs.items():
            began = time.perf_counter()
            step(call, rows, labels)
            seconds[side].append(time.perf_counter() - began)
    row: dict[str, Any] = {"batch": batch}
    for side in ("ours", "peer"):
        row[f"{side}_ms"] = round(1e3 * statistics.median(seconds[side]), 3) if side in seconds else None
    row |= {"ratio": None, "ours_mib": round(memory[0]["mib"], 1), "peer_mib": None, "value_difference": None}
    rounds: dict[str, Any] = {"batch": batch, "load": round(os.getloadavg()[0], 2)}
    rounds |= {f"{side}_ms": [round(1e3 * value, 3) for value in values] for side, values in seconds.items()}
    if "peer" not in runs:
        return row, rounds | {"peer left out": memory[1]["reason"]}
    ratios = [theirs / own for own, theirs in zip(seconds["ours"], seconds["peer"], strict=True)]
    row |= {"ratio": round(statistics.median(ratios), 2), "peer_mib": round(memory[1]["mib"], 1)}
    row["value_difference"] = abs(step(ours, rows, labels) - step(same, rows, labels))
    return row, rounds | {"ratio": [round(ratio, 2) for ratio in ratios]}


def machine() -> dict[str, Any]:
    """Cores, memory and what the processor can do; nothing that names the machine."""
    flags, model = "", platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = dict(line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line)
        facts = {key.strip(): value.strip() for key, value in lines.items()}
        flags, model = facts.get("flags", ""), facts.get("model name", model)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cores": os.cpu_count(),
        "architecture": platform.machine(),
        "memory_gib": round(memory / 2**30, 1),
        "processor": model,
        "flags": [flag for flag in FLAGS if flag in flags.split()],
        "system": platform.system(),
    }


def document(asked: argparse.Namespace) -> dict[str, Any]:
    """Everything but the rows."""
    packages = ("lookalike", "torch", "pytorch-metric-learning")
    shown = " --batch " + " ".join(map(str, asked.batch)) if tuple(asked.batch) != BATCHES else ""
    policy = os.environ.get("OMP_WAIT_POLICY")
    waiting = f"OMP_WAIT_POLICY={policy} " if policy else ""
    return {
        "benchmark": "losses",
        "date": str(date.today()),
        "command": f"{waiting}python benchmarks/losses.py{shown} --rounds {asked.rounds} --json",
        "machine": machine(),
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in packages},
        "settings": {
            "dim": DIM,
            "pictures of a class": PER_CLASS,
            "margin": MARGIN,
            "distance": "euclidean",
            "threads": asked.threads,
            "limit_gib": asked.limit,
            "patience_s": asked.patience,
        },
        "notes": [
            "ours_ms, peer_ms: medians over the rounds of mining, loss and gradient; ratio: median of peer / ours",
            "ours_mib, peer_mib: peak of extra memory of one step in a process of its own",
            "semi-hard: the peer keeps all semi-hard negatives of a pair, ours the hardest; value_difference is over "
            "the hardest of the peer's",
            "load: the machine's load average when the row ended; above the threads used, others were at work",
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, nargs="+", default=list(BATCHES))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit", type=float, default=8.0, help="GiB a contender may take")
    parser.add_argument("--patience", type=float, default=120.0, help="seconds one step may take")
    parser.add_argument("--json", nargs="?", const="-", help="a file, or nothing for standard output")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    if asked.child:
        return child(asked.child[0], int(asked.child[1]), int(asked.child[2]), asked.limit)
    report = document(asked) | {"rows": [], "semi-hard rows": [], "rounds": {name: [] for name in COMPARISONS}}
    for name, key in zip(COMPARISONS, ("rows", "semi-hard rows"), strict=True):
        for batch in asked.batch:
            row, rounds = measure(name, batch, asked)
            report[key].append(row)
            report["rounds"][name].append(rounds)
            print(name, row, rounds.get("peer left out", ""), file=sys.stderr, flush=True)
    text = json.dumps(report, indent=1)
    if asked.json == "-":
        print(text)
    elif asked.json:
        Path(asked.json).write_text(text + "\n")
    return None


if __name__ == "__main__":
    main()
