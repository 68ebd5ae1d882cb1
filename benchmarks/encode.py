"""How fast pictures become vectors: decoding alone, the network alone, the pipeline of both, and the usual way.

    python benchmarks/encode.py [--data DIR] [--model BUNDLE] [--rounds 7] [--out benchmarks/results/encode.json]

Needs `lookalike[train,demo]` (torch and torchvision for the usual way, scikit-image and scikit-learn for their
photographs). All contenders run in one process and take turns (A, B, C, D, A, B, …), so that whatever else the machine
does hits them alike; ratios are taken within a round, and the median over rounds is reported.

==========  ==========================================================================================================
decode      `Preprocessing.load` over paths in as many threads as the encoder uses
network     the encoder's network on ready pixels, called as the encoder calls it
pipeline    `Encoder.stream` over paths: what `lookalike index` runs
usual       Pillow's full decode and torchvision's transforms in the main loop, torchvision's shufflenet_v2_x1_0 of the
            same input size in torch eager, batches of 32, inference mode
==========  ==========================================================================================================

Decoding and the network share the same cores, so the pipeline cannot reach the smaller of the two rates unless it
hides one behind waiting: 1 / (1 / decode + 1 / network) is what perfect use of all cores gives.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import io
import json
import os
import platform
import statistics
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from lookalike import images
from lookalike.encoder import BATCH, Encoder, _openvino, _options

DATE = date.today().isoformat()
PHOTOGRAPHS = {
    "skimage": ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png", "retina.jpg"),
    "sklearn": ("china.jpg", "flower.jpg"),
}
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")


# ── shared with the other benchmarks ─────────────────────────────────────────────────────────────────────────────────


def machine() -> dict:
    """Cores, memory and what the processor can do; nothing that names the machine."""
    flags, model = "", platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = dict(line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line)
        facts = {key.strip(): value.strip() for key, value in lines.items()}
        flags, model = facts.get("flags", ""), facts.get("model name", model)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(memory / 2**30, 1),
        "processor": model,
        "flags": [flag for flag in FLAGS if flag in flags.split()],
        "system": platform.system(),
    }


def versions(*packages: str) -> dict:
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in packages}}


def photographs() -> list[Image.Image]:
    """Real photographs from the wheels of scikit-image and scikit-learn, as RGB."""
    found = []
    for package, names in PHOTOGRAPHS.items():
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            sys.exit(f"needs the photographs in {package}'s wheel: pip install 'lookalike[demo]'")
        folder = Path(spec.origin).parent / ("data" if package == "skimage" else "datasets/images")
        found += [Image.open(folder / name).convert("RGB") for name in names]
    return found


def camera_like(
    width: int, height: int, dice: np.random.Generator, photos: list[Image.Image], quality: int = 90
) -> bytes:
    """A JPEG the size of a camera's: four enlarged pieces of photographs, and the grain of a sensor."""
    whole = Image.new("RGB", (width, height))
    for corner in range(4):
        photo = photos[dice.integers(len(photos))]
        share = dice.uniform(0.5, 1)
        wide, tall = int(photo.width * share), int(photo.height * share)
        left, top = dice.integers(photo.width - wide + 1), dice.integers(photo.height - tall + 1)
        piece = photo.resize(
            (width // 2 + 1, height // 2 + 1), Image.Resampling.BICUBIC, (left, top, left + wide, top + tall)
        )
        whole.paste(piece, (corner % 2 * (width // 2), corner // 2 * (height // 2)))
    grain = dice.integers(-6, 7, (height // 2, width // 2, 1), dtype=np.int16).repeat(2, 0).repeat(2, 1)
    grainy = np.asarray(whole, np.int16)[: height // 2 * 2, : width // 2 * 2] + grain
    buffer = io.BytesIO()
    Image.fromarray(np.clip(grainy, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def members(data: Path | None, archive: str, count: int) -> list[bytes]:
    """Evenly spaced pictures of one of the development archives; none where it is absent."""
    if data is None or not (data / archive).is_file():
        return []
    with zipfile.ZipFile(data / archive) as opened:
        names = sorted(name for name in opened.namelist() if name.lower().endswith((".jpg", ".png")))
        return [opened.read(name) for name in names[:: max(1, len(names) // count)][:count]]


def median_and_spread(values: list[float]) -> dict:
    return {"median": round(statistics.median(values), 4), "min": round(min(values), 4), "max": round(max(values), 4)}


# ── contenders ───────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Setting:
    """One kind of picture: the files, and their ready pixels."""

    name: str
    paths: list[Path]
    mean_bytes: int
    pixels: list[np.ndarray]


def decode(encoder: Encoder, setting: Setting) -> None:
    with ThreadPoolExecutor(encoder.threads) as pool:
        for _ in pool.map(encoder.bundle.preprocessing.load, setting.paths):
            pass


def network(encoder: Encoder, setting: Setting) -> None:
    pixels = setting.pixels
    waiting: list[Callable[[], np.ndarray]] = []
    for start in range(0, len(pixels), BATCH):
        waiting.append(encoder._network.start(pixels[start : start + BATCH]))
        if len(waiting) > 1:
            waiting.pop(0)()
    for finish in waiting:
        finish()


def pipeline(encoder: Encoder, setting: Setting) -> None:
    count = sum(outcome.vector is not None for outcome in encoder.stream(setting.paths))
    assert count == len(setting.paths)


def usual_way(size: tuple[int, int], dim: int) -> Callable[[Encoder, Setting], None]:
    import torch
    from torchvision import models, transforms

    torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
    model = models.shufflenet_v2_x1_0(weights=None)
    model.fc = torch.nn.Linear(model.fc.in_features, dim)
    model.eval()
    prepare = transforms.Compose(
        [
            transforms.Resize(size),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )

    def usual(encoder: Encoder, setting: Setting) -> None:
        with torch.inference_mode():
            for start in range(0, len(setting.paths), 32):
                batch = [prepare(Image.open(path).convert("RGB")) for path in setting.paths[start : start + 32]]
                torch.nn.functional.normalize(model(torch.stack(batch))).numpy()

    return usual


def make_settings(encoder: Encoder, home: Path, data: Path | None, scale: float) -> Iterator[Setting]:
    dice, photos = np.random.default_rng(12), photographs()
    sizes = {"camera, 12 MP": (4000, 3000, 48), "camera, 2 MP": (1632, 1224, 320), "web, 500 × 375": (500, 375, 1000)}
    files = {
        name: [camera_like(width, height, dice, photos) for _ in range(int(count * scale))]
        for name, (width, height, count) in sizes.items()
    }
    files["products, 160 px"] = members(data, "fashion_products.zip", int(2000 * scale))
    for name, contents in files.items():
        if not contents:
            continue
        folder = home / name
        folder.mkdir()
        paths = [folder / f"{number:05}.jpg" for number in range(len(contents))]
        for path, content in zip(paths, contents, strict=True):
            path.write_bytes(content)
        pixels = [encoder.bundle.preprocessing.load(path) for path in paths]
        # The network alone would be over in a blink with the few large files: it gets them many times.
        yield Setting(name, paths, sum(map(len, contents)) // len(contents), (pixels * 2000)[: int(2000 * scale)])


def throughput(encoder: Encoder, setting: Setting, rounds: int) -> dict:
    """Pictures per second of every contender, taking turns."""
    contenders = {
        "decode": (decode, len(setting.paths)),
        "network": (network, len(setting.pixels)),
        "pipeline": (pipeline, len(setting.paths)),
        "usual": (usual_way(encoder.bundle.preprocessing.size, encoder.dim), len(setting.paths)),
    }
    for run, _ in contenders.values():  # warm: caches, compiled graphs, thread pools
        run(encoder, Setting("", setting.paths[:32], 0, setting.pixels[:32]))
    raw: list[dict[str, float]] = []
    for _ in range(rounds):
        rates = {}
        for name, (run, count) in contenders.items():
            began = time.perf_counter()
            run(encoder, setting)
            rates[name] = count / (time.perf_counter() - began)
        raw.append({name: round(rate, 2) for name, rate in rates.items()})
        print(f"  {setting.name}: " + "  ".join(f"{name} {rate:,.1f}" for name, rate in rates.items()), flush=True)
    ratios = {
        "pipeline / min(decode, network)": [r["pipeline"] / min(r["decode"], r["network"]) for r in raw],
        "pipeline / shared-core bound": [r["pipeline"] * (1 / r["decode"] + 1 / r["network"]) for r in raw],
        "pipeline / usual": [r["pipeline"] / r["usual"] for r in raw],
    }
    return {
        "pictures": len(setting.paths),
        "mean_bytes": setting.mean_bytes,
        "pictures_per_second": {name: median_and_spread([r[name] for r in raw]) for name in contenders},
        "ratios": {name: median_and_spread(values) for name, values in ratios.items()},
        "rounds": raw,
    }


# ── choices inside ───────────────────────────────────────────────────────────────────────────────────────────────────


def jpeg(picture: Image.Image, quality: int = 92) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def fidelity_pictures(data: Path | None) -> dict[str, list[bytes]]:
    """Photographs as sharp as a camera's (at the size they were taken), and many, enlarged."""
    dice, groups = np.random.default_rng(3), {"wheels, own size": []}
    for photo in photographs():
        for _ in range(8):
            wide, tall = (int(side * dice.uniform(0.6, 1)) for side in photo.size)
            left, top = dice.integers(photo.width - wide + 1), dice.integers(photo.height - tall + 1)
            groups["wheels, own size"].append(jpeg(photo.crop((left, top, left + wide, top + tall))))
    small = [Image.open(io.BytesIO(content)).convert("RGB") for content in members(data, "flickr8k.zip", 200)]
    if small:
        groups["flickr8k, enlarged six times"] = [jpeg(p.resize((p.width * 6, p.height * 6))) for p in small]
    return groups


def draft_margins(encoder: Encoder, data: Path | None, rounds: int) -> dict:
    """What decoding at a reduced scale costs in likeness, and gains in speed, per margin."""
    report: dict = {"fidelity": {}, "pictures_per_second": {}}
    preprocessing, chosen = encoder.bundle.preprocessing, images._DRAFT_MARGIN
    for group, files in fidelity_pictures(data).items():
        full = [np.asarray(preprocessing.fitted(images.read(content))) for content in files]
        reference = encode_pixels(encoder, full)
        for margin in (1.0, 1.5, 2.0, 3.0):
            images._DRAFT_MARGIN = margin
            drafted = [preprocessing.load(content) for content in files]
            cosines = (encode_pixels(encoder, drafted) * reference).sum(axis=1)
            pixels = [float(np.abs(a.astype(float) - b).mean()) for a, b in zip(full, drafted, strict=True)]
            report["fidelity"].setdefault(group, {})[str(margin)] = {
                "mean_pixel_difference": round(statistics.mean(pixels), 3),
                "cosine_mean": round(float(cosines.mean()), 5),
                "cosine_p1": round(float(np.quantile(cosines, 0.01)), 5),
                "cosine_min": round(float(cosines.min()), 5),
            }
    dice, photos = np.random.default_rng(4), photographs()
    for name, (width, height, count) in {
        "12 MP": (4000, 3000, 12),
        "2 MP": (1632, 1224, 48),
        "1 MP": (1152, 864, 64),
        "0.3 MP": (640, 480, 128),
    }.items():
        files = [camera_like(width, height, dice, photos) for _ in range(count)]
        rates: dict[str, list[float]] = {}
        for _ in range(rounds):
            for margin in (1.0, 1.5, 2.0, 3.0):
                images._DRAFT_MARGIN = margin
                began = time.perf_counter()
                for content in files:
                    preprocessing.load(content)
                rates.setdefault(str(margin), []).append(count / (time.perf_counter() - began))
        report["pictures_per_second"][name] = {margin: median_and_spread(values) for margin, values in rates.items()}
    images._DRAFT_MARGIN = chosen
    return {"chosen": chosen, "note": "speed is of one thread", **report}


def encode_pixels(encoder: Encoder, pixels: list[np.ndarray], at_once: int = BATCH) -> np.ndarray:
    """Vectors of ready pixels through the batch graph, or, with `at_once=1`, through the one for queries."""
    rows = []
    for start in range(0, len(pixels), at_once):
        block = pixels[start : start + at_once]
        if at_once > 1 and len(block) == 1:
            block = [block[0], block[0]]
        rows.append(encoder._network.start(block)()[: len(pixels) - start])
    return np.concatenate(rows)


def precision(encoder: Encoder, exact: Encoder, pixels: list[np.ndarray], rounds: int) -> dict:
    """The processor's short floats against 32-bit ones; the graph for one picture against the one for many."""
    reference = encode_pixels(exact, pixels)
    batch, single = encode_pixels(encoder, pixels), encode_pixels(encoder, pixels, at_once=1)
    rates: dict[str, list[float]] = {"auto": [], "fp32": []}
    work = Setting("", [], 0, (pixels * 2000)[:2000])
    for _ in range(rounds):
        for name, which in (("auto", encoder), ("fp32", exact)):
            began = time.perf_counter()
            network(which, work)
            rates[name].append(len(work.pixels) / (time.perf_counter() - began))

    def cosines(left: np.ndarray, right: np.ndarray) -> dict:
        values = (left.astype(np.float64) * right).sum(axis=1)
        return {"mean": round(float(values.mean()), 6), "min": round(float(values.min()), 6)}

    return {
        "pictures": len(pixels),
        "cosine auto to fp32": cosines(batch, reference),
        "cosine of one picture alone to the same in a batch, auto": cosines(single, batch),
        "cosine of one picture alone to the same in a batch, fp32": cosines(
            encode_pixels(exact, pixels, at_once=1), reference
        ),
        "pictures_per_second": {name: median_and_spread(values) for name, values in rates.items()},
    }


def latency(encoder: Encoder, contents: dict[str, list[bytes]]) -> dict:
    """Milliseconds for one query: the network alone, and picture to vector."""

    def quantiles(seconds: list[float]) -> dict:
        return {
            "p50_ms": round(float(np.quantile(seconds, 0.5)) * 1e3, 2),
            "p99_ms": round(float(np.quantile(seconds, 0.99)) * 1e3, 2),
        }

    report, pixels = {}, encoder.bundle.preprocessing.load(next(iter(contents.values()))[0])

    def timed(call: Callable[[], object], count: int) -> list[float]:
        seconds = []
        for _ in range(count):
            began = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - began)
        return seconds[count // 10 :]

    def network_alone() -> None:
        encoder._network.start([pixels])()

    report["network"] = quantiles(timed(network_alone, 1000))
    for name, files in contents.items():
        turns = iter(files * 1000)
        report[name] = quantiles(timed(lambda turns=turns: encoder.images([next(turns)]), 200))
    return report


def compiling(encoder: Encoder, rounds: int) -> dict:
    """Seconds until the first vector of a fresh encoder, with and without a folder of compiled graphs."""
    ov, plain, cached = _openvino(), [], []
    options = _options(ov, ov.Core(), encoder.precision)
    model = encoder.bundle.path / encoder.bundle.manifest["image"]["graph"]
    height, width = encoder.bundle.preprocessing.size
    with tempfile.TemporaryDirectory() as cache:
        for turn in range(2 * rounds + 2):
            core = ov.Core()
            if turn % 2:
                core.set_property({"CACHE_DIR": cache})
            began = time.perf_counter()
            graph = core.read_model(model)
            graph.reshape([1, 3, height, width])
            core.compile_model(graph, "CPU", options)
            (cached if turn % 2 else plain).append(time.perf_counter() - began)
    began = time.perf_counter()
    Encoder.load(encoder.bundle.path).images([Image.new("RGB", (64, 64))])
    return {
        "read and compile, seconds": median_and_spread(plain[1:]),
        "the same with CACHE_DIR, seconds": median_and_spread(cached[1:]),
        "load a bundle and encode one picture, seconds": round(time.perf_counter() - began, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with fashion_products.zip and flickr8k.zip")
    parser.add_argument("--model", help="a bundle; by default the one that ships")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the pictures, to try it out")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "encode.json")
    asked = parser.parse_args()
    load = Encoder.load if asked.model else lambda _, **options: Encoder.default(**options)
    encoder, exact = load(asked.model), load(asked.model, precision="fp32")
    report: dict = {
        "what": __doc__.splitlines()[0],
        "command": "python benchmarks/encode.py" + " --data DIR" * bool(asked.data) + f" --rounds {asked.rounds}",
        "date": DATE,
        "machine": machine(),
        "versions": versions("lookalike", "openvino", "pillow", "numpy", "torch", "torchvision"),
        "encoder": {"name": encoder.name, "fingerprint": encoder.fingerprint, "dim": encoder.dim},
        "settings": {"batch": BATCH, "threads": encoder.threads, "size": list(encoder.bundle.preprocessing.size)},
        "throughput": {},
    }
    with tempfile.TemporaryDirectory() as home:
        contents: dict[str, list[bytes]] = {}
        pixels: list[np.ndarray] = []
        for setting in make_settings(encoder, Path(home), asked.data, asked.scale):
            report["throughput"][setting.name] = throughput(encoder, setting, asked.rounds)
            contents[setting.name] = [path.read_bytes() for path in setting.paths[:32]]
            pixels += setting.pixels[:200]
    report["precision"] = precision(encoder, exact, pixels, asked.rounds)
    report["latency of one query"] = latency(encoder, contents)
    report["start"] = compiling(encoder, asked.rounds)
    report["draft margin"] = draft_margins(exact, asked.data, asked.rounds)
    asked.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps({name: value for name, value in report.items() if name != "throughput"}, indent=1))


if __name__ == "__main__":
    main()
