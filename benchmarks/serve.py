"""Requests a second and latency of the search service, against a bare loop over the same FAISS index.

    python benchmarks/serve.py                      # 10 k and 100 k images; 1, 8 and 64 clients

The service runs in a process of its own, as tools/serve_net.py starts it; clients send features as raw float32
over one kept connection each. Features are those of benchmarks/search.py. Ends with its goals and whether they are
met: with 64 clients at least half of the bare loop's queries a second, since searches that wait go to the index
together, and no request refused. Processor time is the service's own, which what else the machine does hardly changes.
"""

from __future__ import annotations

import argparse
import http.client
import os
import platform
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.goals import Goal, judge
from benchmarks.search import WIDTH, Features
from d3still.deploy import GalleryImage, GalleryIndex, IndexOptions
from d3still.deploy.kinds import add, new_index

SERVICE = Path(__file__).resolve().parents[1] / "tools/serve_net.py"
CLIENTS = (1, 8, 64)
SECONDS = 5.0  # of each measurement
TOPK = 10
GOAL = 0.5  # of the bare loop's rate, with the most clients


def saved_index(images: int, path: Path) -> tuple[GalleryIndex, np.ndarray]:
    """An exact index file over synthetic features, and queries."""
    features = Features(images)
    faiss = new_index(IndexOptions(), WIDTH, images)
    add(faiss, features.gallery)
    embedding = {"part": "gallery", "network": "synthetic", "weights_hash": "0" * 64, "feature_width": WIDTH}
    header = {"embedding": embedding, "networks": {}, "unreadable": {}, "recall": None, "source": None}
    index = GalleryIndex(faiss, [GalleryImage(f"/{number}.png") for number in range(images)], header)
    index.save(path)
    return index, features.queries()


def bare(index: GalleryIndex, queries: np.ndarray) -> tuple[float, list[float], float]:
    """Queries a second, seconds of each, and processor seconds of each, one by one, without a service."""
    times: list[float] = []
    stop, used = time.perf_counter() + SECONDS, time.process_time()
    while time.perf_counter() < stop:
        began = time.perf_counter()
        index.index.search(queries[len(times) % len(queries)][None], TOPK)
        times.append(time.perf_counter() - began)
    return len(times) / sum(times), times, (time.process_time() - used) / len(times)


def processor_seconds(pid: int) -> float:
    """What a process has used so far, in its own code and in the kernel's."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def served(service: int, port: int, queries: np.ndarray, clients: int) -> tuple[float, list[float], float, int]:
    """Requests a second, seconds of each, the service's processor seconds for each, and how many were refused."""
    times: list[float] = []
    used = processor_seconds(service)
    refused, stop = [0], time.perf_counter() + SECONDS

    def ask(first: int) -> None:
        connection, number = http.client.HTTPConnection("127.0.0.1", port, timeout=60), first
        while time.perf_counter() < stop:
            began = time.perf_counter()
            body = queries[number % len(queries)].tobytes()
            connection.request("POST", f"/search?topk={TOPK}", body, {"Content-Type": "application/octet-stream"})
            answer = connection.getresponse()
            answer.read()
            refused[0] += answer.status != 200
            times.append(time.perf_counter() - began)
            number += clients

    began = time.perf_counter()
    threads = [threading.Thread(target=ask, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - began
    return len(times) / seconds, times, (processor_seconds(service) - used) / len(times), refused[0]


def started(index: Path) -> tuple[subprocess.Popen, int]:
    """The service over an index file, once it answers."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, str(SERVICE), "--index", str(index), "--port", str(port)]
    process = subprocess.Popen([*command, "--max-requests", "256"], stderr=subprocess.DEVNULL)
    for _ in range(600):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return process, port
        except OSError:
            time.sleep(0.2)
    process.kill()
    sys.exit("the service does not start")


def row(images: int, how: str, rate: float, times: list[float], used: float) -> str:
    """A row of the table."""
    median, high = np.percentile(times, [50, 99]) * 1000
    return f"| {images:,} | {how} | {rate:,.0f} | {median:.2f} | {high:.2f} | {used * 1000:.2f} |"


def main() -> int:
    """Measure, print, judge; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", type=int, default=[10_000, 100_000])
    args = parser.parse_args()
    threads = os.environ.get("OMP_NUM_THREADS", "unset")
    print(f"{platform.machine()}, {os.cpu_count()} cores, OMP_NUM_THREADS={threads}\n")
    print("| images | who asks | requests/s | p50, ms | p99, ms | processor, ms |\n|---|---|---|---|---|---|")
    goals = []
    for images in args.sizes:
        with tempfile.TemporaryDirectory() as folder:
            index, queries = saved_index(images, Path(folder) / "gallery.index")
            alone, *more = bare(index, queries)
            print(row(images, "a bare FAISS loop", alone, *more), flush=True)
            process, port = started(Path(folder) / "gallery.index")
            try:
                refused = 0
                for clients in CLIENTS:
                    rate, *more, turned_away = served(process.pid, port, queries, clients)
                    refused += turned_away
                    print(row(images, f"{clients} client{'s' if clients > 1 else ''}", rate, *more), flush=True)
                share = f"{images:,} images, {clients} clients, of the bare loop's rate"
                goals += [Goal(share, rate / alone, GOAL, at_least=True)]
                goals += [Goal(f"{images:,} images, requests refused", refused, 0)]
            finally:
                process.terminate()
                process.wait()
    return judge(goals)


if __name__ == "__main__":
    sys.exit(main())
