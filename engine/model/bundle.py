"""Bundles: folders that describe a model, with ``bundle.json`` beside its ONNX files and engines.

The manifest holds everything that labeling needs to know: how an image becomes the input, what each output means, the
classes, the model's origin, and which artifacts passed the gate on which runtime and device::

    bundle = Bundle.load("deeplab")
    bundle.input.height, bundle.classes, bundle.model_path()

Importing this module needs the standard library only; reading a manifest needs pydantic.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ...checks import check_choice, name_list
from ...errors import BundleError, UsageError
from .files import sha256
from .input_spec import InputSpec
from .publishing import write_atomically
from .schema import read_json_object, read_value
from .storage import fetched, is_url, shown

FORMAT_VERSION = 2
MANIFEST = "bundle.json"
Task = Literal["semantic", "cam", "promptable", "detector", "text"]
Activation = Literal["softmax", "sigmoid", "none"]
Kind = Literal[
    "scores", "logits", "cam", "features", "embedding", "masks", "mask_scores",
    "object_scores", "object_classes", "object_masks", "boxes", "box_scores", "text_features",
]  # fmt: skip
Role = Literal["model", "encoder", "decoder", "text", "tokenizer", "external-data"]
Signature = Literal["batched", "official"]


@dataclass(frozen=True, kw_only=True)
class OutputSpec:
    """Meaning of one output tensor of the graph."""

    name: str
    """Name of the graph's output tensor."""
    kind: Kind = "scores"
    """``scores``: per-class score maps; ``features``: (N, D, h, w) or (N, D), which no label depends on, for measures
    of drift and similarity; ``object_scores`` (N, K) in [0, 1], ``object_classes`` (N, K), indices as floats, and
    ``object_masks`` (N, K, h, w), logits on the grid of the scores: the K best objects of an image. Of a detector,
    ``boxes`` (N, Q, 4) are x0, y0, x1, y1 as fractions of the input, and ``box_scores`` (N, Q, C) the classes' scores.
    ``text_features`` (C, T, D) are of class names. The other kinds belong to the cam and promptable tasks.
    """
    activation: Activation = "softmax"
    """Function that turns the stored values into scores; with ``none`` they are scores already."""
    class_axis: int = 1
    """Axis of the classes in the batched tensor: 1 (N,C,h,w) or 3 (N,h,w,C)."""

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, Kind)
        check_choice("activation", self.activation, Activation)
        if self.class_axis not in (1, 3):
            raise UsageError(f"the class axis must be 1 (N,C,h,w) or 3 (N,h,w,C), got {self.class_axis}")

    @property
    def layout(self) -> Literal["CHW", "HWC"]:
        """Layout of one image's score map."""
        return "CHW" if self.class_axis == 1 else "HWC"


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """One file of the bundle."""

    path: str
    """Name relative to the bundle's folder."""
    sha256: str
    """Hash of the file's bytes."""
    bytes: int
    """Size of the file."""
    role: Role = "model"
    """Purpose of the file."""
    precision: str = "fp32"
    """fp32, fp16, bf16, int8 or fp8."""
    derived_from: str = ""
    """Hash of the file that this one was converted from; empty for the bundle's originals."""

    def __post_init__(self) -> None:
        check_choice("role", self.role, Role)
        if not self.path.isprintable() or Path(self.path).is_absolute() or ".." in Path(self.path).parts:
            raise BundleError(f"the bundle names the file {self.path!r:.300} outside its own folder; make it again")
        if len(self.path) > 1000 or any(len(os.fsencode(part)) > 255 for part in Path(self.path).parts):
            raise BundleError(f"the bundle names a file of {len(self.path):,} characters; make the bundle again")


