"""How long an embedding of 100,000 pictures takes to judge, each picture against all others, and how much memory.

    python benchmarks/evaluate.py [--pictures 100000] [--dim 128] [--classes 1000] [--few 10000] [--out FILE.json]

The vectors are a class centre and noise, so that neither all nor none of the nearest are relevant. `top` asks for R@k,
P@k and nDCG@k at 1, 5 and 10 and for MAP@R; `full` also for mAP, MRR and triplet accuracy, which depend on the whole
ranking. Each is measured in a process of its own, whose highest resident memory is reported, the interpreter and NumPy
included, with what they hold before the vectors are made beside it. On a machine that does other work, processor time
divided by the cores says what the wall clock would have shown. `metrics` is the same MAP@R by the function that
defines it, one query after the other, on fewer pictures, since it takes a pass for each measure.
"""

from __future__ import annotations

import argparse
import datetime
import json
import multiprocessing
import os
import resource
import time
from pathlib import Path

import numpy as np
from encode import machine, versions

from lookalike.metrics import average_precision_at_r
from lookalike.ranking import retrieval


def embedding(pictures: int, dim: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    dice = np.random.default_rng(0)
    centres = dice.normal(size=(classes, dim)).astype(np.float32)
    labels = dice.integers(0, classes, pictures)
    return centres[labels] + 2.5 * dice.standard_normal((pictures, dim), dtype=np.float32), labels


def peak() -> float:
    """Highest resident memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(what: str, pictures: int, dim: int, classes: int) -> dict:
    before = peak()
    vectors, labels = embedding(pictures, dim, classes)
    began, processor = time.monotonic(), time.process_time()
    if what == "metrics":
        found = {"map_at_r": average_precision_at_r(vectors, labels)}
    else:
        found = retrieval(vectors, labels, full=what == "full")
    seconds = time.monotonic() - began
    return {
        "pictures": pictures,
        "seconds": round(seconds, 2),
        "processor_seconds": round(time.process_time() - processor, 2),
        "peak_mib": round(peak()),
        "peak_mib_before": round(before),
        "means": {name: round(float(np.nanmean(values)), 6) for name, values in found.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--few", type=int, default=10_000, help="pictures for the defining function")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "evaluate.json")
    asked = parser.parse_args()
    report: dict = {
        "what": __doc__.splitlines()[0],
        "command": f"python benchmarks/evaluate.py --pictures {asked.pictures} --dim {asked.dim} "
        f"--classes {asked.classes}",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": machine(),
        "versions": versions("lookalike", "numpy"),
        "load": round(os.getloadavg()[0], 1),
        "threads_of_blas": os.environ.get("OMP_NUM_THREADS", "as many as cores"),
        "runs": {},
    }
    # A fresh process each, so that one does not inherit the peak of another.
    fresh = multiprocessing.get_context("spawn")
    plan = [("top", asked.pictures), ("full", asked.pictures), ("top", asked.few), ("metrics", asked.few)]
    for what, pictures in plan:
        with fresh.Pool(1) as pool:
            found = pool.apply(measure, (what, pictures, asked.dim, asked.classes))
        report["runs"][f"{what}, {pictures:,} pictures"] = found
        print(what, found, flush=True)
        asked.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
