"""Count the instructions that ``class_stats`` executes per class and pixel on a GPU. Needs no device.

    python benchmarks/kernel_instructions.py [--data FOLDER] [--json]

NVRTC compiles the kernel for sm_80 and sm_90, and ``nvdisasm`` (``pip install nvidia-cuda-nvdisasm``, found on PATH or
beside Python's packages) lists its machine code. The loop over the classes is split at its branches: a part that every
iteration executes, one that a warp executes if any of its pixels may have a new top class, and one that rescales the
sums. tests/simt runs the same launch on the CPU and counts in how many iterations a warp takes each branch. The figure
is instructions per thread: those of a warp times 32, over the pixels.

Cases: 150 classes of 128 x 128 to 512 x 512 with random logits (a strip of 128 rows); with ``--data``, the logits of
deeplabv3-257 on one MSRC photo as they are (257 x 257) and every eighth of them (33 x 33, what the network computes
before its own upsampling), both to 213 x 320.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))

from maskmill.kernels.gpu import device  # noqa: E402
from maskmill.kernels.gpu.resources import CUPY_OPTIONS  # noqa: E402
from tests.simt import harness  # noqa: E402

ARCHITECTURES = (80, 90)
BRANCH = re.compile(r"BRA\S*\s.*`\((\.L\w+)\)")
MODES: dict[str, tuple[str, ...]] = {
    "TOP": ("label",),
    "SUMS": ("label", "share", "dispersion"),
    "SECONDS": ("label", "share", "dispersion", "second"),
}


@dataclass(frozen=True)
class Loop:
    """Instructions of one iteration of the loop over the classes."""

    always: int
    competes: int
    otherwise: int
    """If no pixel of the warp competes."""
    rescales: int
    """If all pixels of the thread are rescaled."""
    outside: int
    """Of the kernel without its loops over classes: all branches, one iteration of the loops over pixels."""


def disassembler() -> str:
    """Return the path of nvdisasm."""
    beside = sorted(Path(sysconfig.get_path("purelib")).glob("nvidia/cu*/bin/nvdisasm"))
    path = shutil.which("nvdisasm") or (str(beside[-1]) if beside else None)
    if path is None:
        raise SystemExit("nvdisasm is missing; install it with: pip install nvidia-cuda-nvdisasm")
    return path


def machine_code(name: str, architecture: int) -> tuple[list[str], dict[str, int]]:
    """Compile a kernel and return its instructions and the positions of its labels."""
    from cupy.cuda import nvrtc

    program = nvrtc.createProgram((device.SOURCES / "class_stats.cu").read_text(), "class_stats.cu", (), ())
    nvrtc.addNameExpression(program, name)
    nvrtc.compileProgram(program, (*device.OPTIONS, *CUPY_OPTIONS, f"-arch=sm_{architecture}"))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        # CuPy takes the last byte for the end of a string.
        file.write(nvrtc.getCUBIN(program) + b"\0")
        file.flush()
        run = subprocess.run([disassembler(), "-c", file.name], capture_output=True, text=True, check=True)
    instructions: list[str] = []
    labels: dict[str, int] = {}
    for line in run.stdout.splitlines():
        label = re.match(r"(\.L\w+):", line.strip())
        instruction = re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(.*?);", line)
        if label:
            labels[label[1]] = len(instructions)
        elif instruction:
            instructions.append(instruction[1].strip())
    return instructions, labels


def reads_classes(code: list[str]) -> bool:
    """Return True if a loop loads the four corners of a class and interpolates them."""
    return sum("LDG" in line for line in code) >= 4 and sum("FFMA" in line for line in code) >= 4


def class_loop(name: str, architecture: int) -> Loop:
    """Split the loop over the classes at its branches."""
    code, labels = machine_code(name, architecture)
    jumps = {at: labels[match[1]] for at, line in enumerate(code) if (match := BRANCH.search(line))}
    loops = [(target, at) for at, target in jumps.items() if target < at]
    reads = [span for span in loops if reads_classes(code[span[0] : span[1] + 1])]
    first, last = min(reads)
    skips = [(at, target) for at, target in jumps.items() if first <= at < last and at < target <= last + 1]
    # A thread with one pixel has no branch: it selects.
    competes = max(skips, key=lambda span: span[1] - span[0], default=(0, 1))
    inside = [span for span in skips if competes[0] < span[0] and span[1] <= competes[1]]
    rescales = max(inside, key=lambda span: span[1] - span[0], default=(0, 1))
    # A block that ends in a jump over the next one has that for its alternative.
    ends = [jumps[at] for at in range(competes[0] + 1, competes[1]) if competes[1] < jumps.get(at, 0) <= last + 1]
    otherwise = max(ends, default=competes[1]) - competes[1]
    length = [end - start - 1 for start, end in (competes, rescales)]
    others = sum(end - start + 1 for start, end in reads)
    return Loop(
        always=last - first + 1 - length[0] - otherwise,
        competes=length[0] - length[1],
        otherwise=otherwise,
        rescales=length[1],
        outside=len([line for line in code if not line.startswith("NOP")]) - others,
    )


def executed(scores: np.ndarray, size: tuple[int, int], mode: str) -> dict[str, Any]:
    """Run one launch on the CPU and return its figures."""
    harness.launched.clear()
    outputs = MODES[mode]
    with harness.simt_device():
        harness.gpu.class_stats(harness.on_device(scores), size, outputs=outputs)
    name = harness.launched[-1]
    names = device.INSTANTIATIONS["class_stats"]
    names = tuple(other for other in names if other.split(",")[0] == name.split(",")[0])
    library, _ = harness.library(device.SOURCES / "class_stats.cu", names)
    visits = {branch: library.simt_visits(branch.encode()) for branch in ("CLASS", "COMPETES", "RESCALES")}
    pixels = size[0] * size[1]
    threads = visits["CLASS"] * 32 / scores.shape[0]
    row = {
        "kernel": name,
        "classes": scores.shape[0],
        "competes": round(visits["COMPETES"] / visits["CLASS"], 3),
        "rescales": round(visits["RESCALES"] / visits["CLASS"], 3),
        "pixels_per_thread": round(pixels / threads, 2),
    }
    for architecture in ARCHITECTURES:
        loop = class_loop(name, architecture)
        instructions = loop.always * visits["CLASS"] + loop.competes * visits["COMPETES"]
        instructions += loop.otherwise * (visits["CLASS"] - visits["COMPETES"]) + loop.rescales * visits["RESCALES"]
        row[f"sm_{architecture}"] = {
            "per_class_and_pixel": round(instructions * 32 / pixels / scores.shape[0], 1),
            "loop": [loop.always, loop.competes, loop.otherwise, loop.rescales],
            "outside": loop.outside,
        }
    return row


def msrc_logits(folder: Path) -> np.ndarray:
    """Run deeplabv3-257 on one MSRC photo: float32 (21, 257, 257)."""
    import onnxruntime
    from PIL import Image

    model = next((folder / "models").glob("deeplabv3-257/*.onnx"))
    photo = sorted((folder / "msrc").rglob("*.jpg"))[0]
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    shape = session.get_inputs()[0].shape
    size = (257, 257)
    pixels = np.asarray(Image.open(photo).convert("RGB").resize(size), np.float32) / 127.5 - 1
    image = pixels[None] if shape[-1] == 3 else pixels.transpose(2, 0, 1)[None]
    (logits, *_) = session.run(None, {session.get_inputs()[0].name: image})
    logits = logits[0]
    return np.ascontiguousarray(logits if logits.shape[0] == 21 else logits.transpose(2, 0, 1), np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = os.environ.get("MASKMILL_DATA")
    parser.add_argument(
        "--data", type=Path, default=data and Path(data), help="folder of the MSRC photos and models (MASKMILL_DATA)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")
    options = parser.parse_args()
    random = np.random.default_rng(0).normal(0, 4, (150, 32, 128)).astype(np.float16)
    cases = {"random, 150 classes, 128² to 512²": (random, (128, 512))}
    if options.data:
        logits = msrc_logits(options.data)
        cases["MSRC, 21 classes, 33² to 213 x 320"] = (np.ascontiguousarray(logits[:, ::8, ::8]), (213, 320))
        cases["MSRC, 21 classes, 257² to 213 x 320"] = (logits, (213, 320))
    for case, (scores, size) in cases.items():
        for mode in MODES:
            row = {"case": case, "mode": mode} | executed(scores, size, mode)
            if options.json:
                print(json.dumps(row))
                continue
            figures = ", ".join(
                f"sm_{a}: {row[f'sm_{a}']['per_class_and_pixel']} per class and pixel, loop {row[f'sm_{a}']['loop']}"
                for a in ARCHITECTURES
            )
            print(f"{case}; {mode}: {figures}; branches taken {row['competes']}, {row['rescales']}; {row['kernel']}")


if __name__ == "__main__":
    main()
