"""Measure `ituning serve` under load, on this machine. Linux only.

    OMP_NUM_THREADS=1 python examples/benchmark_serving.py --model outputs/captioner/best --images photos/
    OMP_NUM_THREADS=1 python examples/benchmark_serving.py ... --minutes 10 --overload 2

Server, clients and reference are separate processes. The reference is `ituning_hf.caption` with the server's
batch size on the same images. The table has the medians over the rounds, each of which measures the reference
and every number of clients. CPU seconds are those of the server or of the reference.

With --minutes, requests arrive at --overload times the measured capacity, whether or not earlier ones were
answered. Every request must be captioned (200) or refused (429, 503), and a caption must be that of the image
alone.
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import re
import statistics
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from itertools import cycle, islice
from pathlib import Path
from typing import Any, NamedTuple
from urllib.request import urlopen

from benchmark_data import memory
from benchmarking import Row, make_report, positive, publish

import ituning_hf
from ituning_hf.data.images import iter_images
from ituning_hf.serving.arguments import ServerArguments

PROCESSES: Any = multiprocessing.get_context("spawn")
BATCH_SIZE = ServerArguments.max_batch
REFERENCE = f"caption, batches of {BATCH_SIZE}"
ANSWERS = (200, 429, 503)
TIMEOUT = 600  # seconds without an answer

_load_captioner = cache(ituning_hf.load_captioner)


class Answer(NamedTuple):
    """The status, or None if there was no answer; the caption, if it is 200; and the seconds."""

    status: int | None
    caption: str | None
    seconds: float


@dataclass(frozen=True)
class Server:
    """`ituning serve` in another process."""

    pid: int
    address: str  # host:port

    def caption(self, image: bytes) -> Answer:
        """Request the caption of an image, on a new connection."""
        start, status, body = time.perf_counter(), None, b""
        connection = http.client.HTTPConnection(self.address, timeout=TIMEOUT)
        with suppress(OSError, http.client.HTTPException), closing(connection):
            connection.request("POST", "/caption", image, {"Content-Type": "image/jpeg"})
            response = connection.getresponse()
            status, body = response.status, response.read()
        caption = json.loads(body)["captions"][0] if status == 200 else None
        return Answer(status, caption, time.perf_counter() - start)

    def counters(self) -> tuple[float, float, float]:
        """Return the number of captioned images, the number of batches and the CPU seconds so far."""
        with urlopen(f"http://{self.address}/metrics") as response:
            values = dict(line.rsplit(" ", 1) for line in response.read().decode().splitlines())
        names = ("ituning_batch_images_sum", "ituning_batch_images_count", "process_cpu_seconds_total")
        images, batches, seconds = (float(values[name]) for name in names)
        return images, batches, seconds


@contextmanager
def running_server(model: str) -> Iterator[Server]:
    """Start a server on a free port of the loopback address, and end it."""
    command = [sys.executable, "-m", "ituning_hf.cli", "serve", model, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            found = re.search(r" at http://(\S+)", process.stdout.readline())
            assert found is not None, "the server did not start"
            yield Server(process.pid, found[1])
        finally:
            process.terminate()


def _caption(model: str, images: Sequence[bytes], batch_size: int) -> tuple[list[str], float, float]:
    """Caption images; return the captions, the seconds and the CPU seconds."""
    captioner, processor = _load_captioner(model)
    start, cpu_start = time.perf_counter(), time.process_time()
    captions: Any = ituning_hf.caption(captioner, images, processor, batch_size=batch_size)
    return captions, time.perf_counter() - start, time.process_time() - cpu_start


def send_all(server: Server, images: Sequence[bytes], clients: int) -> tuple[list[Answer], float]:
    """Send each image once, `clients` at a time; return the answers and the seconds."""
    start = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        answers = list(pool.map(server.caption, images))
    return answers, time.perf_counter() - start


def measure(server: Server, images: Sequence[bytes], clients: int) -> Row:
    """Caption each image once with a number of clients."""
    before = server.counters()
    answers, elapsed = send_all(server, images, clients)
    assert {answer.status for answer in answers} == {200}
    captioned, batches, cpu = (x - y for x, y in zip(server.counters(), before, strict=True))
    milliseconds = [1000 * answer.seconds for answer in answers]
    return {
        "images/s": len(images) / elapsed,
        "p50 ms": statistics.median(milliseconds),
        "p95 ms": statistics.quantiles(milliseconds, n=20)[-1],
        "images a batch": captioned / batches,
        "CPU s per image": cpu / len(images),
    }


def throughput(server: Server, reference: Any, images: Sequence[bytes], args: Any) -> list[Row]:
    """Measure the reference and each number of clients in each round; return the medians over the rounds."""
    measured: dict[str, list[Row]] = defaultdict(list)
    for _ in range(args.rounds):
        _, elapsed, cpu = reference.apply(_caption, (args.model, images, BATCH_SIZE))
        rows = {REFERENCE: {"images/s": len(images) / elapsed, "CPU s per image": cpu / len(images)}}
        rows |= {f"server, {clients} at once": measure(server, images, clients) for clients in args.clients}
        for name, row in rows.items():
            measured[name].append(row | {"/ caption": row["images/s"] / rows[REFERENCE]["images/s"]})
    columns = [*rows[f"server, {args.clients[-1]} at once"], "/ caption"]
    return [
        {"": name} | {c: statistics.median(row[c] for row in rows) if c in rows[0] else None for c in columns}
        for name, rows in measured.items()
    ]


def overload(server: Server, reference: Any, images: Sequence[bytes], args: Any) -> list[Row]:
    """Send requests faster than the server can answer them; count the answers and check the captions."""
    expected = reference.apply(_caption, (args.model, images, 1))[0]
    rate = args.overload * len(images) / send_all(server, images, max(args.clients))[1]
    numbers = [*islice(cycle(range(len(images))), max(1, round(60 * args.minutes * rate)))]
    pending, start = [], time.perf_counter()
    resident: list[tuple[float, float]] = []  # seconds, MB
    with ThreadPoolExecutor(4 * ServerArguments.max_queue) as pool:
        for sent, number in enumerate(numbers):
            time.sleep(max(0.0, start + sent / rate - time.perf_counter()))
            pending.append(pool.submit(server.caption, images[number]))
            resident.append((time.perf_counter() - start, memory(f"/proc/{server.pid}/status", "VmRSS")))
        answers = [future.result() for future in pending]
    statuses = Counter(answer.status for answer in answers)
    captions = [(answer.caption, expected[i]) for i, answer in zip(numbers, answers, strict=True)]
    last = resident[-1][0] - 60
    values = {
        "requests a second": rate,
        "requests": len(answers),
        **{f"status {status}": statuses[status] for status in ANSWERS},
        "other statuses, or no answer": sum(answer.status not in ANSWERS for answer in answers),
        "captions other than alone": sum(caption not in (None, alone) for caption, alone in captions),
        "MB in the first minute": statistics.median(mb for seconds, mb in resident if seconds <= 60),
        "MB in the last minute": statistics.median(mb for seconds, mb in resident if seconds >= last),
    }
    return [{"": name, "value": value} for name, value in values.items()]


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run the measurements, and return the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", required=True, help="the captioner's folder or Hub id")
    parser.add_argument("--images", required=True, help="a folder of image files")
    parser.add_argument("--num_images", type=positive, default=128)
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--clients", type=positive, nargs="+", default=[1, 8, 32])
    parser.add_argument("--minutes", type=float, help="measure an overload of this duration instead")
    parser.add_argument("--overload", type=float, default=2.0, help="arrivals / capacity (default: 2)")
    parser.add_argument("--report", type=Path, metavar="FILE.json", help="write the tables there too")
    args = parser.parse_args(argv)
    images = [Path(file).read_bytes() for file in islice(iter_images(args.images), args.num_images)]
    report = make_report(__file__, argv, "cpu")
    with PROCESSES.Pool(1) as reference, running_server(args.model) as server:
        reference.apply(_caption, (args.model, images[:BATCH_SIZE], BATCH_SIZE))
        send_all(server, images[:BATCH_SIZE], BATCH_SIZE)  # to warm up
        if args.minutes is None:
            report["tables"]["throughput"] = throughput(server, reference, images, args)
        else:
            report["tables"]["overload"] = overload(server, reference, images, args)
    publish(report, args.report)
    return report


if __name__ == "__main__":
    main()
