"""Compare `maskmill label` with the loops of other tools, on the same photos and the same SegFormer-B0.

    python benchmarks/peers.py [--sides maskmill transformers …] [--python SIDE=PYTHON] [--parts speed kill damage many]
        [--photos 40] [--rounds 3] [--killed 1200] [--many 5000] [--processors 2] [--models FOLDER] [-o FILE]

Sides: ``maskmill`` (`maskmill label`, ONNX Runtime), ``maskmill-openvino`` (the same with `--provider openvino`),
``transformers`` (its image-segmentation pipeline over a generator of paths, one PNG per class map), and ``autodistill``
(a base model around the same PyTorch network, and the package's own `label` loop, which writes YOLO polygons). Each
side runs in a process of its own, with the interpreter that ``--python`` names for it, as its documentation shows it.
The network has random weights of the true architecture and 21 classes; ``--models`` keeps it for another run.

Parts: ``speed``: images per second of wall and of processor time, start included, medians of alternating rounds;
``kill``: what is left, and what a second call does, after kill -9 in the middle; ``damage``: what happens with a cut
and an empty JPEG among the photos; ``many``: time and peak memory with ``--many`` photos. The last three use a network
that costs nearly nothing (64 x 64 pixels). ``--processors`` limits every side to that many processors.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

DATA = Path(os.environ.get("MASKMILL_DATA", Path(__file__).resolve().parents[1].parent / "shared" / "data"))
SIDES = ("maskmill", "maskmill-openvino", "transformers", "autodistill")
PARTS = ("speed", "kill", "damage", "many")
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


def open_pipeline(model: str) -> Any:
    """Return transformers' image-segmentation pipeline."""
    from transformers import pipeline

    return pipeline("image-segmentation", model=model, device="cpu")


def run_pipeline(pipe: Any, photos: Path, output: Path) -> None:
    """Write one PNG per photo: the class map that the pipeline's masks make."""
    import numpy as np
    from PIL import Image

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
        from transformers.models.segformer.image_processing_pil_segformer import SegformerImageProcessorPil
        from transformers.models.segformer.modeling_segformer import SegformerForSemanticSegmentation

        self.processor = SegformerImageProcessorPil.from_pretrained(model)
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
            # the package's loop reads files with OpenCV: channels are blue, green, red
            label = self.network.label(Image.fromarray(input[:, :, ::-1]))
            values = np.unique(label)
            masks = np.stack([label == value for value in values])
            return sv.Detections(xyxy=sv.mask_to_xyxy(masks), mask=masks, class_id=values.astype(int),
                                 confidence=np.ones(len(values), np.float32))  # fmt: skip

    Base().label(str(photos), extension=".jpg", output_folder=str(output))


def start(side: str, python: str, model: Path, photos: Path, output: Path) -> subprocess.Popen[bytes]:
    """Start a side; its messages go to a file beside the output, ending in .log."""
    if side.startswith("maskmill"):
        options = ["--provider", "openvino"] if side.endswith("openvino") else []
        bundle = model.with_name(f"{model.name}-bundle")
        arguments = [python, "-m", "maskmill", "label", str(bundle), str(photos), "-o", str(output), *options]
        arguments += ["--log", str(output.with_suffix(".jsonl"))]
    else:
        arguments = [python, __file__, "--run", side, str(model), str(photos), str(output)]
    with output.with_suffix(".log").open("wb") as log:
        return subprocess.Popen(arguments, stdout=log, stderr=subprocess.STDOUT, cwd=output.parent)


def finish(process: subprocess.Popen[bytes]) -> dict[str, float]:
    """Wait for a process; returns its exit status, processor seconds and peak memory in megabytes.

    A process inherits the peak of the one that starts it: this script loads no large package itself.
    """
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return {
        "status": process.returncode,
        "processor_s": round(usage.ru_utime + usage.ru_stime, 2),
        "peak_mb": round(usage.ru_maxrss / 1024),
    }


def count_results(side: str, output: Path) -> int:
    """Count the labeled photos that another program could read now."""
    if not output.exists():
        return 0
    if side.startswith("maskmill"):
        code = "import sys; from maskmill import LabelStore; print(len(list(LabelStore.open(sys.argv[1]).ids())))"
        return int(subprocess.check_output([sys.executable, "-c", code, str(output)]))
    if side == "autodistill":
        return len(list(output.glob("*/labels/*.txt")))
    return len(list(output.glob("*.png")))


def count_progress(side: str, output: Path) -> int:
    """Count the photos that a running side has labeled, as far as it shows."""
    if side == "transformers":
        return count_results(side, output)
    if side == "autodistill":
        numbers = re.findall(r"Labeling [^\r\n]* (\d+)/\d+ \[", output.with_suffix(".log").read_text(errors="replace"))
        return int(numbers[-1]) if numbers else 0
    log = output.with_suffix(".jsonl")
    events = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    return sum(event["inputs"] for event in events if event["event"] == "commit")


def copies(photos: Sequence[Path], number: int, folder: Path) -> Path:
    """Write ``number`` photos, repeated with a different comment at the end of the file, so that no two are equal."""
    folder.mkdir(parents=True)
    for index in range(number):
        data = photos[index % len(photos)].read_bytes()
        (folder / f"{index:05d}.jpg").write_bytes(data[:-2] + b"\xff\xfe\x00\x08" + f"{index:06d}".encode() + data[-2:])
    return folder