@dataclass(frozen=True, kw_only=True)
class PromptSpec:
    """The decoder of a promptable bundle: it turns a prompt, which is a set of points on one image, into masks.

    Points are (x, y) in pixels of the encoder's input; label 1 is on the object, 0 off it, 2 and 3 are the corners of a
    box, -1 is padding. ``batched`` takes N prompts in one call: the encoder's outputs by name, each (N, …), one row per
    prompt; ``points`` (N, P, 2) and ``labels`` (N, P), both float32. ``official`` is the signature that SAM's authors
    export: one image, one prompt (1, P, 2), and further inputs for an earlier mask.
    """

    signature: Signature = "batched"
    """Inputs that the decoder takes."""
    num_masks: int = 1
    """Masks per prompt, M."""
    mask_height: int
    """Rows of a low-resolution mask of logits, in its own pixels; it covers the whole encoder input."""
    mask_width: int
    """Columns of a mask."""
    pad_boxes: bool = False
    """True if the model also expects a padding point after a box, as SAM 2 does; SAM expects one only without a box."""
    masks: bool = False
    """True if the decoder also takes a mask per prompt: ``mask_input`` (N, 1, mask_height, mask_width), logits, and
    ``has_mask_input`` (N,), 1 or 0, both float32.
    """

    def __post_init__(self) -> None:
        check_choice("signature", self.signature, Signature)
        if min(self.num_masks, self.mask_height, self.mask_width) < 1:
            raise UsageError(f"a prompt gives at least one mask of 1x1, got {self}")


