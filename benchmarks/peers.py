"""Compare `maskmill label` with the loops of other tools, on the same photos and the same SegFormer-B0.

    python benchmarks/peers.py [--sides maskmill transformers …] [--python SIDE=PYTHON] [--photos 40] [--many 5000]
        [--rounds 3] [-o FILE]

Sides: ``maskmill`` (`maskmill label`, ONNX Runtime), ``maskmill-openvino`` (the same with `--provider openvino`),
``transformers`` (its image-segmentation pipeline over a generator of paths, one PNG per class map), ``autodistill`` (a
base model around the same PyTorch network, and the package's own `label` loop, which writes YOLO polygons), and
``fiftyone`` (`apply_model` with the same network, which needs a MongoDB server). Each side runs in a process of its
own, with the interpreter that ``--python`` names for it, as its documentation shows it. The network has random weights
of the true architecture and 21 classes.

Measured per side: images per second of wall and of processor time, start included, medians of alternating rounds; peak
memory with ``--many`` photos and a network that costs nearly nothing (64 x 64 pixels); what is left, and what a second
call does, after kill -9 in the middle; and what happens with a cut and an empty JPEG among the photos.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

DATA = Path(os.environ.get("MASKMILL_DATA", Path(__file__).resolve().parents[1].parent / "shared" / "data"))
SIDES = ("maskmill", "maskmill-openvino", "transformers", "autodistill", "fiftyone")
NUM_CLASSES = 21


def make_models(folder: Path) -> None:
    """Write SegFormer-B0 and a tiny SegFormer as checkpoints and as bundles: b0, tiny, b0-bundle, tiny-bundle."""
    import torch
    from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

    from maskmill.export.pretrained.families import Choices, bundle_from_pretrained

    names = {index: f"class {index}" for index in range(NUM_CLASSES)}
    for name, side, width in (("b0", 512, (32, 64, 160, 256)), ("tiny", 64, (8, 8, 8, 8))):
        torch.manual_seed(0)
        depths = {"depths": [2, 2, 2, 2]} if name == "b0" else {"depths": [1, 1, 1, 1]}
        config = SegformerConfig(
            hidden_sizes=list(width), num_attention_heads=[1, 2, 5, 8] if name == "b0" else [1, 1, 1, 1],
            decoder_hidden_size=256 if name == "b0" else 16, id2label=names,
            label2id={text: index for index, text in names.items()}, **depths,
        )  # fmt: skip
        SegformerForSemanticSegmentation(config).eval().save_pretrained(folder / name)
        SegformerImageProcessor(size={"height": side, "width": side}).save_pretrained(folder / name)
        bundle_from_pretrained(str(folder / name), folder / f"{name}-bundle", Choices(size=(side, side)))


def run_transformers(model: str, photos: Path, output: Path) -> None:
    import numpy as np
    from PIL import Image
    from transformers import pipeline

    pipe = pipeline("image-segmentation", model=model, device="cpu")
    paths = sorted(map(str, photos.glob("*.jpg")))
    output.mkdir(exist_ok=True)
    for path, segments in zip(paths, pipe(path for path in paths), strict=True):
        label = np.zeros(segments[0]["mask"].size[::-1], np.uint8)
        for segment in segments:
            label[np.asarray(segment["mask"]) > 0] = int(segment["label"].split()[-1])
        Image.fromarray(label).save(output / f"{Path(path).stem}.png")


class Network:
    """The PyTorch network, from a photo's path to its class map at the photo's size."""

    def __init__(self, model: str) -> None:
        from transformers import AutoImageProcessor, SegformerForSemanticSegmentation

        self.processor = AutoImageProcessor.from_pretrained(model)
        self.network = SegformerForSemanticSegmentation.from_pretrained(model).eval()

    def label(self, image: Any) -> Any:
        """Return the class map (H, W) of a PIL image."""
        import torch

        with torch.inference_mode():
            outputs = self.network(**self.processor(image, return_tensors="pt"))
        sizes = [image.size[::-1]]
        return self.processor.post_process_semantic_segmentation(outputs, target_sizes=sizes)[0].numpy()


def run_autodistill(model: str, photos: Path, output: Path) -> None:
    import numpy as np
    import supervision as sv
    from autodistill.detection import CaptionOntology, DetectionBaseModel
    from PIL import Image

    class Base(DetectionBaseModel):
        def __init__(self) -> None:
            self.ontology = CaptionOntology({f"class {index}": f"class {index}" for index in range(NUM_CLASSES)})
            self.network = Network(model)

        def predict(self, input: Any) -> Any:
            image = Image.open(input).convert("RGB") if isinstance(input, str) else Image.fromarray(input)
            label = self.network.label(image)
            values = np.unique(label)
            masks = np.stack([label == value for value in values])
            return sv.Detections(xyxy=sv.mask_to_xyxy(masks), mask=masks, class_id=values.astype(int),
                                 confidence=np.ones(len(values), np.float32))  # fmt: skip

    Base().label(str(photos), extension=".jpg", output_folder=str(output))


def run_fiftyone(model: str, photos: Path, output: Path) -> None:
    import fiftyone as fo
    from fiftyone.core.models import Model
    from PIL import Image

    class Wrapped(Model):
        network = Network(model)
        media_type = "image"
        ragged_batches, transforms, preprocess = True, None, False

        def predict(self, arg: Any) -> Any:
            return fo.Segmentation(mask=self.network.label(Image.fromarray(arg)).astype("uint8"))

    dataset = fo.Dataset.from_images_dir(str(photos), name=str(output), persistent=True, overwrite=True)
    dataset.apply_model(Wrapped(), label_field="label")


def run_side(side: str, model: str, photos: Path, output: Path) -> None:
    """Run a peer in this process."""
    {"transformers": run_transformers, "autodistill": run_autodistill, "fiftyone": run_fiftyone}[side](
        model, photos, output
    )


def command(side: str, python: str, models: Path, name: str, photos: Path, output: Path) -> list[str]:
    if side.startswith("maskmill"):
        more = ["--provider", "openvino"] if side.endswith("openvino") else []
        return [
            python,
            "-m",
            "maskmill",
            "label",
            str(models / f"{name}-bundle"),
            str(photos),
            "-o",
            str(output),
            *more,
        ]
    return [python, __file__, "--run", side, str(models / name), str(photos), str(output)]


def start(arguments: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(arguments, stdout=log.open("ab"), stderr=subprocess.STDOUT, cwd=log.parent)


def finish(process: subprocess.Popen[bytes]) -> dict[str, float]:
    """Wait for a process; returns its exit status, processor seconds and peak memory in megabytes."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return {
        "status": process.returncode,
        "processor_s": round(usage.ru_utime + usage.ru_stime, 2),
        "peak_mb": round(usage.ru_maxrss / 1024),
    }


