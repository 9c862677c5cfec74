"""Metrics of the runs into a store for Prometheus, on a port of this machine alone.

::

    with metrics_server("labels", port=9105) as server:     # http://127.0.0.1:9105/metrics
        server.handle_request()                             # or server.serve_forever()

The figures come from the store, as those of :mod:`.status` do: one process on any machine shows the whole run.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from ...errors import MaskmillError, UsageError
from .status import Status, read_status

HOST = "127.0.0.1"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""Content type of Prometheus' text format."""


def metrics_text(status: Status) -> str:
    """Return the figures of a status in Prometheus' text format."""
    lines: list[str] = []
    for name, kind, text, samples in _metrics(status):
        lines += [f"# HELP maskmill_{name} {text}", f"# TYPE maskmill_{name} {kind}"]
        for labels, value in samples.items():
            pairs = ",".join(f'{key}="{_escaped(label)}"' for key, label in labels)
            lines.append(f"maskmill_{name}{{{pairs}}} {value:g}" if pairs else f"maskmill_{name} {value:g}")
    return "\n".join(lines) + "\n"


def metrics_server(
    store: str | os.PathLike[str], port: int, options: Mapping[str, Any] | None = None
) -> ThreadingHTTPServer:
    """Return a server of ``/metrics`` on the loopback address; port 0 takes a free one. Raises :class:`UsageError`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path != "/metrics":
                self.send_error(404)
                return
            try:
                data, code = metrics_text(read_status(store, options)).encode(), 200
            except (MaskmillError, OSError) as error:
                data, code = f"{error}\n".encode(), 503
            self.send_response(code)
            self.send_header("Content-Type", CONTENT_TYPE)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            """Write no line per request."""

    try:
        return ThreadingHTTPServer((HOST, port), Handler)
    except OSError as error:
        raise UsageError(f"cannot listen on port {port}: {error.strerror}; choose another --metrics PORT") from error


_Samples = dict[tuple[tuple[str, str], ...], float]


def _metrics(status: Status) -> Iterator[tuple[str, str, str, _Samples]]:
    yield "images", "gauge", "Labeled images in the store.", {(): status.images}
    yield "inputs", "gauge", "Inputs in the store, labeled or rejected.", {(): status.inputs}
    yield "rejects", "gauge", "Rejected inputs in the store.", {(): status.rejects}
    yield "run_active", "gauge", "1 while a driver is running.", {(): float(status.run in ("starting", "labeling"))}
    yield "run_planned", "gauge", "Inputs that the run has planned so far.", {(): status.planned}
    yield "run_done", "gauge", "Inputs that the run has labeled or rejected.", {(): status.done}
    yield "run_waiting", "gauge", "Finished inputs that are not committed.", {(): status.waiting}
    kinds: _Samples = {(("kind", kind),): number for kind, number in status.rejects_by_kind.items()}
    yield "run_rejects", "gauge", "Rejects of the run that are committed.", kinds
    yield "commits_total", "counter", "Commits of the run.", {(): status.commits}
    yield "commit_seconds_total", "counter", "Time of these commits.", {(): status.commit_seconds}
    states: _Samples = {}
    for worker in status.workers:
        states[(("state", worker.state),)] = states.get((("state", worker.state),), 0.0) + 1
    yield "workers", "gauge", "Worker processes.", states
    stalled: _Samples = {(("worker", w.name), ("stage", w.stalled)): 1.0 for w in status.workers if w.stalled}
    yield "worker_stalled", "gauge", "1 for a stage that has worked on one item for half a minute.", stalled
    rates: _Samples = {(("worker", worker.name),): worker.images_per_second for worker in status.workers}
    yield "worker_images_per_second", "gauge", "Speed of each worker.", rates
    stages = status.stages.values()
    yield "stage_items_total", "counter", "Items of each stage.", {(("stage", s.name),): s.items for s in stages}
    yield (
        "stage_busy_seconds_total",
        "counter",
        "Time inside each stage.",
        {(("stage", s.name),): s.busy for s in stages},
    )
    cpu: _Samples = {(("stage", stage.name),): stage.cpu for stage in stages}
    yield "stage_cpu_seconds_total", "counter", "Processor time inside each stage.", cpu
    idle: _Samples = {}
    for stage in stages:
        if status.seconds and stage.threads:
            idle[(("stage", stage.name),)] = max(0.0, 1 - stage.busy / (stage.threads * status.seconds))
    yield "stage_idle_share", "gauge", "Share of the time in which the threads of a stage waited.", idle


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
