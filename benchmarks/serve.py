"""The server under load, asked at random, and killed: what it answers, how fast, in how much memory.

    python benchmarks/serve.py load PICTURES [--clients 200] [--seconds 60]     from a second process, on loopback
    python benchmarks/serve.py schema [--calls 20000]                           schemathesis over the OpenAPI document

`load` indexes the pictures, serves them from a process of its own, and lets as many clients as asked for upload one
picture after the other, each as soon as it has its answer. Before and after, the encoder alone encodes the same bytes,
so that its rate and the server's come from one run. Results go to benchmarks/results/serve.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import numpy as np

RESULTS = Path(__file__).parent / "results" / "serve.json"
ROOT = Path(__file__).parent.parent


def state() -> dict:
    """What else the machine was doing."""
    return {
        "date": datetime.now().isoformat(timespec="minutes"),
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores",
        "load_average": round(os.getloadavg()[0], 1),
    }


@contextmanager
def server(location: str, *options: str):
    """The command in a process of its own; its address, once it is ready."""
    command = [sys.executable, "-m", "lookalike", "serve", location, "--port", "0", "--rate", "0", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        address = re.search(r"http://\S+?/", process.stderr.readline())[0]
        while True:
            try:
                urllib.request.urlopen(f"{address}v1/ready", timeout=5)
                break
            except OSError:
                time.sleep(0.1)
        yield process, address
    finally:
        process.terminate()
        process.wait(60)
        process.stderr.close()


def resident(pid: int) -> float:
    """Megabytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


# ── load ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def form(data: bytes) -> bytes:
    head = b'--b\r\nContent-Disposition: form-data; name="picture"; filename="p"\r\n\r\n'
    options = b'\r\n--b\r\nContent-Disposition: form-data; name="options"\r\n\r\n{"k": 10}\r\n--b--\r\n'
    body = head + data + options
    lines = f"POST /v1/search HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n"
    return (lines + "Content-Type: multipart/form-data; boundary=b\r\n\r\n").encode() + body


