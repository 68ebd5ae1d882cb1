"""Search speed side by side: our index, the engine it stands on alone, and the libraries people would use instead.

    python benchmarks/search.py --size 100000 --rounds 7
    python benchmarks/search.py --size 1000000 --rounds 5 --queries 1000

Each engine builds once, in a process of its own, and is tuned there: the smallest search breadth whose recall@10
against brute force is at least 0.99 (ours and the bare Qdrant Edge use the breadth that ours chooses by itself, which
leaves a margin). Then come rounds: every engine in turn opens its index in a fresh process and answers all queries, one
at a time and in batches of 64, so that whatever else the machine does hits all of them alike. Medians and extremes are
taken over the rounds. The ratio ours / engine alone comes from a duel at the end of each round: both in one process,
taking turns query by query. Results are saved after every step; --add keeps what the file says of other engines.

pip install faiss-cpu hnswlib usearch lancedb
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

K = 10
GOAL = 0.99
BATCH = 64
BREADTHS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
LINKS, CONSTRUCT = 16, 128
RESULTS = Path(__file__).parent / "results"


# Data: a mixture of Gaussians on the sphere whose spread decays over the directions, as that of embeddings does.


def make_data(folder: Path, size: int, dim: int, queries: int) -> None:
    """Write items.npy (size, dim), queries.npy (queries, dim), truth.npy (queries, K): rows of unit length."""
    rng = np.random.default_rng(20261121)
    scale = (1.0 + np.arange(dim)) ** -0.5
    scale = (scale / np.sqrt((scale**2).mean())).astype(np.float32)
    turn = np.linalg.qr(rng.normal(size=(dim, dim)))[0].astype(np.float32)
    centres = rng.normal(size=(max(10, size // 100), dim)).astype(np.float32) * scale
    items = np.empty((size, dim), np.float32)
    for start in range(0, size, 100_000):
        stop = min(size, start + 100_000)
        noise = rng.normal(size=(stop - start, dim)).astype(np.float32) * scale
        items[start:stop] = centres[rng.integers(0, len(centres), stop - start)] + 0.6 * noise
    asked = items[rng.integers(0, size, queries)]
    asked = asked + 0.3 * rng.normal(size=(queries, dim)).astype(np.float32) * scale
    items, asked = normal(items @ turn), normal(asked @ turn)
    truth = np.empty((queries, K), np.int64)
    for start in range(0, queries, 100):
        scores = asked[start : start + 100] @ items.T
        near = np.argpartition(-scores, K, axis=1)[:, :K]
        order = np.argsort(-np.take_along_axis(scores, near, 1), axis=1)
        truth[start : start + 100] = np.take_along_axis(near, order, 1)
    for name, array in (("items", items), ("queries", asked), ("truth", truth)):
        np.save(folder / f"{name}.npy", array)


def normal(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def payload(i: int) -> dict[str, Any]:
    return {
        "path": f"pictures/{i % 997:03}/{i:07}.jpg",
        "category": f"c{i % 10}",
        "brand": f"b{i % 100}",
        "price": i % 500,
    }


# Engines. `build` leaves an index in a folder; `open` returns one(query) -> ids and many(queries) -> ids.


class Lookalike:
    """`open_index(folder)`: hits with scores and payloads, ties in order of key."""

    payloads = True
    quantization: ClassVar[Any] = None
    fields: ClassVar[dict[str, Any] | None] = None

    def build(self, folder: Path, items: np.ndarray) -> None:
        from lookalike.index import open_index

        index = open_index(folder / "index", dim=items.shape[1], fields=self.fields, quantization=self.quantization)
        for start in range(0, len(items), 5_000):
            numbers = range(start, min(len(items), start + 5_000))
            index.add([str(i) for i in numbers], items[start : start + 5_000], [payload(i) for i in numbers])
        index.optimize()
        index.close()

    def open(self, folder: Path) -> None:
        from lookalike.index import open_index

        self.index = open_index(folder / "index", read_only=True)

    def breadths(self) -> tuple[int, ...]:
        return (0,)  # it chooses by itself

    def set_breadth(self, breadth: int) -> None:
        pass

    def one(self, query: np.ndarray) -> Any:
        return self.index.search(query, k=K)[0]

    def many(self, queries: np.ndarray) -> Any:
        return self.index.search(queries, k=K)

    def ids(self, answer: Any) -> list[int]:
        return [int(hit.key) for hit in answer]

    def close(self) -> None:
        self.index.close()


class LookalikeInt8(Lookalike):
    """The same with int8 vectors in memory, scored again in float32."""

    quantization = "int8"


class LookalikeFields(Lookalike):
    """The same with two declared fields; also answers filtered queries."""

    fields: ClassVar[dict[str, Any] | None] = {"category": "keyword", "brand": "keyword"}
    filters: ClassVar = {"keeps 10 %": {"category": "c3"}, "keeps 1 %": {"brand": "b7"}}

    def filtered(self, query: np.ndarray, where: dict[str, Any]) -> Any:
        return self.index.search(query, k=K, where=where)[0]


class Edge:
    """Qdrant Edge alone, through its own API, same parameters, payloads returned."""

    payloads = True

    def build(self, folder: Path, items: np.ndarray) -> None:
        import uuid

        import qdrant_edge as edge

        (folder / "index").mkdir()
        kilobytes = items.shape[1] * 4 / 1024
        shard = edge.EdgeShard.create(
            str(folder / "index"),
            edge.EdgeConfig(
                vectors=edge.EdgeVectorParams(size=items.shape[1], distance=edge.Distance.Cosine),
                hnsw_config=edge.HnswIndexConfig(LINKS, CONSTRUCT, full_scan_threshold=round(10_000 * kilobytes)),
                optimizers=edge.EdgeOptimizersConfig(
                    default_segment_number=1, indexing_threshold=round(5_000 * kilobytes)
                ),
                max_search_threads=1,
                payload_memory=edge.Memory.Cached,
            ),
        )
        for start in range(0, len(items), 5_000):
            points = [
                edge.Point(str(uuid.UUID(int=i)), items[i].tolist(), {"_key": str(i), **payload(i)})
                for i in range(start, min(len(items), start + 5_000))
            ]
            shard.update(edge.UpdateOperation.upsert_points(points))
            shard.flush()
        shard.optimize()
        shard.close()

    def open(self, folder: Path) -> None:
        import qdrant_edge as edge

        self.edge, self.shard = edge, edge.EdgeShard.load(str(folder / "index"))

    def breadths(self) -> tuple[int, ...]:
        return (max(64, int(32 * (np.log10(self.shard.info().points_count) - 3))),)  # what ours chooses

    def set_breadth(self, breadth: int) -> None:
        self.params = self.edge.SearchParams(hnsw_ef=breadth)

    def _ask(self, kind: Any, query: list[float]) -> Any:
        return kind(limit=K, query=self.edge.Query.Nearest(query), params=self.params, with_payload=True)

    def one(self, query: np.ndarray) -> Any:  # `search` is the fastest of its calls for one query
        request = self._ask(self.edge.SearchRequest, query.tolist())
        return [(point.score, point.payload) for point in self.shard.search(request)]

    def many(self, queries: np.ndarray) -> Any:
        request = self.edge.QueryBatchRequest([self._ask(self.edge.QueryRequest, query) for query in queries.tolist()])
        return [[(point.score, point.payload) for point in points] for points in self.shard.query_batch(request)]

    def ids(self, answer: Any) -> list[int]:
        return [int(found["_key"]) for _, found in answer]

    def close(self) -> None:
        self.shard.close()


class Library:
    """What the bare libraries share: ids and scores, nothing else, one search thread."""

    payloads = False

    def breadths(self) -> tuple[int, ...]:
        return BREADTHS

    def one(self, query: np.ndarray) -> Any:
        return self.many(query[None])[0]

    def ids(self, answer: Any) -> list[int]:
        return [int(i) for i in answer]

    def close(self) -> None:
        pass


class FaissHnsw(Library):
    """faiss IndexHNSWFlat, inner product."""

    def build(self, folder: Path, items: np.ndarray) -> None:
        import faiss

        index = faiss.IndexHNSWFlat(items.shape[1], LINKS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = CONSTRUCT
        index.add(np.ascontiguousarray(items))
        faiss.write_index(index, str(folder / "index.faiss"))

    def open(self, folder: Path) -> None:
        import faiss

        faiss.omp_set_num_threads(1)
        self.index = faiss.read_index(str(folder / "index.faiss"))

    def set_breadth(self, breadth: int) -> None:
        self.index.hnsw.efSearch = breadth

    def many(self, queries: np.ndarray) -> Any:
        return self.index.search(queries, K)[1]


class Hnswlib(Library):
    """hnswlib, cosine space."""

    def build(self, folder: Path, items: np.ndarray) -> None:
        import hnswlib

        index = hnswlib.Index(space="cosine", dim=items.shape[1])
        index.init_index(max_elements=len(items), M=LINKS, ef_construction=CONSTRUCT)
        index.add_items(items, np.arange(len(items)))
        index.save_index(str(folder / "index.hnsw"))

    def open(self, folder: Path) -> None:
        import hnswlib

        dim = np.load(folder.parent / "data" / "queries.npy", mmap_mode="r").shape[1]
        self.index = hnswlib.Index(space="cosine", dim=dim)
        self.index.load_index(str(folder / "index.hnsw"))
        self.index.set_num_threads(1)

    def set_breadth(self, breadth: int) -> None:
        self.index.set_ef(breadth)

    def many(self, queries: np.ndarray) -> Any:
        return self.index.knn_query(queries, k=K)[0]


class Usearch(Library):
    """usearch, float32, cosine."""

    def _new(self, dim: int) -> Any:
        from usearch.index import Index

        return Index(ndim=dim, metric="cos", dtype="f32", connectivity=LINKS, expansion_add=CONSTRUCT)

    def build(self, folder: Path, items: np.ndarray) -> None:
        index = self._new(items.shape[1])
        index.add(np.arange(len(items)), np.ascontiguousarray(items))
        index.save(str(folder / "index.usearch"))

    def open(self, folder: Path) -> None:
        dim = np.load(folder.parent / "data" / "queries.npy", mmap_mode="r").shape[1]
        self.index = self._new(dim)
        self.index.load(str(folder / "index.usearch"))

    def set_breadth(self, breadth: int) -> None:
        self.index.expansion_search = breadth

    def one(self, query: np.ndarray) -> Any:
        return self.index.search(query, K, threads=1).keys

    def many(self, queries: np.ndarray) -> Any:
        return self.index.search(queries, K, threads=1).keys


class LanceDb(Library):
    """LanceDB, HNSW over scalar-quantised vectors in one partition, refined; payload columns returned."""

    payloads = True

    def build(self, folder: Path, items: np.ndarray) -> None:
        import lancedb
        import pyarrow as pa
        from lancedb.index import HnswSq

        dim = items.shape[1]

        def batches() -> Any:
            for start in range(0, len(items), 50_000):
                numbers = range(start, min(len(items), start + 50_000))
                flat = pa.array(np.ascontiguousarray(items[start : start + 50_000]).reshape(-1))
                columns = {name: [payload(i)[name] for i in numbers] for name in payload(0)}
                yield pa.RecordBatch.from_pydict(
                    {"id": list(numbers), "vector": pa.FixedSizeListArray.from_arrays(flat, dim), **columns}
                )

        first = next(batches())
        table = lancedb.connect(folder / "lance").create_table(
            "items", pa.RecordBatchReader.from_batches(first.schema, batches())
        )
        graph = HnswSq(distance_type="cosine", num_partitions=1, m=LINKS, ef_construction=CONSTRUCT)
        table.create_index("vector", config=graph)

    def breadths(self) -> tuple[int, ...]:
        return tuple(breadth for breadth in BREADTHS if breadth >= 4 * K)  # it refines 4 · K candidates

    def open(self, folder: Path) -> None:
        import lancedb

        self.table = lancedb.connect(folder / "lance").open_table("items")

    def set_breadth(self, breadth: int) -> None:
        self.breadth = breadth

    def one(self, query: np.ndarray) -> Any:
        search = self.table.search(query, vector_column_name="vector").distance_type("cosine").limit(K)
        return search.nprobes(1).ef(self.breadth).refine_factor(4).to_list()

    def many(self, queries: np.ndarray) -> Any:
        return [self.one(query) for query in queries]

    def ids(self, answer: Any) -> list[int]:
        return [row["id"] for row in answer]


class Exact(Library):
    """Our brute force in memory: the oracle. Opening it means adding everything again."""

    payloads = True

    def build(self, folder: Path, items: np.ndarray) -> None:
        pass

    def breadths(self) -> tuple[int, ...]:
        return (0,)

    def set_breadth(self, breadth: int) -> None:
        pass

    def open(self, folder: Path) -> None:
        from lookalike.index import open_index

        items = np.load(folder.parent / "data" / "items.npy", mmap_mode="r")
        self.index = open_index(":memory:", dim=items.shape[1])
        for start in range(0, len(items), 50_000):
            numbers = range(start, min(len(items), start + 50_000))
            self.index.add([str(i) for i in numbers], items[start : start + 50_000], [payload(i) for i in numbers])

    def many(self, queries: np.ndarray) -> Any:
        return self.index.search(queries, k=K)

    def ids(self, answer: Any) -> list[int]:
        return [int(hit.key) for hit in answer]


ENGINES: dict[str, Any] = {
    "lookalike": Lookalike,
    "qdrant-edge alone": Edge,
    "lookalike int8": LookalikeInt8,
    "lookalike with fields": LookalikeFields,
    "faiss HNSW": FaissHnsw,
    "hnswlib": Hnswlib,
    "usearch": Usearch,
    "lancedb HNSW-SQ": LanceDb,
    "lookalike exact": Exact,
}


# One step in a process of its own.


def peak_mib() -> float:
    """The most memory this process has held, mapped files it touched included."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return round(int(line.split()[1]) / 1024)
    return 0