@dataclass(frozen=True, kw_only=True)
class TextSpec:
    """How a ``text`` bundle takes class names.

    Its ``text`` graph takes ``input_ids`` and ``attention_mask`` (C, max_tokens), int64, and gives the text features.
    Its ``decoder`` takes the encoder's outputs (N, …), ``texts`` (C, T, D), the features up to the longest text, and
    ``present`` (C, T), bool, and gives scores (N, C, h, w) of every class in every image.
    """

    template: str = "{}"
    """Sentence around a class name."""
    max_tokens: int
    """Tokens of a text, padding included."""
    padding: int = 0
    """Number of the padding token."""
    background: str = "background"
    """Name of a background class that is added in front, with the score 1 minus the best class, unless it is named."""

    def __post_init__(self) -> None:
        if "{}" not in self.template or self.max_tokens < 2:
            raise UsageError(f"a template holds {{}}, and a text has at least 2 tokens; got {self}")


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Origin of a model."""

    id: str = ""
    """File name or hub id."""
    revision: str = ""
    """Revision at the origin, if any."""
    weights_sha256: str = ""
    """Hash of the weights it was made from."""
    license: str = ""
    """License of the weights."""
    exporter: str = ""
    """Software that made the graphs and their ONNX opset, e.g. ``torch 2.13.0, transformers 5.24.0, opset 20``."""
    changes: tuple[str, ...] = ()
    """Edits that the import made to the graph, one sentence each, e.g. a final ArgMax that was cut off."""


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A model, its files and their meaning."""

    path: Path
    """Folder of the bundle."""
    task: Task
    """Kind of output that the graphs compute."""
    files: tuple[ModelFile, ...]
    """ONNX files and their external data."""
    input: InputSpec
    """How an image becomes the input."""
    outputs: tuple[OutputSpec, ...]
    """Meaning of the outputs; of a ``semantic`` bundle the scores come first."""
    classes: tuple[str, ...] = ()
    """Class names in the order of the class axis."""
    background: int | None = None
    """Index of the background class, or None if the model has none."""
    reduced_labels: bool = False
    """True if label maps of the model's dataset hold 0 for unlabeled pixels and k + 1 for class k, as ADE20K's do
    (``do_reduce_labels`` of a Hugging Face preprocessor).
    """
    prompt: PromptSpec | None = None
    """Prompts of a ``promptable`` bundle's decoder; None for other tasks."""
    text: TextSpec | None = None
    """Texts of a ``text`` bundle, whose classes are named when it labels; None for other tasks."""
    source: Provenance = field(default_factory=Provenance)
    """Origin of the model."""
    verdicts: tuple[Mapping[str, Any], ...] = ()
    """Reports of the export gate, one per artifact, runtime and device."""
    engines: tuple[Mapping[str, Any], ...] = ()
    """Engines built from the graphs: architecture, TensorRT version, precision, profile, sha256."""

    def __post_init__(self) -> None:
        check_choice("task", self.task, Task)
        if (self.prompt is not None) != (self.task == "promptable"):
            raise UsageError("a promptable bundle, and no other, says how its decoder is prompted")
        if (self.text is not None) != (self.task == "text"):
            raise UsageError("a bundle of the task text, and no other, says how it takes class names")
        check_class_names(self.classes)
        if self.input.bands is not None and self.task != "semantic":
            raise UsageError(f"bands feed semantic models only; a {self.task} bundle takes photos")
        if self.task == "detector" and not self.classes:
            raise UsageError("a detector needs the names of its classes, got none")
        if self.task == "semantic" and len(self.classes) < 2:
            raise UsageError(
                f"a semantic model needs at least two classes, got {len(self.classes)}; a model with one channel has "
                "its class and the background, at one minus the class's probability"
            )
        objects = [output.kind for output in self.outputs if output.kind in OBJECT_KINDS]
        if objects and (self.task not in ("semantic", "text") or sorted(objects) != sorted(OBJECT_KINDS)):
            raise UsageError(
                f"a semantic bundle with objects has the outputs {', '.join(OBJECT_KINDS)}; got {', '.join(objects)}"
            )
        kinds = sorted(output.kind for output in self.outputs if output.kind not in ("features", *OBJECT_KINDS))
        embeddings = kinds.count("embedding")
        if sorted(kinds) != sorted([*_KINDS[self.task], *["embedding"] * (embeddings - 1)]):
            raise UsageError(
                f"a {self.task} bundle has the outputs {', '.join(_KINDS[self.task])}, and optionally features; "
                f"got {', '.join(output.kind for output in self.outputs) or 'none'}"
            )
        if self.task == "semantic" and self.outputs[0].kind != "scores":
            raise UsageError("the scores must be the first output of a semantic bundle")
        if self.background is not None and not 0 <= self.background < len(self.classes):
            raise UsageError(f"background index {self.background} is not one of the {len(self.classes)} classes")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Bundle:
        """Read a bundle's manifest; the files are checked when :meth:`verify` is called. A URL is copied first.

        Raises :class:`BundleError` if the folder is not a bundle, or its manifest is damaged or of another format.
        """
        manifest = (folder := fetched(path)) / MANIFEST
        try:
            if folder.is_file():
                raise FileNotFoundError(manifest)
            raw = read_json_object(manifest)
        except FileNotFoundError:
            raise BundleError(
                f"{shown(folder)} is not a model bundle: it has no {MANIFEST}; make one with "
                f"`maskmill import MODEL.onnx -o {'BUNDLE' if is_url(shown(folder)) else folder}`"
            ).of_the_call() from None
        except UsageError as error:
            raise BundleError(f"{shown(error)}; make the bundle again") from error
        version = raw.pop("format_version", None)
        if version != FORMAT_VERSION:
            raise BundleError(
                f"{shown(manifest)} has format version {version!r:.80}, this maskmill reads {FORMAT_VERSION}; "
                "import or export the model again"
            )
        try:
            if missing_names := [
                field.name for field in dataclasses.fields(cls) if field.name not in {*raw, "path", "text"}
            ]:
                raise UsageError(f"{missing_names[0]} is missing")
            return read_value(cls, {**raw, "path": os.fspath(folder)})
        except (BundleError, UsageError) as error:
            raise BundleError(f"{shown(manifest)} is damaged: {error}; make the bundle again") from error

    @property
    def location(self) -> str:
        """Path of the folder, or the URL of a bundle behind a URL."""
        return shown(self.path)

    def save(self) -> None:
        """Write the manifest atomically; the files must be in place already."""
        raw: dict[str, Any] = {"format_version": FORMAT_VERSION, **dataclasses.asdict(self)}
        del raw["path"]
        write_atomically(self.path / MANIFEST, (json.dumps(raw, indent=2) + "\n").encode(), sync=True)

    def verify(self) -> None:
        """Compare every file with its recorded hash; raises :class:`BundleError` naming the first that differs."""
        for entry in self.files:
            file = self.path / entry.path
            if not file.is_file():
                raise BundleError(f"the bundle lacks its file {shown(file)}; make the bundle again")
            if file.stat().st_size != entry.bytes or sha256(file) != entry.sha256:
                raise BundleError(
                    f"{shown(file)} is not the file the bundle was made with (its hash differs); make the bundle again"
                )

    def file(self, role: str = "model", precision: str | None = None) -> ModelFile:
        """Return the ONNX file for ``role``: the first one listed, or the one in ``precision``.

        Raises :class:`BundleError` if the bundle has no such file.
        """
        for entry in self.files:
            if entry.role == role and precision in (None, entry.precision):
                return entry
        graphs = [entry for entry in self.files if entry.role not in ("external-data", "tokenizer")]
        names = ", ".join(f"{entry.role} in {entry.precision}" for entry in graphs)
        name = f"{role} in {precision}" if precision else role
        raise BundleError(f"{self.location} has no {name} (it has {names})")

    def model_path(self, role: str = "model", precision: str | None = None) -> Path:
        """Return the path of the file that :meth:`file` returns."""
        return self.path / self.file(role, precision).path

    def outputs_of(self, role: str = "model") -> tuple[OutputSpec, ...]:
        """Return the outputs of the graph for ``role``; a promptable bundle has two graphs, one for texts three."""
        if self.task not in ("promptable", "text"):
            return self.outputs
        roles = {"embedding": "encoder", "text_features": "text"}
        return tuple(output for output in self.outputs if roles.get(output.kind, "decoder") == role)

    def at_size(self, height: int, width: int) -> Bundle:
        """Return the bundle with another input size, in pixels; raises :class:`UsageError` if the size is fixed."""
        if not self.input.dynamic and (height, width) != (self.input.height, self.input.width):
            raise UsageError(
                f"{self.location} takes {self.input.height}x{self.input.width} images only, not {height}x{width}; "
                "export the model with that size"
            )
        return dataclasses.replace(self, input=dataclasses.replace(self.input, height=height, width=width))

    @property
    def has_objects(self) -> bool:
        """True if the graph gives single objects beside its scores."""
        return any(output.kind in OBJECT_KINDS for output in self.outputs)

    @property
    def fingerprint(self) -> str:
        """Hash of everything that decides the scores: task, original files, input, outputs and classes."""
        raw = dataclasses.asdict(self)
        decisive = {key: raw[key] for key in ("task", "input", "outputs", "classes", "background", "prompt")}
        decisive["input"] = {name: value for name, value in raw["input"].items() if value is not None}
        if self.text is not None:
            decisive["text"] = raw["text"]
        decisive["files"] = [file for file in raw["files"] if not file["derived_from"]]
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def check_class_names(names: Sequence[str]) -> None:
    """Raise :class:`UsageError` unless every class name is printable and unique."""
    for index, name in enumerate(names):
        if not isinstance(name, str) or not name.strip() or not name.isprintable():
            raise UsageError(f"class {index} has the name {name!r:.80}; a class name is a text of one line, not empty")
    if len(set(names)) != len(names):
        repeated = sorted({name for name in names if list(names).count(name) > 1})
        raise UsageError(f"class names must be unique; listed more than once: {name_list(repeated)}")


OBJECT_KINDS: tuple[Kind, ...] = ("object_scores", "object_classes", "object_masks")
"""Outputs of a semantic bundle that gives single objects as well, in their order."""

_KINDS = {
    "semantic": ["scores"],
    "cam": ["cam", "logits"],
    "promptable": ["embedding", "mask_scores", "masks"],
    "detector": ["box_scores", "boxes"],
    "text": ["embedding", "scores", "text_features"],
}
