"""Compare the speed of a labeling run with the bare model and with the obvious loop.

    python benchmarks/label_run.py [--json] [--images 296] [--rounds 7]
    python benchmarks/label_run.py --against CHECKOUT [--images 60] [--rounds 20]

deeplabv3-257 on MSRC photos (MASKMILL_DATA, or ../shared/data beside the repository). The variants alternate within a
round; figures are medians over rounds with their range.

* bare: the model alone on prepared tensors, the faster of one session with all threads and one single-thread session
  per processor;
* product: `maskmill label --select conformal --weight pcos` from JPEG files into a new store, including the plan; and
  the same with `--provider openvino`, if it is installed;
* obvious: one image at a time: OpenCV decoding and resizing, `session.run`, logits resized to the photo's size, NumPy
  softmax, argmax and maximum, two PNG files.

Keys: `vs_bare` (images/s over bare's), `vs_obvious` (images/s over the obvious loop's), both of the product on ONNX
Runtime; `openvino_vs_obvious`; `stages` (milliseconds per image on one thread, and bytes); `resume_1m_s` (seconds to
plan a resume over a million finished inputs).

``--against`` compares the product with that of another checkout of the repository: one process each, which label the
photos in turn, the order drawn anew in every round. `old_over_new` and `old_over_new_wall` are the ratios of processor
time and of time, medians over rounds with their 95 % bootstrap interval: above 1, this checkout is faster.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime

from maskmill import kernels
from maskmill.engine.inputs.images import decode_image
from maskmill.engine.inputs.sources import open_source
from maskmill.engine.labeling.label_run import label
from maskmill.engine.labeling.selection import Selection, select
from maskmill.engine.model.bundle import Bundle
from maskmill.engine.model.files import read_class_names
from maskmill.engine.model.png import encode_png
from maskmill.engine.model.taxonomy import Taxonomy
from maskmill.engine.predictors.semantic import SemanticPredictor
from maskmill.engine.runtimes.onnx_runtime import OnnxSession
from maskmill.export.adopt.semantic import bundle_from_onnx
from maskmill.kernels.processors import usable_processors

PRODUCT_OPENVINO = "product, OpenVINO"
DATA = Path(os.environ.get("MASKMILL_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


CHILD = """
import shutil, sys, time
from pathlib import Path
import numpy as np
from maskmill.engine.inputs.sources import open_source
from maskmill.engine.labeling.label_run import label
from maskmill.engine.labeling.selection import Selection
from maskmill.engine.model.bundle import Bundle
from maskmill.engine.model.taxonomy import Taxonomy
from maskmill.engine.predictors.semantic import SemanticPredictor
from maskmill.engine.runtimes.onnx_runtime import OnnxSession
folder = Path(sys.argv[1])
bundle = Bundle.load(folder / sys.argv[2] / "deeplab")
taxonomy, predictor = Taxonomy.of_model(bundle), SemanticPredictor(bundle, OnnxSession(bundle))
thresholds = np.full(taxonomy.num_scored, 0.5, np.float32)
selection = Selection(method="conformal", rule="agree", thresholds=thresholds, weight="pcos")
for line in sys.stdin:
    store = folder / line.strip()
    wall, cpu = time.perf_counter(), time.process_time()
    run = label(predictor, open_source(folder / "photos.txt"), store, taxonomy, selection)
    print(run.images, time.process_time() - cpu, time.perf_counter() - wall, flush=True)
    shutil.rmtree(store)
"""
"""One side of a comparison of two checkouts: labels the photos for every line that it reads."""


ADOPT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import label_run
label_run.adopt(Path(sys.argv[2]))
"""


def adopt(folder: Path) -> Bundle:
    """Import deeplabv3-257 with the resize it was published with, as in the obvious loop."""
    model = DATA / "models" / "deeplabv3-257"
    if not model.is_dir():
        raise SystemExit(f"no models at {DATA}; set MASKMILL_DATA")
    names = read_class_names(model / "labels.txt")
    return bundle_from_onnx(
        model / "model.onnx", folder / "deeplab",
        classes=[names[index] for index in sorted(names)], background="background", layout="NHWC",
        scale=1 / 127.5, mean=(1.0, 1.0, 1.0), antialias=False,
    )  # fmt: skip


def session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def bare_all_threads(path: Path, tensors: list[np.ndarray]) -> Callable[[], None]:
    model = session(path, usable_processors())
    name = model.get_inputs()[0].name

    def run() -> None:
        for tensor in tensors:
            model.run(None, {name: tensor})

    return run


def bare_one_per_core(path: Path, tensors: list[np.ndarray]) -> Callable[[], None]:
    models = [session(path, 1) for _ in range(usable_processors())]
    name = models[0].get_inputs()[0].name

    def part(index: int) -> None:
        for tensor in tensors[index :: len(models)]:
            models[index].run(None, {name: tensor})

    def run() -> None:
        with ThreadPoolExecutor(len(models)) as pool:
            list(pool.map(part, range(len(models))))

    return run


