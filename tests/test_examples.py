"""The examples in docstrings run, each in a folder with the models, photos and labels that it names."""

from __future__ import annotations

import ast
import builtins
import importlib
import io
import re
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

import maskmill
from maskmill.engine.backends.host import HOST
from maskmill.engine.formats.base import LabelClasses
from maskmill.engine.inputs.images import decode_image, preprocess
from maskmill.engine.inputs.sources import open_source
from maskmill.engine.labeling import label_run
from maskmill.engine.model.bundle import Bundle
from maskmill.engine.model.input_spec import BandSpec
from maskmill.engine.model.schema import read_json_object
from maskmill.engine.model.taxonomy import Taxonomy
from maskmill.engine.predictors.open import open_predictor
from maskmill.engine.predictors.prompted.activation_maps import CamModel
from maskmill.engine.predictors.prompted.mask_decoder import PromptDecoder
from maskmill.engine.predictors.prompted.prompts import PromptSettings, join_prompts, prompts_of
from maskmill.engine.runtimes.onnx_runtime import OnnxSession
from maskmill.export.gate.bench import measure
from maskmill.export.gate.judge import GateImages
from maskmill.export.gate.tasks import Side
from maskmill.export.precision.convert import convert
from maskmill.export.precision.sixteen_bit import in_16_bit
from maskmill.export.precision.tune import tune
from maskmill.trainer.data.parts import LabeledImages

from .conftest import ROOT
from .models import (
    cam_bundle,
    color_bundle,
    color_cam_graph,
    color_graph,
    color_image,
    detector_bundle,
    detector_graph,
    sam_bundle,
    text_bundle,
)  # fmt: skip

CLASSES = ("background", "car", "cat")
LABELS = {"engine.calibration": "labeled/labels", "engine.inputs": "maps", "engine.formats.open": "yolo"}
"""Contents of the folder ``labels`` by module; a store for all others."""
NO_LABELS = ("", "engine.labeling.label_run", "engine.labeling.reselection.reselect")
"""Modules whose examples make the folder ``labels``."""
NOT_RUN = {
    "engine.cli.options.groups": "the signature of a command",
    "engine.backends.cuda": "needs an NVIDIA device",
    "engine.runtimes.tensorrt_runtime": "needs an NVIDIA device",
    "engine.model.engine_records": "needs an NVIDIA device",
    "trainer.demo.run": "labels the Earth; tests/trainer/demo runs it",
    "trainer.demo.student": "trains the student of the Earth; tests/trainer/demo runs it",
    "engine.model.storage": "needs a bucket",
    "engine.cluster.metrics": "serves requests",
    "engine.cluster.runner": "needs two devices",
    "engine.cluster.calibration.collect": "needs a Ray cluster",
    "export.build.engine_builder": "needs TensorRT's builder",
    "trainer.students.libraries": "downloads weights, needs optional libraries",
}


def examples() -> Iterator[Any]:
    """Every example of a docstring that is Python, with its module."""
    paths = (
        path for name in ("engine", "export", "kernels", "trainer") for path in sorted((ROOT / name).rglob("*.py"))
    )
    for path in (ROOT / "__init__.py", *paths):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix("__init__").removesuffix(".")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                continue
            for text in re.findall(r"::\n\n((?:    .*\n|\n)+)", (ast.get_docstring(node) or "") + "\n"):
                code = re.sub(r"^    ", "", text, flags=re.MULTILINE)
                if is_python(code):
                    yield pytest.param(module, code, id=f"{module}:{getattr(node, 'name', '')}")