def recall(engine: Any, answers: list[Any], truth: np.ndarray) -> float:
    return float(np.mean([len(set(engine.ids(a)) & set(t.tolist())) / K for a, t in zip(answers, truth, strict=True)]))


def child_build(engine: Any, folder: Path, data: Path) -> dict[str, Any]:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    items = np.load(data / "items.npy", mmap_mode="r")
    start, busy = time.perf_counter(), time.process_time()
    engine.build(folder, items)
    seconds, busy = time.perf_counter() - start, time.process_time() - busy
    size = sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())
    result = {"build_s": round(seconds, 1), "build_cpu_s": round(busy, 1)}
    result |= {"disk_mib": round(size / 2**20), "build_peak_mib": peak_mib()}
    queries, truth = np.load(data / "queries.npy"), np.load(data / "truth.npy")
    if isinstance(engine, Exact):
        queries, truth = queries[:200], truth[:200]
    engine.open(folder)
    for breadth in engine.breadths():
        engine.set_breadth(breadth)
        found = recall(engine, [engine.one(query) for query in queries], truth)
        if found >= GOAL:
            break
    engine.close()
    return {**result, "breadth": breadth, "recall": round(found, 4)}


def child_query(engine: Any, folder: Path, data: Path, breadth: int) -> dict[str, Any]:
    queries, truth = np.load(data / "queries.npy"), np.load(data / "truth.npy")
    if isinstance(engine, Exact):
        queries, truth = queries[:200], truth[:200]
    start = time.perf_counter()
    engine.open(folder)
    engine.set_breadth(breadth)
    engine.one(queries[0])
    opened = time.perf_counter() - start
    for query in queries[-200:]:
        engine.one(query)
    waits, answers = [], []
    busy = time.process_time()
    for query in queries:
        start = time.perf_counter()
        answers.append(engine.one(query))
        waits.append(time.perf_counter() - start)
    busy = time.process_time() - busy
    start = time.perf_counter()
    for first in range(0, len(queries), BATCH):
        engine.many(queries[first : first + BATCH])
    batched = time.perf_counter() - start
    result = {
        "qps": round(len(waits) / sum(waits), 1),
        "p50_us": round(float(np.quantile(waits, 0.5)) * 1e6, 1),
        "p99_us": round(float(np.quantile(waits, 0.99)) * 1e6, 1),
        "cpu_us": round(busy / len(waits) * 1e6, 1),
        "batch_qps": round(len(queries) / batched, 1),
        "open_s": round(opened, 3),
        "peak_mib": peak_mib(),
        "recall": round(recall(engine, answers, truth), 4),
        "load": round(os.getloadavg()[0], 2),
    }
    if hasattr(engine, "filters"):
        result["filtered"] = filtered(engine, queries[:300], np.load(data / "items.npy", mmap_mode="r"))
    engine.close()
    return result


