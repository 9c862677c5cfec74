"""Does every family of foundation models survive its export, and which precisions pass the gate?

    python benchmarks/families.py [--json] [--families sam,resnet] [--precisions fp16,bf16,int8]

Small models of the true architectures with random weights (those of tests/export/checkpoints.py) are exported, and the
fp32 graphs compared with torch on 50 photos of MASKMILL_DATA. Of each: the largest error of a raw output beside that
output's largest magnitude, agreement of the decisions, seconds of the export, nodes of the graphs; and for each
precision whether the gate passes at its defaults (on a processor: emulated for 16 bits, executed for int8). Random
weights say whether a graph converts and what rounding does to it, not what a trained model's scores do: their classes
are close to ties everywhere, so that masks may differ where scores hardly do.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import runpy
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from maskmill.engine.model.bundle import Bundle
from maskmill.engine.runtimes.onnx_runtime import OnnxSession
from maskmill.errors import ExportError, GateError
from maskmill.export.gate.judge import GateImages, judge
from maskmill.export.gate.parity import TOLERANCES, output_errors
from maskmill.export.gate.tasks import Side
from maskmill.export.precision.convert import convert
from maskmill.export.pretrained.checkpoint import fetch
from maskmill.export.pretrained.families import FAMILIES, Choices, bundle_from_folded, fold
from maskmill.export.pretrained.torch_module import TorchSession

ROOT = Path(__file__).resolve().parents[1]
CHECKPOINTS = runpy.run_path(str(ROOT / "tests" / "export" / "checkpoints.py"))["CHECKPOINTS"]
TEXTS = Choices(classes=("cow", "tree", "building"), background="other")
CHOICES = {"clipseg": TEXTS, "sam3": TEXTS, "sam3_lite_text": TEXTS}


METRICS = ("agreement", "mean_iou", "worst_iou", "mean_error", "max_error")


def measure(family: str, photos: GateImages, precisions: list[str], folder: Path) -> dict[str, Any]:
    """Measure one row of the table."""
    (folder / "checkpoint").mkdir()
    checkpoint = fetch(str(CHECKPOINTS[family](folder / "checkpoint")))
    folded = fold(checkpoint, CHOICES.get(family, Choices()))
    started = time.perf_counter()
    bundle = bundle_from_folded(folded, folder / "bundle", source=checkpoint.source)
    seconds = time.perf_counter() - started
    roles = {"model": folded.module} if folded.decoder is None else {
        "encoder": folded.module, "decoder": folded.decoder
    }  # fmt: skip
    originals = {role: TorchSession(module) for role, module in roles.items()}
    converted = {role: OnnxSession(bundle, role=role) for role in roles}
    exact, ours = Side(bundle=bundle, sessions=originals), Side(bundle=bundle, sessions=converted)
    roles_of = {bundle.file(role).sha256: role for role in roles}
    verdicts = judge(exact, ours, photos, tolerances=TOLERANCES)
    return {
        "family": family,
        "task": bundle.task,
        "size": f"{bundle.input.height}x{bundle.input.width}",
        "dynamic": bundle.input.dynamic,
        "raw_error": output_errors(bundle, originals, converted, list(photos.first(4))),
        "magnitude": magnitudes(bundle, originals),
        "fp32": {
            roles_of[verdict.artifact]: {name: getattr(verdict.metrics, name) for name in METRICS}
            for verdict in verdicts
        },
        "images": len(photos),
        "export_s": round(seconds, 1),
        "nodes": sum(len(onnx.load(bundle.model_path(role)).graph.node) for role in roles),
        "precisions": {precision: outcome(bundle, precision, photos) for precision in precisions},
    }


def magnitudes(bundle: Bundle, originals: dict[str, TorchSession]) -> dict[str, float]:
    """Return the largest magnitude of each output of the image's graph, on noise."""
    spec = bundle.input
    noise = np.random.default_rng(0).normal(size=(1, 3, spec.height, spec.width)).astype(np.float32)
    role = next(iter(originals))
    names = [output.name for output in bundle.outputs_of(role)]
    return {name: float(np.abs(value).max()) for name, value in zip(names, originals[role].run(noise), strict=True)}


def outcome(bundle: Bundle, precision: str, photos: GateImages) -> str:
    """Return ``passes`` with its mean IoU, or the reason why the precision is refused."""
    try:
        converted = convert(bundle, precision, photos)
    except (ExportError, GateError) as error:
        reason = str(error).split("is refused: ")[-1]
        return f"refused: {re.sub(r'/[^ )]*/', '', reason)}"
    metrics = converted.verdicts[-1]["metrics"]
    return f"passes: mean IoU {metrics['mean_iou']:.4f}, agreement {metrics['agreement']:.4f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--families", default=",".join(FAMILIES))
    parser.add_argument("--precisions", default="fp16,bf16,int8")
    options = parser.parse_args()
    data = Path(os.environ.get("MASKMILL_DATA", ROOT.parent / "shared" / "data"))
    photos = GateImages.open(str(data / "msrc" / "images"), limit=50)
    rows = []
    for family in options.families.split(","):
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(family, photos, [name for name in options.precisions.split(",") if name], Path(folder)))
        print(f"{family}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
        if not options.json:
            row = rows[-1]
            errors = ", ".join(f"{name} {error:.1e}" for name, error in row["raw_error"].items())
            print(
                f"{family:13} {row['task']:10} {row['size']:9} {'dynamic' if row['dynamic'] else 'fixed':8} "
                f"agreement {min(one['agreement'] for one in row['fp32'].values()):.6f}  {row['export_s']} s  {errors}",
                *(f"    {name}: {text}" for name, text in row["precisions"].items()),
                sep="\n", flush=True,
            )  # fmt: skip
    if options.json:
        import torch
        import transformers

        versions = {"torch": torch.__version__, "transformers": transformers.__version__, "onnx": onnx.__version__}
        machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
        print(json.dumps({"machine": machine, "versions": versions, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