class Comparison:
    """The sides with their interpreters, the models, and the photos, which are copies of ``originals``."""

    def __init__(self, pythons: dict[str, str], models: Path, originals: Sequence[Path], work: Path) -> None:
        self.pythons, self.models, self.originals, self.work = pythons, models, originals, work

    def photos(self, number: int) -> Path:
        """Return a folder with that many photos."""
        folder = self.work / f"photos-{number}"
        return folder if folder.exists() else copies(self.originals, number, folder)

    def start(self, side: str, network: str, photos: Path, output: Path) -> subprocess.Popen[bytes]:
        """Start a side with its own interpreter."""
        return start(side, self.pythons[side], self.models / network, photos, output)

    def run(self, side: str, network: str, photos: Path, name: str) -> dict[str, Any]:
        """Run a side to its end; returns what the process took and left."""
        output, begun = self.work / f"{side}-{name}", time.perf_counter()
        outcome = finish(self.start(side, network, photos, output))
        outcome["wall_s"] = round(time.perf_counter() - begun, 2)
        last = output.with_suffix(".log").read_text(errors="replace").strip().splitlines()[-1:]
        return {**outcome, "results": count_results(side, output), "last_line": last[0][-300:] if last else ""}

    def speed(self, number: int, rounds: int) -> Iterator[tuple[str, dict[str, Any]]]:
        """Time all sides, alternating; yields the figures of a side after each of its runs."""
        outcomes: dict[str, list[dict[str, Any]]] = {side: [] for side in self.pythons}
        for index in range(rounds):
            for side, runs in outcomes.items():
                runs.append(self.run(side, "b0", self.photos(number), f"speed-{index}"))
                figures: dict[str, Any] = {"photos": number, "runs": runs}
                for name in ("wall_s", "processor_s"):
                    values = [number / run[name] for run in runs]
                    figures[f"images_per_{name}"] = round(statistics.median(values), 3)
                    figures[f"images_per_{name}_range"] = [round(min(values), 3), round(max(values), 3)]
                yield side, figures

    def kill(self, side: str, number: int) -> dict[str, Any]:
        """Kill a run after an eighth of the photos, count what is left, and run the same command again."""
        photos, output = self.photos(number), self.work / f"{side}-kill"
        process = self.start(side, "tiny", photos, output)
        while process.poll() is None and count_progress(side, output) < number // 8:
            time.sleep(0.2)
        process.send_signal(signal.SIGKILL)
        process.wait()
        figures = {"photos": number, "labeled_before": count_progress(side, output)}
        figures["left"] = count_results(side, output)
        return {**figures, "second_call": self.run(side, "tiny", photos, "kill")}

    def damage(self, side: str, number: int) -> dict[str, Any]:
        """Run a side over photos of which one is cut short and one empty."""
        damaged = self.work / "damaged"
        if not damaged.exists():
            names = sorted(copies(self.originals, number, damaged).glob("*.jpg"))
            names[number // 2].write_bytes(names[0].read_bytes()[:3000])
            names[number // 2 + 1].write_bytes(b"")
        return {"photos": number, **self.run(side, "tiny", damaged, "damage")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--sides", nargs="+", default=["maskmill", "transformers", "autodistill"], choices=SIDES)
    parser.add_argument("--python", action="append", default=[])
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--photos", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--killed", type=int, default=1200)
    parser.add_argument("--many", type=int, default=5000)
    parser.add_argument("--processors", type=int)
    parser.add_argument("--models", type=Path)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    if options.run:
        # this folder holds a kernels.py, which transformers would take for the package of that name
        sys.path.remove(str(Path(__file__).resolve().parent))
        side, model, photos, output = options.run
        if side == "transformers":
            run_pipeline(open_pipeline(model), Path(photos), Path(output))
        else:
            run_autodistill(model, Path(photos), Path(output))
        return
    if options.make:
        make_models(options.make)
        return
    if options.processors:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-options.processors :])
    pythons = {side: sys.executable for side in options.sides} | dict(text.split("=", 1) for text in options.python)
    results: dict[str, Any] = {"processors": len(os.sched_getaffinity(0)), **{side: {} for side in options.sides}}

    def record(side: str, part: str, figures: dict[str, Any]) -> None:
        results[side][part] = {**figures, "load": round(os.getloadavg()[0], 1)}
        print(side, part, results[side][part], flush=True)
        if options.output:
            options.output.write_text(json.dumps(results, indent=1) + "\n")

    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        models = options.models or work / "models"
        if not models.exists():
            models.mkdir()
            subprocess.run([sys.executable, __file__, "--make", str(models)], check=True)
        originals = sorted((DATA / "msrc/images").glob("*.jpg"))
        comparison = Comparison({side: pythons[side] for side in options.sides}, models.absolute(), originals, work)
        for part in options.parts:
            if part == "speed":
                for side, figures in comparison.speed(options.photos, options.rounds):
                    record(side, part, figures)
                continue
            for side in options.sides:
                if part == "kill":
                    record(side, part, comparison.kill(side, options.killed))
                elif part == "damage":
                    record(side, part, comparison.damage(side, options.photos))
                else:
                    run = comparison.run(side, "tiny", comparison.photos(options.many), "many")
                    record(side, part, {"photos": options.many, **run})


if __name__ == "__main__":
    main()