def child_duel(ours: Any, alone: Any, work: Path, data: Path) -> dict[str, Any]:
    """Both in one process, taking turns query by query: what share of the bare engine's speed is left."""
    queries = np.load(data / "queries.npy")
    for engine, name in ((ours, "lookalike"), (alone, "qdrant-edge alone")):
        engine.open(folder_of(work, name))
        engine.set_breadth(engine.breadths()[0])
        for query in queries[-200:]:
            engine.one(query)
    waits: dict[Any, list[float]] = {ours: [], alone: []}
    for number, query in enumerate(queries):
        for engine in (ours, alone) if number % 2 else (alone, ours):
            start = time.perf_counter()
            engine.one(query)
            waits[engine].append(time.perf_counter() - start)
    batches: dict[Any, list[float]] = {ours: [], alone: []}
    for number, first in enumerate(range(0, len(queries), BATCH)):
        for engine in (ours, alone) if number % 2 else (alone, ours):
            start = time.perf_counter()
            engine.many(queries[first : first + BATCH])
            batches[engine].append(time.perf_counter() - start)
    one = [float(np.median(waits[engine])) for engine in (ours, alone)]
    many = [float(np.median(batches[engine])) for engine in (ours, alone)]
    return {
        "p50_us": {"lookalike": round(one[0] * 1e6, 1), "qdrant-edge alone": round(one[1] * 1e6, 1)},
        "one_at_a_time": round(one[1] / one[0], 3),
        "batches": round(many[1] / many[0], 3),
    }


