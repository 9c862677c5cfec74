"""Test and measure everything that needs a GPU, in a fixed time on a bare machine.

    python benchmarks/gpu_session.py --minutes 10 --out DIR

Needs CUDA, CuPy, PyTorch, NumPy, ONNX and pytest, no network and no installation of maskmill. Uses Pillow, OpenCV,
Lance, TensorRT, ONNX Runtime, nvImageCodec, ncu and compute-sanitizer if they are present, and prints the steps that it
skips. Every step writes its result to DIR at once, so an aborted session still yields results;
``DIR/summary.md`` and ``summary.json`` hold all results so far. The exit status is 1 if a step failed.

``gpu_report.py DIR/summary.json`` writes the figures into docs/kernels-gpu.md.

``--small`` shrinks every shape, for a trial run. ``--one KERNEL`` (or ``all``) launches one large case and ends: the
tools of NVIDIA are run on that.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import importlib
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
SHAPES = 200
"""Random shapes per kernel that are compared with the specification."""
LAUNCHES = 20
"""Launches per CUDA graph when a kernel is timed."""
METRICS = (
    "gpu__time_duration.sum,dram__throughput.avg.pct_of_peak_sustained_elapsed,"
    "sm__inst_executed.avg.per_cycle_active,sm__inst_executed.sum,"
    "sm__issue_active.avg.pct_of_peak_sustained_elapsed"
)
PROFILED = ("class_stats", "pcos", "score_counts")
"""Kernels that ncu profiles."""


class Skipped(Exception):
    """A step that this machine cannot run; the text says why."""


def import_maskmill() -> None:
    """Make ``import maskmill`` find this checkout, here and in child processes, if it is not installed."""
    if find_spec("maskmill") is None:
        folder = Path(tempfile.mkdtemp(prefix="maskmill-"))
        (folder / "maskmill").symlink_to(ROOT)
        sys.path.insert(0, str(folder))
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
        importlib.invalidate_caches()


@dataclass
class Session:
    """One run on one machine: where it writes, how long it may take, and the results so far."""

    out: Path
    minutes: float
    small: bool
    cupy: Any
    started: float = field(default_factory=time.monotonic)
    results: dict[str, dict[str, Any]] = field(default_factory=dict)

    def run(self, steps: dict[str, tuple[float, Callable[[Session, float], dict[str, Any]]]]) -> bool:
        """Run the steps within their shares of the time left; returns True if none failed."""
        self.out.mkdir(parents=True, exist_ok=True)
        shares = sum(share for share, _ in steps.values())
        for number, (name, (share, step)) in enumerate(steps.items(), 1):
            left = 60 * self.minutes - (time.monotonic() - self.started)
            budget, shares = max(1.0, left * share / shares), shares - share
            began = time.monotonic()
            try:
                result = step(self, budget)
            except Skipped as reason:
                result = {"skipped": str(reason)}
            except Exception as error:
                result = {"failed": f"{type(error).__name__}: {error}"}
            result["seconds"] = round(time.monotonic() - began, 1)
            self.results[name] = result
            (self.out / f"{number}-{name}.json").write_text(json.dumps(result, indent=1) + "\n")
            (self.out / "summary.json").write_text(json.dumps(self.summary(), indent=1) + "\n")
            (self.out / "summary.md").write_text(markdown(self.summary()))
            state = next((f"{key}: {result[key]}" for key in ("failed", "skipped") if key in result), "done")
            print(f"{name}: {state} ({result['seconds']} s)", flush=True)
        return not any("failed" in result for result in self.results.values())

    def time(self, call: Callable[[], Any], *, graph: bool = True) -> float:
        """Return the median seconds of a call; a graph replays its launches, so that launching costs nothing."""
        num, rounds = (2, 1) if self.small else (LAUNCHES, 7)
        stream, times = self.cupy.cuda.Stream(non_blocking=True), []
        with stream:
            results = [call() for _ in range(num)]  # kernels compile, and the stream's pool grows
            stream.synchronize()
            replay, calls = call, 1
            if graph:
                del results
                stream.begin_capture()
                results = [call() for _ in range(num)]  # kept: launches would share freed memory
                replay, calls = stream.end_capture().launch, num
            for _ in range(rounds):
                started, repeats = time.perf_counter(), 0
                while repeats == 0 or (time.perf_counter() - started < 0.005 and not self.small):
                    replay()
                    repeats += 1
                self.cupy.cuda.Device().synchronize()
                times.append((time.perf_counter() - started) / repeats / calls)
        return float(np.median(times))

    def summary(self) -> dict[str, Any]:
        """Collect the machine and all results."""
        device = self.cupy.cuda.Device()
        name = self.cupy.cuda.runtime.getDeviceProperties(device.id)["name"].decode()
        machine = {"gpu": name, "capability": str(device.compute_capability), "python": platform.python_version()}
        return {"machine": machine, "small": self.small, "steps": self.results}


def compile_kernels(session: Session, seconds: float) -> dict[str, Any]:
    """Compile every instantiation of every kernel, several at a time, so that no later step waits for the compiler."""
    from maskmill.kernels.gpu import device
    from maskmill.kernels.processors import usable_processors

    names = [(source, name) for source, names in device.INSTANTIATIONS.items() for name in names]
    deadline = time.monotonic() + (float("inf") if session.small else seconds)

    def compile_one(kernel: tuple[str, str]) -> bool:
        if time.monotonic() > deadline:
            return False
        device.kernel(*kernel)
        return True

    with ThreadPoolExecutor(usable_processors()) as threads:
        compiled = sum(threads.map(compile_one, names))
    return {"compiled": compiled, "of": len(names)}


def run_tests(session: Session, seconds: float) -> dict[str, Any]:
    """Run the GPU tests of the kernels with pytest."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "--override-ini=addopts="]
    command += ["--import-mode=importlib", str(ROOT / "tests" / "kernels" / "test_gpu_device.py")]
    environment = {**os.environ, "MASKMILL_REQUIRE_GPU": "1"}
    if session.small:
        command += ["-k", "exact_quantiles"]
        environment.pop("MASKMILL_REQUIRE_GPU")
    result = _child(command, 900 if session.small else seconds, cwd=ROOT, env=environment)
    last = (result.stdout.strip().splitlines() or [result.stderr[-300:]])[-1]
    if result.returncode not in (0, 5):
        raise RuntimeError(f"pytest: {last}")
    return {"pytest": last}


