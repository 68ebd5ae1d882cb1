"""Steps per second of the whole training loop, side by side with the usual way, on the same network and batches.

    python benchmarks/training.py [--pictures DIR] [--network NAME] [--size 128] [--rounds 7] [--steps 8]
                                  [--json benchmarks/results/training.json]

Needs `lookalike[train,demo]` and pytorch-metric-learning. Both contenders train the same network from the same
weights with triplets and semi-hard negatives on P × K pictures, AdamW, and the same kinds of random changes: a window,
a mirror image, brightness, contrast and saturation.

=======  =============================================================================================================
ours     `lookalike.training.loop.Run`: decoded pictures in a cache, batches changed as tensors, channels last,
         the faster of bfloat16 and float32, our miner and loss; compiled with --compile
usual    torchvision's `ImageFolder`, transforms of one picture at a time and a `DataLoader` with a process per core;
         `MPerClassSampler`, `TripletMarginMiner` and `TripletMarginLoss` of pytorch-metric-learning; float32
=======  =============================================================================================================

They take turns, `--steps` steps each, so that whatever else the machine does hits them alike; the loader is left to
fill its queue before its clock starts. Rates are medians over the rounds, the ratio is the median of ours / usual
within a round. `parts` has the usual way with our two largest savings, one at a time: bfloat16 and channels last.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image
from pytorch_metric_learning import losses, miners, samplers
from torch import nn
from torchvision.transforms import v2

sys.path.insert(0, str(Path(__file__).resolve().parent))
from encode import machine, photographs, versions

from lookalike.training.config import TrainConfig, read_config
from lookalike.training.distributed import Group
from lookalike.training.folder import RunFolder
from lookalike.training.loop import Run
from lookalike.training.prepare import make_network

CROP, JITTER, MARGIN = (0.6, 1.0), 0.2, 0.2


def pictures_from_wheels(folder: Path, classes: int = 24, each: int = 24) -> Path:
    """Windows of real photographs as JPEGs of 500 × 375 pixels: a folder for each place."""
    dice, sources = np.random.default_rng(0), photographs()
    for number in range(classes):
        source = sources[number % len(sources)]
        home = folder / f"{number:02}"
        home.mkdir(parents=True)
        centre = dice.uniform(0.3, 0.7, 2)
        for picture in range(each):
            side = dice.uniform(0.35, 0.5)
            left, top = np.clip(centre + dice.normal(0, 0.04, 2) - side / 2, 0, 1 - side) * source.size
            box = (int(left), int(top), int(left + side * source.width), int(top + side * source.height))
            source.crop(box).resize((500, 375), Image.Resampling.BICUBIC).save(home / f"{picture}.jpg", quality=88)
    return folder


def configuration(options: argparse.Namespace, pictures: Path) -> TrainConfig:
    document = {
        "data": {
            "root": str(pictures), "size": [options.size, options.size], "fit": "squash",
            "validation": 0.0, "test": 0.0, "check_leaks": False,
        },
        "network": {"name": options.network, "dim": 128},
        "sampler": {"classes": options.classes, "pictures": options.per_class},
        "loss": {"kind": "triplet", "margin": MARGIN, "distance": "euclidean"},
        "miner": {"kind": "semi_hard"},
        "augment": {
            "crop": list(CROP), "flip": 0.5, "brightness": JITTER, "contrast": JITTER, "saturation": JITTER,
        },
        "loop": {
            "steps": 10**6, "compile": options.compile, "report_every": 10**6, "validate_every": 10**6,
            "tensorboard": False,
        },
    }  # fmt: skip
    return read_config(document)


class Ours:
    """The product's loop, a few steps at a time."""

    def __init__(self, config: TrainConfig, folder: Path) -> None:
        place = RunFolder(folder, lambda line: None)
        place.claim(config)
        self.run = Run(config, place, "cpu", Group(), None)
        self.ahead = self.run._ahead()
        self.run.network.train()
        self.precision = self.run.state.precision

    def steps(self, count: int) -> None:
        for _ in range(count):
            self.run.step(0.5, self.ahead)
            self.run.state.step += 1

    def close(self) -> None:
        self.ahead.close()