def obvious(path: Path, photos: list[Path], folder: Path) -> Callable[[], None]:
    """Return the loop that a newcomer would write."""
    model = session(path, usable_processors())
    name = model.get_inputs()[0].name

    def run() -> None:
        for photo in photos:
            image = cv2.imread(str(photo))
            tensor = cv2.resize(image, (257, 257))[:, :, ::-1].astype(np.float32) / 127.5 - 1
            (logits,) = model.run(None, {name: tensor[None]})
            full = cv2.resize(logits[0], (image.shape[1], image.shape[0]))
            exponentials = np.exp(full - full.max(axis=2, keepdims=True))
            probabilities = exponentials / exponentials.sum(axis=2, keepdims=True)
            classes = probabilities.argmax(axis=2).astype(np.uint8)
            confidence = (probabilities.max(axis=2) * 255).astype(np.uint8)
            cv2.imwrite(str(folder / f"{photo.stem}-label.png"), classes)
            cv2.imwrite(str(folder / f"{photo.stem}-weight.png"), confidence)

    return run


def on_openvino(bundle: Bundle) -> SemanticPredictor:
    from maskmill.engine.runtimes.openvino_runtime import OpenVINOSession

    return SemanticPredictor(bundle, OpenVINOSession(bundle))


def seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def milliseconds(function: Callable[[], Any], rounds: int = 15) -> float:
    function()
    return 1000 * statistics.median(seconds(function) for _ in range(rounds))