def compare(session: Session, seconds: float) -> dict[str, Any]:
    """Compare every kernel with the specification on random shapes, in rounds over all kernels."""
    from gpu_kernels import CASES, difference

    counts, faults = dict.fromkeys(CASES, 0), []
    started = time.monotonic()
    for seed in range(2 if session.small else SHAPES):
        for name, make in CASES.items():
            if time.monotonic() - started > seconds and seed:
                break
            case = make(np.random.default_rng(seed), False)
            found = _on_host(session.cupy, case.on_device(session.cupy)())
            if fault := difference(case, found, case.expected()):
                faults.append(f"{name}, seed {seed}: {fault}")
            counts[name] += 1
    if faults:
        raise RuntimeError(f"{len(faults)} of {sum(counts.values())} cases differ: {'; '.join(faults[:20])}")
    return {"shapes": counts}


def sanitize(session: Session, seconds: float) -> dict[str, Any]:
    """Run compute-sanitizer's memcheck and racecheck on one case per kernel."""
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        raise Skipped("compute-sanitizer is not on PATH")
    results = {}
    for kind in ("memcheck", "racecheck"):
        command = [tool, "--tool", kind, "--error-exitcode", "9", *_one("all", small=True)]
        result = _child(command, seconds / 2)
        (session.out / f"{kind}.txt").write_text(result.stdout + result.stderr)
        if result.returncode != 0:
            raise RuntimeError(f"{kind}: exit status {result.returncode}, see {kind}.txt")
        results[kind] = (result.stdout.strip().splitlines() or [""])[-1]
    return results