def results_of(side: str, output: Path) -> int:
    """Count the labeled photos that another program could read now."""
    if not output.exists():
        return 0
    if side.startswith("maskmill"):
        from maskmill import LabelStore

        return len(list(LabelStore.open(output).ids()))
    if side == "autodistill":
        # the loop writes annotations/ at its end
        return len(list(output.rglob("*.txt")))
    return len(list(output.glob("*.png")))


def copies(photos: Sequence[Path], number: int, folder: Path) -> Path:
    """Write ``number`` photos, repeated with a different comment at the end of the file, so that no two are equal."""
    folder.mkdir(parents=True)
    for index in range(number):
        data = photos[index % len(photos)].read_bytes()
        (folder / f"{index:05d}.jpg").write_bytes(data[:-2] + b"\xff\xfe\x00\x08" + f"{index:06d}".encode() + data[-2:])
    return folder


def measure_side(side: str, python: str, models: Path, work: Path, some: Path, number: int) -> dict[str, Any]:
    """Run what is not timed: a kill in the middle, and damaged photos."""
    result: dict[str, Any] = {}
    output = work / f"{side}-killed"
    process = start(command(side, python, models, "b0", some, output), work / f"{side}.log")
    started, seen = time.perf_counter(), 0
    while process.poll() is None and time.perf_counter() - started < 900:
        seen = results_of(side, output)
        if seen >= number // 3:
            break
        time.sleep(1)
    if side == "autodistill" and process.poll() is None:
        time.sleep(5)
    process.send_signal(signal.SIGKILL)
    process.wait()
    result["left_after_kill"] = results_of(side, output)
    again = finish(start(command(side, python, models, "b0", some, output), work / f"{side}.log"))
    result["second_call"] = {**again, "results": results_of(side, output)}
    damaged = work / f"{side}-damaged-photos"
    shutil.copytree(some, damaged)
    names = sorted(damaged.glob("*.jpg"))
    names[len(names) // 2].write_bytes(names[0].read_bytes()[:3000])
    names[len(names) // 2 + 1].write_bytes(b"")
    outcome = finish(
        start(command(side, python, models, "b0", damaged, work / f"{side}-damaged"), work / f"{side}.log")
    )
    result["damaged"] = {**outcome, "results": results_of(side, work / f"{side}-damaged")}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--sides", nargs="+", default=list(SIDES[:3]), choices=SIDES)
    parser.add_argument("--python", action="append", default=[])
    parser.add_argument("--photos", type=int, default=40)
    parser.add_argument("--many", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only-speed", action="store_true")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    if options.run:
        side, model, photos, output = options.run
        run_side(side, model, Path(photos), Path(output))
        return
    pythons = {side: sys.executable for side in SIDES} | dict(text.split("=", 1) for text in options.python)
    results: dict[str, Any] = {side: {} for side in options.sides}

    def record() -> None:
        if options.output:
            options.output.write_text(json.dumps(results, indent=1) + "\n")

    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        make_models(work)
        originals = sorted((DATA / "msrc/images").glob("*.jpg"))
        some = copies(originals, options.photos, work / "some")
        rounds: dict[str, list[tuple[float, float]]] = {side: [] for side in options.sides}
        for number in range(options.rounds):
            for side in options.sides:
                output = work / f"{side}-{number}"
                begun = time.perf_counter()
                outcome = finish(start(command(side, pythons[side], work, "b0", some, output), work / f"{side}.log"))
                if outcome["status"] or not results_of(side, output):
                    print((work / f"{side}.log").read_text()[-2000:], file=sys.stderr)
                rounds[side].append((time.perf_counter() - begun, outcome["processor_s"]))
                results[side]["results"] = results_of(side, output)
                for index, name in enumerate(("wall", "processor")):
                    values = [options.photos / pair[index] for pair in rounds[side]]
                    results[side][f"images_per_{name}_s"] = round(statistics.median(values), 3)
                    results[side][f"{name}_range"] = [round(min(values), 3), round(max(values), 3)]
                print(side, results[side], flush=True)
                record()
        if not options.only_speed:
            for side in options.sides:
                results[side] |= measure_side(side, pythons[side], work, work, some, options.photos)
                print(side, results[side], flush=True)
                record()
            many = copies(originals, options.many, work / "many")
            for side in options.sides:
                outcome = finish(
                    start(command(side, pythons[side], work, "tiny", many, work / f"{side}-many"), work / f"{side}.log")
                )
                results[side]["many"] = {"photos": options.many, **outcome}
                print(side, results[side], flush=True)
                record()


if __name__ == "__main__":
    main()