def is_python(code: str) -> bool:
    """Tell examples from drawings, equations, commands and TOML files."""
    return (
        not re.match(r"maskmill |torchrun ", code)
        and bool(re.search(r"[\w)\]]\(|^\w+ = |^\w+\.\w+", code, re.MULTILINE))
        and "[model]" not in code
        and "[colors]" not in code
    )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of everything that examples name."""
    home = tmp_path_factory.mktemp("examples")
    (home / "voc.txt").write_text("\n".join(CLASSES))
    onnx.save(color_graph(size=(16, 24), gain=6.0), home / "deeplab.onnx")
    color_bundle(home, classes=CLASSES, background="background", gain=6.0, name="deeplab", scale=1 / 255)
    sam_bundle(home, name="sam")
    cam_bundle(home, classes=("car", "cat", "cow"), name="cam")
    for images, labels, indices in (
        ("labeled/images", "labeled/labels", range(20, 50)),
        ("held-out/images", "held-out/labels", range(6)),
        ("photos", "maps", range(6)),
    ):
        for folder in (images, labels):
            (home / folder).mkdir(parents=True)
        for index in indices:
            label = np.broadcast_to((np.arange(24) // 8 + index) % 3, (16, 24))
            pixels = color_image(label, strength=140) + np.random.default_rng(index).integers(0, 100, (16, 24, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(home / images / f"{index:04}.jpg", quality=98)
            Image.fromarray(label.astype(np.uint8)).save(home / labels / f"{index:04}.png")
    lines = [f"{index:04}.jpg,car;cat" for index in (*range(6), *range(20, 50))]
    (home / "labels.csv").write_text("\n".join(["image,labels", *lines]) + "\n")
    (home / "classes.toml").write_text(maskmill.draft_taxonomy(home / "deeplab", label_names=home / "voc.txt"))
    model = maskmill.Bundle.load(home / "deeplab")
    calibration = maskmill.calibrate(model, images=home / "labeled/images", labels=home / "labeled/labels", alpha=0.05)
    calibration.save(home / "calibration.json")
    maskmill.label(model, home / "photos", home / "store", calibration=calibration, weight="pcos")
    return home


@pytest.fixture
def home(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)  # the store names the photos of the first folder
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("module", "code"), list(examples()))
def test_the_examples_of_docstrings_run(module: str, code: str, home: Path) -> None:
    if module in NOT_RUN:
        compile(code, module, "exec")
        return
    folder = next((value for prefix, value in LABELS.items() if module.startswith(prefix)), "store")
    if folder == "yolo":
        exported(home, ("yolo", "yolo-seg"), ignored="drop")
    if module not in NO_LABELS:
        shutil.copytree(folder, "labels")
    SETUP.get(module, lambda home: None)(home)
    own = importlib.import_module(".".join(filter(None, ("maskmill", module))))
    exec(compile(code, f"example of {module}", "exec"), Names(own, home))  # noqa: S102


class Names(dict[str, Any]):
    """Names of an example: its own, its module's, those of ``VALUES``, then any public name of the package."""

    def __init__(self, module: Any, home: Path) -> None:
        super().__init__(__builtins__=builtins, __name__="example")
        self.module, self.home = module, home

    def __missing__(self, name: str) -> Any:
        local = LOCAL.get(self.module.__name__.removeprefix("maskmill."), {})
        if name in local:
            self[name] = local[name](self.home)
        elif hasattr(self.module, name):
            self[name] = getattr(self.module, name)
        elif name in VALUES:
            self[name] = VALUES[name](self.home)
        elif hasattr(builtins, name):
            raise KeyError(name)
        else:
            self[name] = getattr(importlib.import_module(owner(name)), name)
        return self[name]