def time_kernels(session: Session, seconds: float) -> dict[str, Any]:
    """Measure time and bandwidth of one large case per kernel, as a share of a copy's; profile three with ncu."""
    from gpu_kernels import CASES

    cupy = session.cupy
    source = cupy.zeros((1 << 12,) if session.small else (1 << 28,), np.uint8)
    target = cupy.zeros(source.shape, np.uint8)
    cupy.cuda.Device().synchronize()

    def copy() -> None:
        target[...] = source

    copied = session.time(copy)
    bandwidth = 2 * source.nbytes / copied
    rows = []
    for name, make in CASES.items():
        case = make(np.random.default_rng(0), not session.small)
        call = case.on_device(cupy)
        num_bytes = case.num_bytes(call())
        taken = session.time(call)
        rows.append(
            {
                "kernel": name,
                "case": (make.__doc__ or "").rpartition("large: ")[2].rstrip("."),
                "us": round(1e6 * taken, 2),
                "bytes": num_bytes,
                "share_of_copy": round(num_bytes / taken / bandwidth, 3),
            }
        )
    result: dict[str, Any] = {"copy_gb_per_s": round(bandwidth / 1e9, 1), "kernels": rows}
    tool = shutil.which("ncu")
    if tool is None:
        return result | {"ncu": "not on PATH"}
    return result | {"ncu": {name: _profiled(session, tool, name, seconds / 4) for name in PROFILED}}


def compare_libraries(session: Session, seconds: float) -> dict[str, Any]:
    """Time class_stats, PCOS and peaks against the same in torch, and PCOS in CuPy."""
    if find_spec("torch") is None:
        raise Skipped("torch is not installed")
    import torch
    from gpu_kernels import CASES
    from gpu_peers import peers

    result = {}
    for name, peer in peers(session.cupy, torch).items():
        kernel = name.partition(" ")[0]
        case = CASES[kernel](np.random.default_rng(0), not session.small)
        ours = session.time(case.on_device(session.cupy))
        theirs = session.time(peer(case), graph="CuPy" in name)
        result[name] = {"ours_us": round(1e6 * ours, 2), "theirs_us": round(1e6 * theirs, 2)}
        result[name]["ratio"] = round(theirs / ours, 2)
    return result


def measure_path(session: Session, seconds: float) -> dict[str, Any]:
    """Measure the path from JPEG files to label maps, and the model alone."""
    with _model(session) as (bundle, runtime, weights, files, batch, reasons, _):
        from gpu_path import bare_loop, device_path

        bare = bare_loop(session.cupy, runtime, weights, batch, seconds / 4)
        path = device_path(session.cupy, bundle, runtime, files, batch, seconds / 2)
        facts = {"runtime": repr(runtime), "not_used": reasons, "gflops_per_image": round(weights.flops() / 1e9, 2)}
        share = round(path["images_per_s"] / bare, 3)
        return {**facts, "model_alone_images_per_s": round(bare, 2), "share_of_model_alone": share, **path}


def measure_label_run(session: Session, seconds: float) -> dict[str, Any]:
    """Measure a label run into a store against the model alone; the target is a ratio of 0.95."""
    if find_spec("lance") is None:
        raise Skipped("Lance is not installed")
    with _model(session) as (bundle, runtime, weights, files, batch, _, folder):
        from gpu_path import bare_loop, label_run

        bare = bare_loop(session.cupy, runtime, weights, batch, seconds / 4)
        num = 6 if session.small else max(256, int(bare * seconds / 3))
        run = label_run(bundle, runtime, files, batch, num, folder)
        ratio = round(run["images_per_s"] / bare, 3)
        return {**run, "model_alone_images_per_s": round(bare, 2), "ratio": ratio, "target": 0.95}


def measure_training(session: Session, seconds: float) -> dict[str, Any]:
    """Time a training step against plain PyTorch."""
    if find_spec("torch") is None:
        raise Skipped("torch is not installed")
    from gpu_model import Weights, training_step

    weights = Weights(32, 8, 3) if session.small else Weights(512, 64, 8)
    return training_step(weights, 2 if session.small else 8, 0 if session.small else seconds / 2)


STEPS: dict[str, tuple[float, Callable[[Session, float], dict[str, Any]]]] = {
    "compile": (0.15, compile_kernels),
    "tests": (0.15, run_tests),
    "compare": (0.15, compare),
    "sanitize": (0.1, sanitize),
    "kernels": (0.15, time_kernels),
    "libraries": (0.1, compare_libraries),
    "path": (0.1, measure_path),
    "label": (0.1, measure_label_run),
    "train": (0.05, measure_training),
}
"""The steps in order, each with its share of the time."""


