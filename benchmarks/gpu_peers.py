"""The peers of a GPU session: class_stats, PCOS and peaks as a user would write them in torch or CuPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from gpu_kernels import Case


def pcos(xp: Any, share: Any, dispersion: Any) -> Any:
    """Compute PCOS weights of one map with positive shares in array operations, for torch or CuPy."""
    a, b, c = (share * share).sum(), (share * dispersion).sum(), (dispersion * dispersion).sum()
    half, determinant = (a - c) / 2, a * c - b * b
    root = xp.sqrt(half * half + b * b)
    largest = (a + c) / 2 + root
    ux, uv = xp.where(half >= 0, half + root, b), xp.where(half >= 0, b, root - half)
    along = xp.abs(ux * share + uv * dispersion) * xp.sqrt(determinant / largest)
    across = xp.abs(ux * dispersion - uv * share) * xp.sqrt(largest)
    second = xp.where(across > along, 1.0, 0.0)
    counts = [(1 - second).sum(), second.sum()]
    means = [((1 - second) * share).sum() / counts[0], (second * share).sum() / counts[1]]
    member = xp.where(means[1] > means[0], second, 1 - second)
    count = member.sum()
    scores = []
    for values in (share, dispersion):
        mean = (member * values).sum() / count
        variance = (member * (values - mean) * (values - mean)).sum() / (count - 1)
        scores.append((values - mean) / xp.sqrt(variance + 1e-8))
    z_x, z_v = scores[0], -scores[1]
    better = xp.where(z_x > 0, 1.0, 0.0) + xp.where(z_v > 0, 1.0, 0.0)
    return xp.where(better > 0, 1.0, xp.exp(-(z_x * z_x + z_v * z_v) / 8))


def peers(cupy: Any, torch: Any) -> dict[str, Callable[[Case], Callable[[], Any]]]:
    """Return makers of calls by name; each takes the case of the kernel that its name begins with."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def tensor(array: np.ndarray) -> Any:
        return torch.from_numpy(array).to(device)

    def stats(case: Case) -> Callable[[], Any]:
        scores, size = tensor(case.arguments[0])[None], case.arguments[1]
        if case.options["layout"] == "HWC":
            scores = scores.movedim(-1, 1)

        def call() -> Any:
            upsampled = torch.nn.functional.interpolate(scores.float(), size=size, mode="bilinear")
            return torch.softmax(upsampled, 1).max(1)

        return call

    def pcos_in_torch(case: Case) -> Callable[[], Any]:
        share, dispersion = map(tensor, case.arguments)
        return lambda: pcos(torch, share, dispersion)

    def pcos_in_cupy(case: Case) -> Callable[[], Any]:
        share, dispersion = map(cupy.asarray, case.arguments)
        cupy.cuda.Device().synchronize()
        return lambda: pcos(cupy, share, dispersion)

    def peaks(case: Case) -> Callable[[], Any]:
        maps, distance = tensor(case.arguments[0])[None], case.options["min_distance"]

        def call() -> Any:
            largest = torch.nn.functional.max_pool2d(maps, 2 * distance + 1, 1, distance)
            return torch.nonzero(maps == largest)

        return call

    return {
        "class_stats in torch (interpolate, softmax, max)": stats,
        "pcos in torch": pcos_in_torch,
        "pcos in CuPy": pcos_in_cupy,
        "peak_local_max in torch (max_pool2d, nonzero)": peaks,
    }
