"""Faults of a bucket, and of processes whose store and photos are in one; ``run_faults.py`` runs them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from maskmill.engine.cluster.leases import Leases
from tests.engine.cluster.bucket_proxy import Proxy

Finish = Callable[[], None]
FAULTS: dict[str, Callable[[Any, Finish], None]] = {}


def fault(function: Callable[[Any, Finish], None]) -> Callable[[Any, Finish], None]:
    """Enter a fault in the table under the function's name."""
    FAULTS[function.__name__.replace("_", "-")] = function
    return function


@contextmanager
def bucket(run: Any) -> Iterator[Proxy]:
    """Put the store and the photos into a bucket behind a proxy."""
    from tests.engine.cluster.bucket_server import Server, upload

    server = Server()
    proxy = Proxy(server.port)
    run.server = server.process
    run.store, run.endpoint = "s3://bucket/store", proxy.url
    if run.photos_in_bucket:
        upload(run.folder / run.photos, "s3://bucket/photos", run.storage_options)
        run.photos = "s3://bucket/photos"
    try:
        yield proxy
    finally:
        server.process.kill()
        server.process.wait()


def leases_of(run: Any) -> Leases:
    return Leases(run.store, run.storage_options)


def bad_bucket(chances: dict[str, float], run: Any, finish: Finish) -> None:
    """The bucket's server answers a share of the requests badly, from the beginning."""
    with bucket(run) as proxy:
        proxy.chances = chances
        run.begin()
        run.wait("first", 420)
        run.lines["first"].append(f"requests: {dict(proxy.counts)}")
        proxy.chances = {}
        finish()


FAULTS["bucket-errors"] = partial(bad_bucket, {"500": 0.1, "503": 0.1})
FAULTS["bucket-slow-down"] = partial(bad_bucket, {"503": 0.4})
FAULTS["bucket-slow"] = partial(bad_bucket, {"slow": 0.1, "503": 0.05})
FAULTS["bucket-cuts"] = partial(bad_bucket, {"reset": 0.05, "cut": 0.05})
FAULTS["bucket-lost-answers"] = partial(bad_bucket, {"lost": 0.1})


@fault
def bucket_away(run: Any, finish: Finish) -> None:
    """The network between the processes and the bucket is cut for 40 s: connections end, new ones end as well."""
    with bucket(run) as proxy:
        run.begin()
        run.until(lambda: run.rows() >= 16)
        proxy.chances = {"reset": 1.0}
        time.sleep(40)
        proxy.chances = {}
        run.wait("first", 420)
        run.lines["first"].append(f"requests: {dict(proxy.counts)}")
        finish()


def outage(status: str, run: Any, finish: Finish) -> None:
    """For two minutes the bucket's server is silent, or refuses every request."""
    with bucket(run) as proxy:
        run.begin()
        run.until(lambda: run.rows() >= 16)
        if status:
            proxy.chances = {status: 1.0}
        else:
            run.server.send_signal(signal.SIGSTOP)
        time.sleep(120)
        proxy.chances = {}
        run.server.send_signal(signal.SIGCONT)
        run.wait("first", 420)
        run.lines["first"].append(f"requests: {dict(proxy.counts)}")
        finish()


FAULTS["bucket-silent-for-two-minutes"] = partial(outage, "")
FAULTS["bucket-unavailable-for-two-minutes"] = partial(outage, "503")


@fault
def bucket_forbidden(run: Any, finish: Finish) -> None:
    """The bucket's name is wrong."""
    with bucket(run):
        run.store, right = "s3://nobody/store", run.store
        run.begin()
        run.wait("first", 60)
        run.store = right
        finish()


@fault
def bucket_workers_killed(run: Any, finish: Finish) -> None:
    """Three times, a process that labels into the bucket is killed; in an array another one starts."""
    with bucket(run):
        run.begin()
        killed: set[int] = set()
        for number in range(1, 4):
            run.until(lambda number=number: run.rows() >= 32 * number)
            leader = (leases_of(run).driver() or {}).get("process")
            numbers = [record["process"] for record in leases_of(run).workers().values()]
            for process in sorted({*numbers} - {leader} - killed)[:1]:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
                    killed.add(process)
            if run.runner == "array":
                run.start()
        run.wait("first", 420)
        run.lines["first"].append(f"{len(killed)} workers killed")
        finish()


@fault
def bucket_driver_killed(run: Any, finish: Finish) -> None:
    """The driver is killed between two commits; in an array another process takes its place."""
    with bucket(run):
        run.begin()
        run.until(lambda: run.rows() >= 32)
        os.kill((leases_of(run).driver() or {})["process"], signal.SIGKILL)
        run.wait("first", 420)
        finish()


@fault
def bucket_half_commit(run: Any, finish: Finish) -> None:
    """The driver is killed inside a commit, when the bucket has the labels and not yet their inputs."""
    with bucket(run):
        run.begin(fault="hold:3")
        run.until((run.folder / "committing").exists)
        os.kill((leases_of(run).driver() or {})["process"], signal.SIGKILL)
        run.lines["first"].append(f"{run.rows('images')} labels and {run.rows()} inputs stored")
        run.wait("first", 420)
        finish()


@fault
def bucket_all_killed_in_a_commit(run: Any, finish: Finish) -> None:
    """Every process is killed inside a commit, twice."""
    with bucket(run):
        for _ in range(2):
            Path(run.folder / "committing").unlink(missing_ok=True)
            run.begin(fault="hold:3")
            run.until((run.folder / "committing").exists)
            for record in leases_of(run).workers().values():
                with suppress(ProcessLookupError):
                    os.kill(record["process"], signal.SIGKILL)
            for process in run.processes:
                process.kill()
            run.wait("first")
            run.lines["first"].append(f"{run.rows('images')} labels and {run.rows()} inputs stored")
        finish()