@contextlib.contextmanager
def _model(session: Session) -> Iterator[tuple[Any, ...]]:
    for module, package in (("PIL", "Pillow"), ("cv2", "opencv-python-headless")):
        if find_spec(module) is None:
            raise Skipped(f"{package} is not installed, which decodes photos")
    from gpu_model import Weights
    from gpu_path import open_runtime, photos

    weights, batch = (Weights(32, 4, 4), 2) if session.small else (Weights(512, 64, 8), 16)
    size = (48, 64) if session.small else (768, 1024)
    with tempfile.TemporaryDirectory() as folder:
        bundle = weights.bundle(Path(folder) / "bundle")
        runtime, reasons = open_runtime(bundle, weights, batch)
        bundle = type(bundle).load(bundle.path)
        yield bundle, runtime, weights, photos(4 if session.small else 64, size), batch, reasons, Path(folder)


def _profiled(session: Session, tool: str, kernel: str, seconds: float) -> dict[str, str]:
    """Profile one launch with ncu; returns the metrics of its first kernel."""
    result = _child([tool, "--csv", "--metrics", METRICS, *_one(kernel, small=session.small)], seconds)
    (session.out / f"ncu-{kernel}.csv").write_text(result.stdout)
    lines = [line for line in result.stdout.splitlines() if line.startswith('"')]
    rows = [row for row in csv.DictReader(io.StringIO("\n".join(lines))) if kernel in row.get("Kernel Name", "")]
    metrics = {row["Metric Name"]: f"{row['Metric Value']} {row['Metric Unit']}".strip() for row in rows}
    return metrics or {"failed": (result.stderr or result.stdout)[-300:]}


def _one(kernel: str, *, small: bool) -> list[str]:
    command = [sys.executable, str(Path(__file__).resolve()), "--one", kernel]
    return [*command, "--small"] if small else command


def _child(command: list[str], seconds: float, **options: Any) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False, **options)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"{Path(command[0]).name} took longer than {seconds:.0f} s") from error


def _on_host(cupy: Any, result: Any) -> Any:
    """Copy the arrays of a result to the host."""
    from dataclasses import fields, is_dataclass, replace

    if is_dataclass(result) and not isinstance(result, type):
        arrays = {item.name: getattr(result, item.name) for item in fields(result)}
        return replace(result, **{name: None if a is None else cupy.asnumpy(a) for name, a in arrays.items()})
    return tuple(map(cupy.asnumpy, result)) if isinstance(result, tuple) else cupy.asnumpy(result)


def launch_one(cupy: Any, kernel: str, *, small: bool) -> None:
    """Launch one case of a kernel, or of all."""
    from gpu_kernels import CASES

    for name in CASES if kernel == "all" else (kernel,):
        CASES[name](np.random.default_rng(0), not small).on_device(cupy)()
    cupy.cuda.Device().synchronize()


def markdown(summary: dict[str, Any]) -> str:
    """Format the results."""
    machine, lines = summary["machine"], []
    lines.append(f"Measured on {machine['gpu']} (compute capability {machine['capability']}).\n")
    if summary["small"]:
        lines.append("**A trial run with small shapes: its times mean nothing.**\n")
    for name, result in summary["steps"].items():
        lines.append(f"## {name}\n")
        rows = result.get("kernels")
        if isinstance(rows, list):
            lines += ["| kernel | case | µs | bytes | share of copy bandwidth |", "|---|---|---|---|---|"]
            lines += [
                f"| `{row['kernel']}` | {row['case']} | {row['us']} | {row['bytes']:,} | {row['share_of_copy']} |"
                for row in rows
            ]
            lines.append("")
        facts = {key: value for key, value in result.items() if key != "kernels"}
        lines += [f"* {key}: {json.dumps(value, ensure_ascii=False)}" for key, value in facts.items()]
        lines.append("")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run the session; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10, help="time for all steps (default 10)")
    parser.add_argument("--out", type=Path, default=Path("gpu-session"), help="folder of the results")
    parser.add_argument("--small", action="store_true", help="small shapes, for a trial run")
    parser.add_argument("--one", metavar="KERNEL", help="launch one case of a kernel, or of all, and end")
    options = parser.parse_args(arguments)
    import_maskmill()
    sys.path.insert(0, str(Path(__file__).parent))
    try:
        import cupy

        cupy.cuda.Device().compute_capability  # noqa: B018
    except Exception as error:
        print(f"no usable NVIDIA GPU ({error}); run this on a machine that has one", file=sys.stderr)
        return 1
    if options.one is not None:
        launch_one(cupy, options.one, small=options.small)
        return 0
    return 0 if Session(options.out, options.minutes, options.small, cupy).run(STEPS) else 1


if __name__ == "__main__":
    raise SystemExit(main())