def owner(name: str) -> str:
    """Name the module that defines a public function or class."""
    for folder in ("engine", "export", "kernels", "trainer"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if re.search(rf"^(def|class) {name}\b|^{name} = ", path.read_text(encoding="utf-8"), re.MULTILINE):
                return ".".join(("maskmill", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
    raise NameError(f"the example names {name}, which neither the package nor VALUES defines")


def photo(home: Path) -> Any:
    return decode_image((home / "photos/0001.jpg").read_bytes())


def taxonomy(home: Path) -> Taxonomy:
    return Taxonomy.load(home / "classes.toml", Bundle.load(home / "deeplab"))


def tensor(home: Path, name: str = "deeplab") -> Any:
    return preprocess(photo(home), Bundle.load(home / name).input)[0][None]


def activations(home: Path) -> Any:
    model = CamModel(Bundle.load(home / "cam"), OnnxSession(Bundle.load(home / "cam")))
    return model.run([model.prepare(photo(home))])[0].on_grid((16, 24), (16, 24), classes=[0, 1])


def embeddings(home: Path) -> Any:
    return OnnxSession(Bundle.load(home / "sam"), role="encoder").run(tensor(home, "sam"))


def torch_images(home: Path) -> Any:
    torch = pytest.importorskip("torch")
    return torch.zeros(2, 3, 256, 256)


def trained(home: Path) -> None:
    pytest.importorskip("torch")
    settings = {"model": "tiny", "steps": 2, "crop": 16, "batch": 2, "warmup": 0}
    maskmill.train("store", output="run", labeled="labeled", settings=settings, device="cpu", workers=0)


def more_photos(home: Path) -> None:
    """Sixty photos: the gate of a converted model wants fifty."""
    for index in range(60):
        pixels = np.random.default_rng(index).integers(0, 256, (16, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(home / f"photos/{index:04}.jpg", quality=98)


def in_int8(home: Path) -> None:
    more_photos(home)
    convert(Bundle.load(home / "deeplab"), "int8", GateImages.open(home / "photos"))


def cam_features(home: Path) -> None:
    shutil.rmtree(home / "deeplab")
    (home / "cam").rename(home / "deeplab")


def scores(home: Path) -> None:
    (home / "seem").mkdir()
    np.save(home / "seem/0001.npy", np.random.default_rng(0).random((3, 16, 24)).astype(np.float32))


def exported(home: Path, *formats: tuple[str, str], ignored: Any = None) -> None:
    for name, format in formats:
        maskmill.export_labels(maskmill.LabelStore.open(home / "store"), home / name, format, ignored=ignored)


def scene(path: Path) -> None:
    rasterio = pytest.importorskip("rasterio")
    profile = {"driver": "GTiff", "count": 1, "height": 3000, "width": 40, "dtype": "uint8", "crs": "EPSG:32633"}
    with rasterio.open(path, "w", transform=rasterio.Affine(10, 0, 0, 0, -10, 0), **profile) as file:
        file.write(np.ones((1, 3000, 40), np.uint8))


def array_file(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def checkpoint(home: Path) -> None:
    pytest.importorskip("transformers")
    from .export import checkpoints

    checkpoints.segformer(home / "nvidia").rename(home / "segformer")
    shutil.rmtree(home / "nvidia", ignore_errors=True)
    (home / "nvidia").mkdir()
    checkpoints.clipseg(home / "CIDAS/clipseg-rd64-refined")
    (home / "segformer").rename(home / "nvidia/segformer-b0-finetuned-ade-512-512")


VALUES: dict[str, Callable[[Path], Any]] = {
    "np": lambda home: np,
    "Path": lambda home: Path,
    "score_map": lambda home: open_predictor(home / "deeplab")[0].predict(photo(home)),
    "rich": lambda home: importlib.import_module("rich"),
    "console": lambda home: importlib.import_module("rich.console").Console(quiet=True),
    "rng": lambda home: np.random.default_rng(0),
    "path": lambda home: home / "deeplab.onnx",
    "names": lambda home: list(CLASSES),
    "classes": lambda home: list(CLASSES),
    "nodes": lambda home: ["/Conv", "/Mul"],
    "raw": lambda home: {"input": read_json_object(home / "deeplab/bundle.json")["input"]},
    # images and their labels
    "data": lambda home: (home / "photos/0001.jpg").read_bytes(),
    "image": photo,
    "images": lambda home: GateImages.open(home / "photos"),
    "photos": lambda home: [("0001.jpg", photo(home))] * 4,
    "pixels": lambda home: np.full((4, 4, 3), (128, 64, 128), np.uint8),
    "label": lambda home: np.zeros((16, 24), np.uint8),
    "uri": lambda home: str(home / "photos/0001.jpg"),
    "source": lambda home: open_source(str(home / "labeled/images")),
    "labeled": lambda home: LabeledImages.open("labeled", taxonomy(home)),
    # models and what they return
    "bundle": lambda home: Bundle.load(home / "deeplab"),
    "cam_bundle": lambda home: Bundle.load(home / "cam"),
    "sam_bundle": lambda home: Bundle.load(home / "sam"),
    "predictor": lambda home: open_predictor(home / "deeplab")[0],
    "taxonomy": taxonomy,
    "backend": lambda home: HOST,
    "batch": tensor,
    "tensors": lambda home: np.repeat(tensor(home), 4, axis=0),
    "logits": lambda home: np.random.default_rng(0).normal(size=(3, 16, 24)).astype(np.float32),
    "height": lambda home: 32,
    "width": lambda home: 48,
    "cam_session": lambda home: OnnxSession(Bundle.load(home / "cam")),
    "encoder_session": lambda home: OnnxSession(Bundle.load(home / "sam"), role="encoder"),
    "decoder_session": lambda home: OnnxSession(Bundle.load(home / "sam"), role="decoder"),
    "engine_session": lambda home: OnnxSession(Bundle.load(home / "deeplab"), threads=2),
    "candidate": lambda home: Side(
        bundle=Bundle.load(home / "deeplab"), sessions={"model": OnnxSession(Bundle.load(home / "deeplab"))}
    ),
    "embeddings": embeddings,
    "cams": activations,
    "settings": lambda home: PromptSettings(),
    "decoder": lambda home: PromptDecoder(
        Bundle.load(home / "sam"), OnnxSession(Bundle.load(home / "sam"), role="decoder")
    ),
    "prompts": lambda home: join_prompts(prompts_of([activations(home)], PromptSettings())),
    "encode": lambda home: lambda image: embeddings(home),
    # precision
    "model": lambda home: onnx.load(home / "deeplab/model.onnx"),
    "graph": lambda home: onnx.load(home / "deeplab/model.onnx"),
    "original": lambda home: Bundle.load(home / "deeplab").file("model"),
    "staging": lambda home: home,
    "converted": lambda home: in_16_bit(onnx.load(home / "deeplab.onnx"), "fp16").model,
    "digest": lambda home: "0" * 64,
    "passes_with": lambda home: lambda subset: "/Mul" in subset,
    # stores and calibrations
    "store": lambda home: maskmill.LabelStore.open(home / "labels"),
    "calibration": lambda home: maskmill.Calibration.load(home / "calibration.json"),
}
SETUP: dict[str, Callable[[Path], Any]] = {
    "export.adopt.boxes": lambda home: onnx.save(
        detector_graph([(4, 4, 20, 20)] * 40, outputs="yolo"), home / "yolo11n.onnx"
    ),
    "": lambda home: shutil.rmtree(home / "deeplab"),
    "engine.formats.base": lambda home: (
        exported(home, ("coco", "coco")),
        next((home / "coco/annotations").glob("*.json")).rename(home / "instances.json"),
    ),
    "engine.formats.open": lambda home: (
        exported(home, ("export", "cvat"), ignored="drop"),
        (home / "export/cvat.zip").rename(home / "export.zip"),
    ),
    "engine.inputs.rasters.bands": lambda home: np.save(home / "chip.npy", np.ones((8, 16, 24), np.uint16)),
    "engine.reading.geotiff": lambda home: scene(home / "scene.tif"),
    "engine.labeling.import_labels": lambda home: (
        exported(home, ("coco", "coco")),
        next((home / "coco/annotations").glob("*.json")).rename(home / "coco.json"),
    ),
    "export.precision.convert": more_photos,
    "export.gate.proof": in_int8,
    "export.gate.judge": more_photos,
    "trainer.data.weak_labels": lambda home: (home / "maps").rename(home / "segments"),
    "export.adopt.cam_head": cam_features,
    "export.adopt.classifier": lambda home: onnx.save(color_cam_graph(logits_only=True), home / "resnet50.onnx"),
    "export.adopt.semantic": lambda home: (home / "deeplab.onnx").rename(home / "model.onnx"),
    "engine.predictors.open": lambda home: (home / "deeplab").rename(home / "segformer-b0"),
    "engine.predictors.score_files": scores,
    "export.adopt.preprocessing": lambda home: (home / "preprocessor_config.json").write_text(
        '{"do_resize": true, "size": {"height": 512, "width": 512}, "do_normalize": false}'
    ),
    "export.adopt.promptable": lambda home: (
        [(home / f"sam-{role}.onnx").rename(home / f"{role}.onnx") for role in ("encoder", "decoder")]
        + [shutil.rmtree(home / "sam")]
    ),
    "engine.store.several.joined": lambda home: [
        shutil.move(home / "labels", home / "labels-a"),
        shutil.copytree(home / "labels-a", home / "labels-b"),
    ],
    "engine.store.several.merge": lambda home: [
        shutil.move(home / "labels", home / "labels-a"),
        shutil.copytree(home / "labels-a", home / "labels-b"),
    ],
    "trainer.evaluate": trained,
    "trainer.students.conformal": trained,
    "trainer.measure": trained,
    "trainer.run": trained,
    "trainer.students.prediction": trained,
    "trainer.students.models": trained,
    "export.pretrained.checkpoint": checkpoint,
    "export.pretrained.families": checkpoint,
}


def bundle(name: str) -> Callable[[Path], Any]:
    return lambda home: Bundle.load(home / name)


def openvino(home: Path) -> Any:
    pytest.importorskip("openvino")
    from maskmill.engine.runtimes.openvino_runtime import OpenVINOSession

    return OpenVINOSession(Bundle.load(home / "deeplab"))


def color_graph_named(name: str) -> onnx.ModelProto:
    model = color_graph()
    model.graph.node[0].name = name
    return model


def logits_of_one(home: Path) -> Any:
    return torch_images(home)[:1, :1].expand(1, 21, 256, 256)


def folded(model: str, folder: str, choices: Any = None) -> Any:
    """Load and fold a model as its export begins."""
    from maskmill.export.pretrained.checkpoint import fetch
    from maskmill.export.pretrained.families import Choices, fold

    assert not Path(folder).exists()
    return fold(fetch(model), choices or Choices())


def classifier_network(home: Path) -> Any:
    torch = pytest.importorskip("torch")
    return torch.nn.Conv2d(3, 2, 32, 32)


LOCAL: dict[str, dict[str, Callable[[Path], Any]]] = {
    "engine.predictors.texts": {
        "bundle": lambda home: text_bundle(home),
        "encoder": lambda home: OnnxSession(Bundle.load(home / "text"), role="encoder"),
        "text_session": lambda home: OnnxSession(Bundle.load(home / "text"), role="text"),
        "decoder": lambda home: OnnxSession(Bundle.load(home / "text"), role="decoder"),
    },
    "engine.predictors.prompted.boxes": {
        "bundle": lambda home: detector_bundle(home, [(4, 4, 20, 20)] * 9, size=(32, 48)),
    },
    "engine.labeling.reselection.reselect": {"label": lambda home: label_run.label},
    # as little time for each figure as there can be
    "export.gate.bench": {"measure": lambda home: partial(measure, seconds=0.05)},
    "export.precision.tune": {"tune": lambda home: partial(tune, seconds=0.05)},
    # tests/export/pretrained/test_families.py exports each family and compares it with the model
    "export.pretrained.families": {"bundle_from_pretrained": lambda home: folded},
    "engine.formats.open": {"classes": lambda home: LabelClasses(names=CLASSES)},
    "engine.calibration.drift.watch": {"images": lambda home: [("a.jpg", np.full(9, 0.9)), ("b.jpg", np.full(9, 0.8))]},
    "engine.inputs.labeled_source": {"source": lambda home: open_source(str(home / "photos"))},
    "engine.model.verdicts": {"session": lambda home: OnnxSession(Bundle.load(home / "deeplab"))},
    "engine.predictors.prompted.activation_maps": {
        "bundle": bundle("cam"),
        "session": lambda home: OnnxSession(Bundle.load(home / "cam")),
    },
    "engine.predictors.prompted.embedding_cache": {"bundle": bundle("sam")},
    "engine.predictors.prompted.mask_decoder": {"bundle": bundle("sam")},
    "engine.predictors.segment_everything": {"bundle": bundle("sam")},
    "export.pretrained.torch_module": {"module": classifier_network},
    "export.gate.judge": {"engine_session": openvino},
    "export.precision.sixteen_bit": {"model": lambda home: color_graph_named("/head/Exp")},
    "trainer.students.reliability": {
        "logits": lambda home: np.random.default_rng(0).normal(size=(100, 3)),
        "truth": lambda home: np.random.default_rng(1).integers(0, 3, 100),
        "label": lambda home: np.random.default_rng(2).integers(0, 3, 100),
        "reliable": lambda home: np.ones(100, bool),
    },
    "trainer.data.augment": {"ignore": lambda home: 255},
    "trainer.data.bands": {
        "store": lambda home: SimpleNamespace(run={"bands": BandSpec(numbers=(1, 2, 3), display=(1, 2, 3)).to_json()}),
        "data": lambda home: array_file(np.ones((8, 16, 3), np.uint8)),
        "images": lambda home: SimpleNamespace(
            uris=["chip.npy"], read=lambda index: SimpleNamespace(image=np.ones((8, 16, 3), np.uint8))
        ),
    },
    "trainer.students.allspark": {
        "images": torch_images,
        "own": logits_of_one,
    },
    "trainer.students.classifier": {"images": torch_images},
    "trainer.students.deeplab": {"images": torch_images},
    "trainer.students.models": {"images": torch_images},
    "trainer.students.networks": {"images": torch_images},
}