async def clients(port: int, files: list[Path], count: int, seconds: float) -> dict:
    """`count` clients, each on one connection, each as fast as it is answered. Raw sockets, since cores are few."""
    requests = [form(path.read_bytes()) for path in files]
    times: list[tuple[float, float]] = []
    statuses: Counter[str] = Counter()
    began = time.monotonic()

    async def one(number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        turn = number
        while time.monotonic() < began + seconds:
            start = time.monotonic()
            writer.write(requests[turn % len(requests)])
            await writer.drain()
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(re.search(rb"content-length: (\d+)", head)[1])
            body = await reader.readexactly(length)
            status = head[9:12].decode()
            statuses[status if status != "200" or b'"score":' in body else "200 without answers"] += 1
            times.append((start - began, time.monotonic() - start))
            turn += count
        writer.close()

    done = await asyncio.gather(*map(one, range(count)), return_exceptions=True)
    for error in done:
        if error is not None:
            statuses[type(error).__name__] += 1
    warm = [took for start, took in times if start > 0.1 * seconds]
    whole = max(start + took for start, took in times)
    p50, p99 = np.percentile(warm, [50, 99])
    return {
        "clients": count,
        "seconds": round(whole, 1),
        "answers": len(times),
        "per_second": round(len(times) / whole, 1),
        "p50_ms": round(1e3 * p50, 1),
        "p99_ms": round(1e3 * p99, 1),
        "p99_over_p50": round(p99 / p50, 2),
        "errors": {status: number for status, number in statuses.items() if status != "200"},
    }


def alone(files: list[Path], seconds: float) -> float:
    """Pictures a second of the encoder by itself, from bytes in memory."""
    from lookalike import Encoder

    encoder = Encoder.default()
    data = [path.read_bytes() for path in files]
    encoder.images(data[:32])
    began, done = time.monotonic(), 0
    while time.monotonic() - began < seconds:
        for outcome in encoder.stream(data):
            done += outcome.vector is not None
            if time.monotonic() - began > seconds:
                break
    return done / (time.monotonic() - began)


def load(pictures: str, count: int, seconds: float, most: int) -> dict:
    from lookalike.cli import main
    from lookalike.images import facts

    files = sorted(path for path in Path(pictures).rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    files = files[:: max(1, len(files) // most)][:most]
    sizes = [facts(path.read_bytes()) for path in files]
    pixels = float(np.mean([size["width"] * size["height"] for size in sizes]))
    with tempfile.TemporaryDirectory() as scratch:
        location = f"{scratch}/the.index"
        try:
            main(["index", *map(str, files), "--to", location])
        except SystemExit as stopped:
            assert not stopped.code
        rounds = []
        memory: list[tuple[float, float]] = []
        with server(location) as (process, address):
            port = int(address.rsplit(":", 1)[1].strip("/"))
            began = time.monotonic()
            for _ in range(3):
                before = alone(files, seconds / 12)
                command = [sys.executable, __file__, "clients", str(port), str(count), str(seconds / 3)]
                driver = subprocess.Popen([*command, *map(str, files)], stdout=subprocess.PIPE, text=True)
                while driver.poll() is None:
                    memory.append((time.monotonic() - began, resident(process.pid)))
                    time.sleep(0.5)
                answer = json.loads(driver.stdout.read())
                driver.stdout.close()
                after = alone(files, seconds / 12)
                answer["encoder_per_second"] = round((before + after) / 2, 1)
                answer["of_the_encoder"] = round(answer["per_second"] / answer["encoder_per_second"], 3)
                rounds.append(answer)
            with urllib.request.urlopen(f"{address}v1/metrics") as reply:
                numbers = reply.read().decode()
        batches = re.search(r"batch_pictures_sum (\S+)\nlookalike_encoder_batch_pictures_count (\d+)", numbers)
    whole = memory[-1][0]
    warm = [used for at, used in memory if at > whole / 3]
    return {
        **state(),
        "pictures": {"count": len(files), "megapixels": round(pixels / 1e6, 3)},
        "rounds": rounds,
        "pictures_per_batch": round(float(batches[1]) / int(batches[2]), 1),
        "memory_mb": {
            "at_first": round(memory[0][1]),
            "after_a_third": round(warm[0]),
            "at_the_end": round(warm[-1]),
            "most": round(max(used for _, used in memory)),
        },
    }


# ── schema ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def schema(calls: int, minutes: float) -> dict:
    """So many calls that the document allows or forbids; every answer is compared with it."""
    sys.path.insert(0, str(ROOT / "tests"))
    import schemathesis
    import test_server_schema as test
    from hypothesis import HealthCheck, Phase, assume, given, settings
    from PIL import Image
    from schemathesis.checks import CHECKS
    from schemathesis.generation.modes import GenerationMode

    from lookalike.cli import main
    from lookalike.server.operations import OPERATIONS

    statuses: Counter[int] = Counter()
    failures: list[str] = []
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(24):
            folder = Path(scratch) / "pictures" / f"kind{number % 3}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.effect_noise((40, 40), 20 + 5 * number).convert("RGB").save(folder / f"{number}.png")
        location = f"{scratch}/the.index"
        main_ = ["index", f"{scratch}/pictures", "--to", location, "--model", str(ROOT / "tests/data/tiny")]
        try:
            main(main_)
        except SystemExit as stopped:
            assert not stopped.code
        with server(location, "--writable", "--record") as (_, address):
            api = schemathesis.openapi.from_url(f"{address}v1/openapi.json")
            pairs = [(o, mode) for o in OPERATIONS for mode in GenerationMode if o.body or o.parameters]
            each = calls // len(pairs) + 1
            turns = 0
            while sum(statuses.values()) < calls and turns < 20:
                turns += 1
                for operation, mode in pairs:
                    asked = api[operation.path][operation.method].as_strategy(generation_mode=mode)

                    @given(case=asked)
                    @settings(
                        max_examples=min(each, 150), deadline=None, database=None, derandomize=False,
                        suppress_health_check=list(HealthCheck), phases=[Phase.generate],
                    )  # fmt: skip
                    def ask(case) -> None:
                        assume(mode.value == "positive" or test.is_wrong_on_the_wire(case))  # noqa: B023
                        reply = case.call()
                        statuses[reply.status_code] += 1
                        case.validate_response(reply, checks=CHECKS.get_by_names(test.NAMES))

                    try:
                        ask()
                    except BaseException as error:
                        if isinstance(error, KeyboardInterrupt):
                            raise
                        failures.append(f"{operation.name} {mode.value}: {' '.join(str(error).split())[:600]}")
                    print(operation.name, mode.value, sum(statuses.values()), dict(statuses), failures[-1:], flush=True)
                    if time.monotonic() - began > 60 * minutes:
                        turns = 20
                        break
    return {
        **state(),
        "calls": sum(statuses.values()),
        "seconds": round(time.monotonic() - began),
        "statuses": {str(status): number for status, number in sorted(statuses.items())},
        "server_errors": sum(number for status, number in statuses.items() if status >= 500),
        "failures": failures,
    }


def keep(name: str, result: dict) -> None:
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    found[name] = result
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def main_() -> None:
    if sys.argv[1:2] == ["clients"]:
        port, count, seconds, *files = sys.argv[2:]
        print(json.dumps(asyncio.run(clients(int(port), list(map(Path, files)), int(count), float(seconds)))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    part = parts.add_parser("load")
    part.add_argument("pictures")
    part.add_argument("--clients", type=int, default=200)
    part.add_argument("--seconds", type=float, default=15)
    part.add_argument("--most", type=int, default=400)
    part.add_argument("--name", default="load")
    part = parts.add_parser("schema")
    part.add_argument("--calls", type=int, default=2000)
    part.add_argument("--minutes", type=float, default=60, help="stop after the operation that is being asked then")
    part.add_argument("--name", default="schema")
    given = parser.parse_args()
    if given.part == "load":
        keep(given.name, load(given.pictures, given.clients, given.seconds, given.most))
    else:
        keep(given.name, schema(given.calls, given.minutes))


if __name__ == "__main__":
    main_()
