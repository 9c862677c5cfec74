"""Measure the CPU kernels, each against the function that a user would call instead, in one run.

    python benchmarks/kernels.py [--json] [--only KEY ...] [--rounds 9]

The two sides of a claim alternate; a round repeats a short call until it lasts 50 ms. A figure is the median over the
rounds of the peer's time divided by ours, with its range. Each claim's function describes both sides; a claim with
several cases (such as both layouts) reports the smallest of their medians. Compilation is not timed: ``startup_s`` is
the time in which a fresh process imports the kernels and decodes a small map with a warm disk cache.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np
import torch
from skimage.feature import peak_local_max

from maskmill import kernels

Call = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """The two sides of one measurement."""

    name: str
    ours: Call
    peer: Call


@dataclass(frozen=True)
class Claim:
    """A ratio to reach, and the cases that must reach it."""

    target: float
    cases: Callable[[], Iterator[Case]]


def decode(classes: int, source: tuple[int, int], size: tuple[int, int], layouts: tuple[str, ...]) -> Iterator[Case]:
    """Decode float32 logits to full size.

    Ours: label (the top class if it is in its class's prediction set), confidence and residual dispersion.
    Peer: torch ``interpolate``, ``softmax`` and ``max`` with all threads; for an HWC map, the faster of its strided
    view and a contiguous copy made first.
    """
    rng = np.random.default_rng(0)
    thresholds = np.full(classes, 0.3, np.float32)
    for layout in layouts:
        shape = (classes, *source) if layout == "CHW" else (*source, classes)
        logits = rng.normal(0, 4, shape).astype(np.float32)
        tensor = torch.from_numpy(logits)[None]
        views = [tensor] if layout == "CHW" else [tensor.movedim(-1, 1)]

        def ours(logits=logits, layout=layout):
            outputs = ("label", "confidence", "dispersion")
            return kernels.class_stats(logits, size, layout=layout, thresholds=thresholds, outputs=outputs)

        def peer(view=views[0], contiguous=False):
            with torch.inference_mode():
                view = view.contiguous() if contiguous else view
                upsampled = torch.nn.functional.interpolate(view, size=size, mode="bilinear", align_corners=False)
                return torch.softmax(upsampled, 1).max(1)

        def contiguous_peer(peer=peer):
            return peer(contiguous=True)

        peers = [peer] if layout == "CHW" else [peer, contiguous_peer]
        yield Case(layout, ours, min(peers, key=lambda call: statistics.median(seconds_of(call) for _ in range(5))))


def pcos() -> Iterator[Case]:
    """Weight the pixels of one 512 x 512 map of 21 classes.

    Ours: statistics, weights and reliable mask. Peer: the paper's pseudo-code in NumPy, the singular vectors of the
    2 x N matrix by ``numpy.linalg.svd`` and masks, in float32 as the scores are.
    """
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.normal(0, 4, (1, 21, 65, 65)).astype(np.float32))
    logits = torch.nn.functional.interpolate(coarse, size=(512, 512), mode="bilinear")[0].numpy()
    stats = kernels.class_stats(logits, (512, 512), outputs=("share", "dispersion"))

    def peer():
        rows = np.stack([stats.share.ravel(), stats.dispersion.ravel()])
        cluster = np.abs(np.linalg.svd(rows, full_matrices=False)[2]).argmax(axis=0)
        clusters = [rows[:, cluster == k] for k in (0, 1) if (cluster == k).any()]
        best = max(clusters, key=lambda pixels: pixels[0].mean())
        mean, deviation = best.mean(axis=1), np.sqrt(best.var(axis=1, ddof=1) + 1e-8)
        z_share, z_dispersion = (rows[0] - mean[0]) / deviation[0], (mean[1] - rows[1]) / deviation[1]
        weight = np.exp(-(z_share**2) / 8) * np.exp(-(z_dispersion**2) / 8)
        weight[(z_share > 0) | (z_dispersion > 0)] = 1
        return weight.reshape(512, 512)

    # The last bit of a float32 sum decides if a pixel at the mean has weight 1.
    assert np.mean(np.abs(kernels.pcos(stats.share, stats.dispersion).weight - peer()) > 1e-3) < 1e-4
    yield Case("512", lambda: kernels.pcos(stats.share, stats.dispersion), peer)


def peaks() -> Iterator[Case]:
    """Find peaks in 20 maps of 512 x 512, min_distance 10: activation maps with a threshold, and noise.

    Peer: scikit-image, map by map. Both find the same peaks in the same order.
    """
    rng = np.random.default_rng(0)
    noise = rng.random((20, 512, 512), dtype=np.float32)
    coarse = torch.from_numpy(rng.normal(0, 1, (20, 1, 32, 32)).astype(np.float32))
    smooth = torch.nn.functional.interpolate(coarse, size=(512, 512), mode="bicubic")[:, 0].clamp_min(0).numpy()
    for name, maps, threshold in (("activation maps", smooth, 0.5), ("noise", noise, None)):

        def ours(maps=maps, threshold=threshold):
            return kernels.peak_local_max(maps, min_distance=10, threshold_abs=threshold)

        def peer(maps=maps, threshold=threshold):
            return [peak_local_max(values, min_distance=10, threshold_abs=threshold) for values in maps]

        result = ours()
        for count, coordinates, expected in zip(result.count, result.coordinates, peer(), strict=True):
            np.testing.assert_array_equal(coordinates[:count], expected)
        yield Case(name, ours, peer)


def quantile(peer: Callable[[np.ndarray, int], np.ndarray]) -> Iterator[Case]:
    """Find the exact 95 % conformal threshold of 10^8 nonconformity scores, most of them near 0.

    Ours: two passes of counting, without a copy. Peer: ``numpy.sort`` or ``numpy.partition``, which copy.
    """
    scores = np.random.default_rng(0).normal(4, 3, 10**8).astype(np.float32)
    np.exp(scores, out=scores)
    scores += 1
    np.divide(1, scores, out=scores)
    rank = kernels.conformal_rank(scores.size, 0.05)

    def ours():
        prefix, within = kernels.select_prefix(kernels.score_counts(scores), np.array([rank]))
        return kernels.kth_score(kernels.score_counts(scores, prefix=prefix), prefix, within)[0]

    assert ours() == peer(scores, rank)[rank - 1]
    yield Case("10^8", ours, lambda: peer(scores, rank))


CLAIMS = {
    "decode_150": Claim(10, lambda: decode(150, (128, 128), (512, 512), ("CHW",))),
    "decode_21": Claim(8, lambda: decode(21, (33, 33), (213, 320), ("CHW",))),
    "decode_21_257": Claim(8, lambda: decode(21, (257, 257), (213, 320), ("CHW", "HWC"))),
    "pcos": Claim(50, pcos),
    "peaks": Claim(20, peaks),
    "quantile_vs_sort": Claim(8, lambda: quantile(lambda scores, rank: np.sort(scores))),
    "quantile_vs_partition": Claim(1.5, lambda: quantile(lambda scores, rank: np.partition(scores, rank - 1))),
}


def seconds_of(call: Call, repeats: int = 1) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def measure(case: Case, rounds: int) -> dict[str, float]:
    """Return the medians over the rounds of both sides' milliseconds and of their ratio, with the ratio's range."""
    repeats = [max(1, round(0.05 / min(seconds_of(call) for _ in range(3)))) for call in (case.ours, case.peer)]
    ours, peer = [], []
    for _ in range(rounds):
        ours.append(seconds_of(case.ours, repeats[0]))
        peer.append(seconds_of(case.peer, repeats[1]))
    ratios = [b / a for a, b in zip(ours, peer, strict=True)]
    return {
        "ratio": round(statistics.median(ratios), 2),
        "ratio_min": round(min(ratios), 2),
        "ratio_max": round(max(ratios), 2),
        "ours_ms": round(statistics.median(ours) * 1e3, 3),
        "peer_ms": round(statistics.median(peer) * 1e3, 3),
    }


def startup_seconds() -> float:
    """Return the median time of three fresh processes, less the time of processes that import only NumPy."""
    setup = "import numpy as np; scores = np.zeros((3, 4, 4), np.float32)"
    decode = f"{setup}; from maskmill import kernels; kernels.class_stats(scores, (8, 8))"

    def run(program: str) -> None:
        subprocess.run([sys.executable, "-c", program], check=True)

    run(decode)
    total, bare = (statistics.median(seconds_of(lambda p=p: run(p)) for _ in range(3)) for p in (decode, setup))
    return round(total - bare, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--only", nargs="+", choices=CLAIMS, default=list(CLAIMS), help="claims to measure")
    parser.add_argument("--rounds", type=int, default=9, help="rounds of each case, at least 7")
    arguments = parser.parse_args()
    if arguments.rounds < 7:
        parser.error("a median needs at least 7 rounds")

    result: dict[str, object] = {}
    details: dict[str, dict[str, dict[str, float]]] = {}
    for key in arguments.only:
        details[key] = {case.name: measure(case, arguments.rounds) for case in CLAIMS[key].cases()}
        result[key] = min(case["ratio"] for case in details[key].values())
        if not arguments.json:
            for name, case in details[key].items():
                print(
                    f"{key:22} {name:12} {case['ours_ms']:9.2f} ms against {case['peer_ms']:9.2f} ms:"
                    f" {case['ratio']:6.1f}x ({case['ratio_min']} to {case['ratio_max']}), target {CLAIMS[key].target}x"
                )
    result["startup_s"] = startup_seconds()
    if not arguments.json:
        print(f"startup_s {result['startup_s']}")
        return
    packages = ("numpy", "numba", "torch", "scikit-image")
    result["targets"] = {key: CLAIMS[key].target for key in arguments.only}
    result["details"] = details
    result["machine"] = {
        "processor": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