def folder_of(work: Path, name: str) -> Path:
    return work / name.replace(" ", "-")


def filtered(engine: Any, queries: np.ndarray, items: np.ndarray) -> dict[str, Any]:
    results = {}
    for name, where in engine.filters.items():
        keep = 10 if "category" in where else 100
        rest = int(next(iter(where.values()))[1:])
        allowed = np.ascontiguousarray(items[rest::keep])
        truth = np.argsort(-(queries @ allowed.T), axis=1)[:, :K] * keep + rest
        waits, answers = [], []
        for query in queries:
            start = time.perf_counter()
            answers.append(engine.filtered(query, where))
            waits.append(time.perf_counter() - start)
        results[name] = {
            "qps": round(len(waits) / sum(waits), 1),
            "p50_us": round(float(np.quantile(waits, 0.5)) * 1e6, 1),
            "recall": round(recall(engine, answers, truth), 4),
        }
    return results


# The run.


def step(kind: str, name: str, work: Path, extra: int = 0) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", kind, name, str(work), str(extra)]
    paths = os.pathsep.join([str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True, env=environment)
    if done.returncode:
        return {"error": f"ended with {done.returncode}"}
    return dict(json.loads(done.stdout.splitlines()[-1]))


def spread(values: list[float]) -> dict[str, float]:
    return {"median": round(statistics.median(values), 3), "min": min(values), "max": max(values)}


def summarise(engines: dict[str, Any]) -> dict[str, Any]:
    summary: dict[str, Any] = {}
    for name, entry in engines.items():
        rounds = [r for r in entry.get("rounds", []) if "qps" in r]
        if rounds:
            summary[name] = {
                key: spread([r[key] for r in rounds])
                for key in ("qps", "p50_us", "p99_us", "cpu_us", "batch_qps", "open_s")
            }
            summary[name]["recall"] = min(r["recall"] for r in rounds)
            summary[name]["peak_mib"] = max(r["peak_mib"] for r in rounds)
    return summary


def ratios(duels: list[dict[str, Any]]) -> dict[str, Any]:
    good = [duel for duel in duels if "one_at_a_time" in duel]
    return {key: spread([duel[key] for duel in good]) for key in ("one_at_a_time", "batches")} if good else {}


def machine() -> dict[str, Any]:
    info = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":")[1].strip() for line in info if line.startswith("model name")), platform.processor())
    flags = next((line.split(":")[1].split() for line in info if line.startswith("flags")), [])
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    vector = [flag for flag in flags if flag.startswith(("avx", "amx", "fma"))]
    return {"cpu": model, "cores": os.cpu_count(), "memory_gib": round(memory, 1), "flags": vector}


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("numpy", "qdrant-edge-py", "faiss-cpu", "hnswlib", "usearch", "lancedb"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "absent"
    return found


def run(arguments: argparse.Namespace) -> None:
    work = arguments.work
    data = work / "data"
    label = f"{arguments.size // 1_000_000}m" if arguments.size >= 1_000_000 else f"{arguments.size // 1000}k"
    out = arguments.out or RESULTS / f"search-{label}.json"
    if not (data / "truth.npy").exists():
        data.mkdir(parents=True, exist_ok=True)
        make_data(data, arguments.size, arguments.dim, arguments.queries)
    asked = len(np.load(data / "queries.npy", mmap_mode="r"))  # data of an earlier run are used again
    document: dict[str, Any] = json.loads(out.read_text()) if arguments.add and out.exists() else {"engines": {}}
    command = "python benchmarks/search.py " + " ".join(arguments.shown)
    document = {
        "benchmark": "search",
        "date": str(date.today()),
        "command": f"{document['command']}; {command}" if "command" in document else command,
        "machine": machine(),
        "versions": versions(),
        "data": {
            "items": arguments.size, "dim": arguments.dim, "queries": asked, "k": K,
            "kind": f"unit vectors in {max(10, arguments.size // 100)} clusters, decaying spread; perturbed items ask",
        },
        "parameters": {"links": LINKS, "ef_construct": CONSTRUCT, "goal_recall": GOAL, "batch": BATCH},
        "engines": document["engines"],
        "duels": document.get("duels", []),
    }  # fmt: skip

    def save() -> None:
        document["summary"] = summarise(document["engines"])
        document["ours / engine alone"] = ratios(document["duels"])
        out.parent.mkdir(exist_ok=True)
        out.write_text(json.dumps(document, indent=1) + "\n")

    chosen = [name for name in ENGINES if not arguments.engines or name in arguments.engines]
    for name in chosen:
        built = step("build", name, work)
        print(name, built, flush=True)
        document["engines"][name] = {"returns_payloads": ENGINES[name].payloads, "build": built, "rounds": []}
        save()
    for number in range(arguments.rounds):
        for name in chosen:
            entry = document["engines"][name]
            if "error" not in entry["build"]:
                entry["rounds"].append(step("query", name, work, entry["build"]["breadth"]))
                print(number, name, entry["rounds"][-1], flush=True)
                save()
        if {"lookalike", "qdrant-edge alone"} <= set(chosen):
            document["duels"].append(step("duel", "lookalike", work))
            print(number, "duel", document["duels"][-1], flush=True)
            save()


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        kind, name, work, extra = sys.argv[2:6]
        folder, data, engine = folder_of(Path(work), name), Path(work) / "data", ENGINES[name]()
        if kind == "build":
            answer = child_build(engine, folder, data)
        elif kind == "duel":
            answer = child_duel(engine, Edge(), Path(work), data)
        else:
            answer = child_query(engine, folder, data, int(extra))
        print(json.dumps(answer))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--queries", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--engines", nargs="*", choices=list(ENGINES), help="default: all")
    parser.add_argument("--add", action="store_true", help="keep the other engines' results in the file")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/search-SIZE.json")
    parser.add_argument("--work", type=Path, default=Path("build/benchmark-search"), help="data and indexes; kept")
    arguments = parser.parse_args()
    words = sys.argv[1:]
    private = {i + j for i, word in enumerate(words) if word in ("--work", "--out") for j in (0, 1)}
    arguments.shown = [shlex.quote(word) for i, word in enumerate(words) if i not in private]
    arguments.work = arguments.work / str(arguments.size)
    run(arguments)


if __name__ == "__main__":
    main()