class Usual:
    """The loop that tutorials show."""

    def __init__(
        self, config: TrainConfig, size: int, reduced: bool = False, channels_last: bool = False, workers: int = 2
    ) -> None:
        steps = v2.Compose(
            [
                v2.RandomResizedCrop(size, scale=CROP),
                v2.RandomHorizontalFlip(),
                v2.ColorJitter(JITTER, JITTER, JITTER),
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
            ]
        )
        data = torchvision.datasets.ImageFolder(config.data.root, steps)
        batch = config.sampler.classes * config.sampler.pictures
        sampler = samplers.MPerClassSampler(data.targets, config.sampler.pictures, batch, 10**7)
        self.loader = torch.utils.data.DataLoader(
            data, batch, sampler=sampler, num_workers=workers, persistent_workers=True, prefetch_factor=1
        )
        self.network = make_network(config, start=False)
        self.reduced = reduced
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        self.network = self.network.to(memory_format=self.format).train()
        self.miner = miners.TripletMarginMiner(MARGIN, type_of_triplets="semihard")
        self.loss = losses.TripletMarginLoss(MARGIN)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-3)
        self.batches: Iterator = iter(self.loader)

    def steps(self, count: int) -> None:
        for _ in range(count):
            pictures, labels = next(self.batches)
            self.optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=self.reduced):
                rows = self.network(pictures.to(memory_format=self.format))
            loss = self.loss(rows, labels, self.miner(rows, labels))
            loss.backward()
            nn.utils.clip_grad_norm_(self.network.parameters(), 5.0)
            self.optimizer.step()

    def close(self) -> None:
        self.batches = iter(())


def seconds(call: Callable[[int], None], steps: int) -> float:
    began = time.perf_counter()
    call(steps)
    return time.perf_counter() - began


def measured(contenders: dict, options: argparse.Namespace) -> list[dict[str, float]]:
    """Steps per second of each, round by round."""
    for contender in contenders.values():
        contender.steps(2)
    rounds = []
    for number in range(options.rounds):
        # The loader works ahead while others train: it pays for that here, before its turn, and not to them.
        rates = {}
        for name, contender in contenders.items():
            time.sleep(options.pause)
            rates[name] = options.steps / seconds(contender.steps, options.steps)
        rounds.append(rates)
        print(f"round {number}: " + ", ".join(f"{name} {rate:.2f}" for name, rate in rates.items()), file=sys.stderr)
    return rounds


def summary(rounds: list[dict[str, float]], pictures: int) -> dict:
    """Medians and spreads, and the ratios to the usual way within a round."""
    rows = {}
    for name in rounds[0]:
        rates = [rates[name] for rates in rounds]
        ratios = [rates[name] / rates["usual"] for rates in rounds]
        rows[name] = {
            "steps_per_second": round(statistics.median(rates), 3),
            "spread": [round(min(rates), 3), round(max(rates), 3)],
            "pictures_per_second": round(statistics.median(rates) * pictures, 1),
            "ratio_to_usual": round(statistics.median(ratios), 2),
            "ratio_spread": [round(min(ratios), 2), round(max(ratios), 2)],
        }
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, help="a folder per class; default: windows of photographs")
    parser.add_argument("--network", default="shufflenet_v2_x1_0")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--classes", type=int, default=16)
    parser.add_argument("--per-class", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--pause", type=float, default=2.0, help="seconds for the loader to fill its queue")
    parser.add_argument("--compile", action="store_true", help="ours with loop.compile = true")
    parser.add_argument("--parts", action="store_true", help="also the usual way with bfloat16 and channels last")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lookalike-") as scratch:
        pictures = options.pictures or pictures_from_wheels(Path(scratch) / "pictures")
        config = configuration(options, pictures)
        ours = Ours(config, Path(scratch) / "run")
        contenders = {"ours": ours, "usual": Usual(config, options.size)}
        if options.parts:
            contenders["usual in bfloat16"] = Usual(config, options.size, reduced=True)
            contenders["usual in bfloat16, channels last"] = Usual(config, options.size, True, True)
        rounds = measured(contenders, options)
        for contender in contenders.values():
            contender.close()
    batch = options.classes * options.per_class
    document = {
        "command": "python benchmarks/training.py " + " ".join(sys.argv[1:]),
        "date": date.today().isoformat(),
        "machine": machine(),
        "versions": versions("torch", "torchvision", "pytorch-metric-learning", "pillow", "numpy"),
        "network": options.network,
        "size": options.size,
        "batch": batch,
        "precision": ours.precision,
        "compiled": options.compile,
        "pictures": "a folder" if options.pictures else "JPEGs of 500 × 375, windows of photographs",
        "rows": summary(rounds, batch),
        "rounds": rounds,
    }
    text = json.dumps(document, indent=1, ensure_ascii=False)
    if options.json:
        options.json.write_text(text + "\n", encoding="utf-8")
    print(json.dumps(document["rows"], indent=1))


if __name__ == "__main__":
    main()
