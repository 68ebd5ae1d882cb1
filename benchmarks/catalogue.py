"""Catalogues of a million rows: peak memory and seconds of reading and describing, by format.

    python benchmarks/catalogue.py [--rows 1000000] [--scratch DIR] [--out …/catalogue.json]

Needs Linux (memory is read from /proc), about 1.5 GB of disk, and `lookalike[catalogue]` for Parquet. The rows are made
up after the metadata of products as they were once published: an id, a title, a description, a price, a URL of a
picture, nested categories, lists of related products; a tenth of them lacks something. Each measurement is a process of
its own.

========  =============================================================================================================
read      every product drawn from `lookalike.products.products`
describe  `lookalike catalogue describe`, without pictures, since there are none
========  =============================================================================================================
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

from encode import DATE, machine, versions

WORDS = [
    a + b for a in ("red", "blue", "long", "short", "warm", "light") for b in ("shirt", "shoe", "watch", "bag", "hat")
]
MAPPING = "id=asin,image=imUrl,category=categories"
READ = """
import json, sys, time
from lookalike.products import products
from lookalike.tables import Problems
began, problems, count = (time.perf_counter(), time.process_time()), Problems(), 0
for product in products(sys.argv[1], json.loads(sys.argv[2]), problems):
    count += 1
"""
DESCRIBE = """
import json, sys, time
from lookalike.describe import describe
began = time.perf_counter(), time.process_time()
document = describe(sys.argv[1], json.loads(sys.argv[2]))
count = document["rows"]
"""
TELL = """
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
took = time.perf_counter() - began[0], time.process_time() - began[1]
print(json.dumps({"rows": count, "took": took, "peak": peak}))
"""


@cache
def pattern(number: int) -> tuple:
    """What a thousand rows share, in turn."""
    dice = random.Random(number)
    kind = dice.choice(WORDS)
    title, description = (" ".join(dice.choices(WORDS, k=length)) for length in (6, 24))
    return (
        title,
        description,
        [["Clothing", kind[:4], kind], ["Sale"]],
        [f"B{dice.randrange(10**6):09}" for _ in range(8)],
    )


def product(number: int) -> dict:
    """Row `number`, the same in every format."""
    title, description, categories, related = pattern(number % 1000)
    row = {
        "asin": f"B{number - (number % 1000 == 9):09}",
        "title": f"{title} {number}",
        "description": description,
        "price": number % 19_900 / 100,
        "imUrl": f"http://pictures.example/I/{number:09}.jpg",
        "categories": categories,
        "also_bought": related,
    }
    if number % 10 == 3:
        del row["price"]
    if number % 100 == 7:
        del row["imUrl"]
    return row


def write_csv(path: Path, rows: int) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(product(0)))
        table.writeheader()
        for number in range(rows):
            table.writerow({k: json.dumps(v) if isinstance(v, list) else v for k, v in product(number).items()})


def write_lines(text: Callable[[dict], str], packed: bool) -> Callable[[Path, int], None]:
    def write(path: Path, rows: int) -> None:
        with gzip.open(path, "wt", compresslevel=1) if packed else path.open("w") as file:
            for number in range(rows):
                file.write(text(product(number)) + "\n")

    return write


def write_array(path: Path, rows: int) -> None:
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            file.write(("," if number else "[") + json.dumps(product(number)))
        file.write("]")


def write_parquet(path: Path, rows: int) -> None:
    import pyarrow
    from pyarrow import parquet

    schema = pyarrow.Table.from_pylist([product(0)]).schema
    with parquet.ParquetWriter(path, schema) as file:
        for start in range(0, rows, 100_000):
            some = [product(number) for number in range(start, min(rows, start + 100_000))]
            file.write_table(pyarrow.Table.from_pylist(some, schema))


FORMATS: dict[str, tuple[str, Callable[[Path, int], None]]] = {
    "JSON lines, gzip": ("t.jsonl.gz", write_lines(json.dumps, True)),
    "Python dicts, gzip": ("t.json.gz", write_lines(repr, True)),
    "CSV": ("t.csv", write_csv),
    "Parquet": ("t.parquet", write_parquet),
    "JSON array": ("t.json", write_array),
}


def measure(code: str, path: Path) -> dict:
    mapping = dict(part.split("=") for part in MAPPING.split(","))
    command = [sys.executable, "-c", code + TELL, str(path), json.dumps(mapping)]
    told = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return {
        "products": told["rows"],
        "seconds": round(told["took"][0], 1),
        "processor_seconds": round(told["took"][1], 1),
        "peak_rss_mib": round(told["peak"] / 1024),
    }


def measured(home: Path, rows: int) -> Iterator[tuple[str, dict]]:
    for name, (file, write) in FORMATS.items():
        path, began = home / file, time.perf_counter()
        write(path, rows)
        print(f"{name}: {path.stat().st_size / 1e6:.0f} MB written in {time.perf_counter() - began:.0f} s", flush=True)
        result = {"file_mb": round(path.stat().st_size / 1e6), "read": measure(READ, path)}
        if name in ("JSON lines, gzip", "Parquet"):  # what describes is the same for all
            result["describe"] = measure(DESCRIBE, path)
        path.unlink()
        print(f"{name}: {result}", flush=True)
        yield name, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--scratch", type=Path, help="where the catalogues go; by default a temporary folder")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "catalogue.json")
    asked = parser.parse_args()
    report = {
        "what": __doc__.splitlines()[0],
        "command": "python benchmarks/catalogue.py" + f" --rows {asked.rows}" * (asked.rows != 1_000_000),
        "date": DATE,
        "machine": machine(),
        "versions": versions("lookalike", "pyarrow", "numpy"),
        "note": "on a machine busy with other work processor_seconds say more than seconds",
        "rows": asked.rows,
        "formats": {},
    }
    with tempfile.TemporaryDirectory(dir=asked.scratch) as home:
        for name, result in measured(Path(home), asked.rows):
            report["formats"][name] = result
            asked.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