def stage_times(bundle: Bundle, photos: list[Path], selection: Selection, taxonomy: Taxonomy) -> dict[str, Any]:
    """Measure each stage on one thread and one image (median over photos), and the bytes it writes."""
    predictor = SemanticPredictor(bundle, OnnxSession(bundle))
    rows = []
    for photo in photos[:: max(1, len(photos) // 12)]:
        data = photo.read_bytes()
        image = decode_image(data)
        prepared = predictor.prepare(image)
        (score_map,) = predictor.run([prepared])
        selected = select(score_map, taxonomy, selection)
        coarse = select(score_map, taxonomy, Selection(**{**vars(selection), "weight_levels": 16}))
        stats = kernels.class_stats(
            score_map.scores, score_map.size, layout="HWC", outputs=("share", "dispersion"), region=score_map.region
        )
        rows.append(
            {
                "decode": milliseconds(lambda data=data: decode_image(data)),
                "preprocess": milliseconds(lambda image=image: predictor.prepare(image)),
                "predict": milliseconds(lambda prepared=prepared: predictor.run([prepared]), 5),
                "select": milliseconds(lambda score_map=score_map: select(score_map, taxonomy, selection)),
                "of which pcos": milliseconds(lambda stats=stats: kernels.pcos(stats.share, stats.dispersion)),
                "label png": milliseconds(lambda selected=selected: encode_png(selected.label)),
                "weight png": milliseconds(lambda selected=selected: encode_png(selected.weight)),
                "weight png, 16 levels": milliseconds(lambda coarse=coarse: encode_png(coarse.weight)),
                "label bytes": len(encode_png(selected.label)),
                "weight bytes": len(encode_png(selected.weight)),
                "weight bytes, 16 levels": len(encode_png(coarse.weight)),
            }
        )
    return {key: round(statistics.median(row[key] for row in rows), 3) for key in rows[0]}


def compare_checkouts(old: Path, photos: list[Path], folder: Path, rounds: int) -> dict[str, Any]:
    """Label with two checkouts in turn."""
    (folder / "photos.txt").write_text("\n".join(map(str, photos)))
    children: dict[str, subprocess.Popen[str]] = {}
    for name, checkout in (("old", old), ("new", Path(__file__).resolve().parents[1])):
        (folder / name).mkdir()
        (folder / name / "maskmill").symlink_to(checkout.resolve())
        environment = {**os.environ, "PYTHONPATH": str(folder / name)}
        # each checkout reads the bundles of its own format
        adopting = [sys.executable, "-c", ADOPT, str(checkout.resolve() / "benchmarks"), str(folder / name)]
        subprocess.run(adopting, cwd=folder, env=environment, check=True)
        command = [sys.executable, "-c", CHILD, str(folder), name]
        children[name] = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(name: str, number: int) -> tuple[float, float]:
        child = children[name]
        assert child.stdin is not None, "the child reads"
        assert child.stdout is not None, "the child answers"
        child.stdin.write(f"{name}-{number}\n")
        child.stdin.flush()
        images, cpu, wall = child.stdout.readline().split()
        assert int(images) == len(photos), f"{name} labeled {images} of {len(photos)} photos"
        return float(cpu), float(wall)

    chance = random.Random(0)
    ratios: list[tuple[float, float]] = []
    for number in range(-2, rounds):
        names = ["old", "new"]
        chance.shuffle(names)
        times = {name: run(name, number) for name in names}
        if number >= 0:  # the first rounds compile kernels and warm caches
            ratios.append((times["old"][0] / times["new"][0], times["old"][1] / times["new"][1]))
    for child in children.values():
        child.communicate()
    result: dict[str, Any] = {"images": len(photos), "rounds": rounds}
    for place, name in enumerate(("old_over_new", "old_over_new_wall")):
        values = [pair[place] for pair in ratios]
        medians = sorted(statistics.median(chance.choices(values, k=rounds)) for _ in range(2000))
        result[name] = round(statistics.median(values), 4)
        result[f"{name}_interval"] = [round(medians[50], 4), round(medians[1949], 4)]
        result[f"{name}_all"] = [round(value, 4) for value in values]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--images", type=int, default=296)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--no-resume", action="store_true", help="leave out the million-input resume")
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="compare with this checkout instead")
    arguments = parser.parse_args()
    # one of the photos exists twice; the product would label it once
    distinct = {photo.read_bytes(): photo for photo in sorted((DATA / "msrc" / "images").glob("*.jpg"))}
    photos = list(distinct.values())[: arguments.images]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.against is not None:
            result = compare_checkouts(arguments.against, photos, folder, arguments.rounds)
            print(json.dumps(result, indent=2) if arguments.json else "\n".join(f"{k}: {v}" for k, v in result.items()))
            return
        bundle = adopt(folder)
        taxonomy = Taxonomy.of_model(bundle)
        # the thresholds' values change what is kept, not the work
        thresholds = np.full(taxonomy.num_scored, 0.5, np.float32)
        selection = Selection(method="conformal", rule="agree", thresholds=thresholds, weight="pcos")
        predictor = SemanticPredictor(bundle, OnnxSession(bundle))
        listing = folder / "photos.txt"
        listing.write_text("\n".join(map(str, photos)))
        tensors = [predictor.prepare(decode_image(photo.read_bytes())).tensors[0][None] for photo in photos]
        store = iter(range(10**6))

        def product(predictor: SemanticPredictor = predictor) -> None:
            run = label(predictor, open_source(listing), folder / f"store{next(store)}", taxonomy, selection)
            assert run.images == len(photos), f"a round labeled {run.images} of {len(photos)} photos"

        path = bundle.model_path()
        sides = {
            "bare, all threads": bare_all_threads(path, tensors),
            "bare, one per core": bare_one_per_core(path, tensors),
            "product": product,
            **({PRODUCT_OPENVINO: partial(product, on_openvino(bundle))} if find_spec("openvino") else {}),
            "obvious": obvious(path, photos, folder),
        }
        for function in sides.values():
            function()
        times: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(arguments.rounds):
            for side, function in sides.items():
                times[side].append(seconds(function))
        bare = [min(pair) for pair in zip(times["bare, all threads"], times["bare, one per core"], strict=True)]
        vs_bare = [bare_time / product_time for bare_time, product_time in zip(bare, times["product"], strict=True)]
        vs_obvious = [
            loop_time / product_time for loop_time, product_time in zip(times["obvious"], times["product"], strict=True)
        ]
        by_openvino = [
            loop_time / time for loop_time, time in zip(times["obvious"], times.get(PRODUCT_OPENVINO, ()), strict=False)
        ]
        result: dict[str, Any] = {
            "vs_bare": round(statistics.median(vs_bare), 3),
            "vs_bare_range": [round(min(vs_bare), 3), round(max(vs_bare), 3)],
            "vs_obvious": round(statistics.median(vs_obvious), 3),
            "vs_obvious_range": [round(min(vs_obvious), 3), round(max(vs_obvious), 3)],
            "openvino_vs_obvious": round(statistics.median(by_openvino), 3) if by_openvino else None,
            "openvino_vs_obvious_range": [round(pick(by_openvino), 3) for pick in (min, max) if by_openvino],
            "ms_per_image": {
                side: round(1000 * statistics.median(values) / len(photos), 2) for side, values in times.items()
            },
            "stages": stage_times(bundle, photos, selection, taxonomy),
            "images": len(photos),
            "rounds": arguments.rounds,
            "machine": f"{platform.processor() or platform.machine()}, {usable_processors()} processors",
            "versions": {"onnxruntime": onnxruntime.__version__, "numpy": np.__version__, "opencv": cv2.__version__},
        }
    if not arguments.no_resume:
        from resume import measure  # the script beside this one

        result["resume_1m_s"] = measure()["resume_1m_s"]
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    for key, value in result.items():
        print(f"{key}: {json.dumps(value)}")


if __name__ == "__main__":
    main()
