"""What a model is: a folder with ``bundle.json`` beside its ONNX files and engines.

Everything that labeling needs to know about a model stands in the manifest: how an image becomes its input, what its
output means, its classes, where it came from, and which artifacts were proved right where::

    bundle = Bundle.load("deeplab")
    bundle.input.height, bundle.classes, bundle.model_path()

Only the standard library is used, so that every package can import this module.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from ...errors import BundleError, UsageError
from .files import sha256
from .publishing import write_atomically

FORMAT_VERSION = 1
MANIFEST = "bundle.json"

Task = Literal["semantic", "cam", "promptable"]
Layout = Literal["NCHW", "NHWC"]
Resize = Literal["stretch", "longest-side"]
ResizeFilter = Literal["bilinear", "bicubic", "area"]
Channels = Literal["RGB", "BGR"]
Activation = Literal["softmax", "sigmoid", "none"]

_CHOICES = {
    "task": ("semantic", "cam", "promptable"),
    "layout": ("NCHW", "NHWC"),
    "resize": ("stretch", "longest-side"),
    "resize_filter": ("bilinear", "bicubic", "area"),
    "channels": ("RGB", "BGR"),
    "activation": ("softmax", "sigmoid", "none"),
    "kind": ("scores", "logits", "cam", "features", "embedding", "masks", "mask_scores"),
    "role": ("model", "encoder", "decoder", "external-data"),
    "signature": ("batched", "official"),
}

T = TypeVar("T")


def _check_choice(name: str, value: str) -> None:
    if value not in _CHOICES[name]:
        raise UsageError(f"{name.replace('_', '-')} must be one of {', '.join(_CHOICES[name])}, got {value!r}")


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """How an image (HWC uint8 RGB, [0, 255]) becomes the model's input: x = (pixel * scale - mean) / std."""

    name: str
    """Name of the graph's input tensor."""
    layout: Layout = "NCHW"
    """Order of the input's axes."""
    height: int
    """Rows of the input, in pixels."""
    width: int
    """Columns of the input, in pixels."""
    resize: Resize = "stretch"
    """``stretch`` fills the input; ``longest-side`` keeps the aspect ratio and pads at the right and the bottom."""
    resize_filter: ResizeFilter = "bilinear"
    """Interpolation filter of the resize."""
    antialias: bool = True
    """Widen the filter when shrinking (Pillow's and torchvision's antialias)."""
    channels: Channels = "RGB"
    """Order of the color channels."""
    scale: float = 1.0 / 255.0
    """Factor applied to a pixel first."""
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Subtracted after scaling, in the order of ``channels``."""
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Divisor after subtracting, in the order of ``channels``."""
    pad_value: float | tuple[float, float, float] = 0.0
    """Value of padded pixels, in [0, 255] before scaling; one a channel, in the order of ``channels``, or one for all.

    SAM pads after normalizing, with zeros: its value is the mean of each channel.
    """
    dynamic: bool = False
    """Whether the graph takes other heights and widths too; ``height`` and ``width`` are then what is used."""
    multiple: int = 1
    """What the height and width of a dynamic input must be multiples of, in pixels."""

    def __post_init__(self) -> None:
        for name in ("layout", "resize", "resize_filter", "channels"):
            _check_choice(name, getattr(self, name))
        if self.height < 1 or self.width < 1:
            raise UsageError(f"the input size must be at least 1x1, got {self.height}x{self.width}")
        if self.multiple < 1 or self.height % self.multiple or self.width % self.multiple:
            raise UsageError(
                f"the input size must be a multiple of {self.multiple} pixels, got {self.height}x{self.width}"
            )
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) != 3 or not all(math.isfinite(value) for value in values):
                raise UsageError(f"{name} must be three finite numbers, one a channel, got {values!r}")
        if min(self.std) <= 0:
            raise UsageError(f"std must be positive in every channel, got {self.std!r}")
        if not math.isfinite(self.scale) or self.scale == 0:
            raise UsageError(f"scale must be a finite number other than 0, got {self.scale!r}")
        if not self.antialias and self.resize_filter == "area":
            raise UsageError("the area filter always averages; choose bilinear or bicubic with --no-antialias")


@dataclass(frozen=True, kw_only=True)
class OutputSpec:
    """What one output tensor of the graph means."""

    name: str
    """Name of the graph's output tensor."""
    kind: Literal["scores", "logits", "cam", "features", "embedding", "masks", "mask_scores"] = "scores"
    """``scores``: per-class score maps; the other kinds belong to the cam and promptable tasks."""
    activation: Activation = "softmax"
    """What turns the stored values into scores; ``none``: they are scores already."""
    class_axis: int = 1
    """Axis of the classes in the batched tensor: 1 (N,C,h,w) or 3 (N,h,w,C)."""

    def __post_init__(self) -> None:
        _check_choice("kind", self.kind)
        _check_choice("activation", self.activation)
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
    role: Literal["model", "encoder", "decoder", "external-data"] = "model"
    """What the file is for."""
    precision: str = "fp32"
    """fp32, fp16, bf16, int8 or fp8."""
    derived_from: str = ""
    """Hash of the file that this one was converted from; empty for what the bundle was made with."""

    def __post_init__(self) -> None:
        _check_choice("role", self.role)
        if Path(self.path).is_absolute() or ".." in Path(self.path).parts:
            raise BundleError(f"the bundle names the file {self.path!r} outside its own folder; make the bundle again")


@dataclass(frozen=True, kw_only=True)
class PromptSpec:
    """How points reach a promptable bundle's decoder; a prompt is a set of points on one image, and gives masks.

    Points are (x, y) in pixels of the encoder's input, labels 1 on the object, 0 off it, 2 and 3 the corners of a box,
    -1 padding. ``batched`` takes N prompts at once: the encoder's outputs by their names, each (N, …), one row a
    prompt; ``points`` (N, P, 2) and ``labels`` (N, P), both float32. ``official`` is the signature that SAM's authors
    export: one image, one prompt (1, P, 2), and further inputs that say there is no earlier mask.
    """

    signature: Literal["batched", "official"] = "batched"
    """Which inputs the decoder takes."""
    num_masks: int = 1
    """Masks that a prompt gives, M."""
    mask_height: int
    """Rows of a low-resolution mask of logits, in its own pixels; it covers the whole encoder input."""
    mask_width: int
    """Columns of a mask."""

    def __post_init__(self) -> None:
        _check_choice("signature", self.signature)
        if min(self.num_masks, self.mask_height, self.mask_width) < 1:
            raise UsageError(f"a prompt gives at least one mask of 1x1, got {self}")


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where a model came from."""

    id: str = ""
    """File name or hub id."""
    revision: str = ""
    """Revision at the origin, where there is one."""
    weights_sha256: str = ""
    """Hash of the weights it was made from."""
    license: str = ""
    """License of the weights."""
    exporter: str = ""
    """What made the graphs and their ONNX opset, e.g. ``torch 2.13.0, transformers 5.24.0, opset 20``."""


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A model, its files and their meaning."""

    path: Path
    """Folder of the bundle."""
    task: Task
    """What the graphs compute."""
    files: tuple[ModelFile, ...]
    """ONNX files and their external data."""
    input: InputSpec
    """How an image becomes the input."""
    outputs: tuple[OutputSpec, ...]
    """What the outputs mean."""
    classes: tuple[str, ...] = ()
    """Class names in the order of the class axis."""
    background: int | None = None
    """Index of the background class, or None where the model has none."""
    prompt: PromptSpec | None = None
    """How the decoder of a ``promptable`` bundle is prompted; None for other tasks."""
    source: Provenance = field(default_factory=Provenance)
    """Where the model came from."""
    verdicts: tuple[Mapping[str, Any], ...] = ()
    """Reports of the export gate, one an artifact, runtime and device."""
    engines: tuple[Mapping[str, Any], ...] = ()
    """Engines built from the graphs: architecture, TensorRT version, precision, profile, sha256."""

    def __post_init__(self) -> None:
        _check_choice("task", self.task)
        if (self.prompt is not None) != (self.task == "promptable"):
            raise UsageError("a promptable bundle, and no other, says how its decoder is prompted")
        if len(set(self.classes)) != len(self.classes):
            twice = sorted({name for name in self.classes if self.classes.count(name) > 1})
            raise UsageError(f"class names must be unique; listed more than once: {', '.join(twice)}")
        if self.background is not None and not 0 <= self.background < len(self.classes):
            raise UsageError(f"background index {self.background} is not one of the {len(self.classes)} classes")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Bundle:
        """Read a bundle's manifest; the files are checked when :meth:`verify` is called.

        Raises :class:`BundleError` where the folder is not a bundle or was written by a newer maskmill.
        """
        folder = Path(path)
        manifest = folder / MANIFEST
        try:
            raw = json.loads(manifest.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise BundleError(
                f"{folder} is not a model bundle: it has no {MANIFEST}; "
                f"make one with `maskmill import MODEL.onnx -o {folder}`"
            ) from None
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise BundleError(f"cannot read {manifest}: {error}") from error
        version = raw.get("format_version") if isinstance(raw, dict) else None
        if version != FORMAT_VERSION:
            raise BundleError(f"{manifest} has format version {version}, this maskmill reads {FORMAT_VERSION}")
        try:
            return cls(
                path=folder,
                task=raw["task"],
                files=tuple(_load(ModelFile, entry) for entry in raw["files"]),
                input=_load(InputSpec, raw["input"]),
                outputs=tuple(_load(OutputSpec, entry) for entry in raw["outputs"]),
                classes=tuple(raw["classes"]),
                background=raw["background"],
                prompt=None if raw.get("prompt") is None else _load(PromptSpec, raw["prompt"]),
                source=_load(Provenance, raw["source"]),
                verdicts=tuple(raw["verdicts"]),
                engines=tuple(raw["engines"]),
            )
        except (KeyError, TypeError, UsageError) as error:
            raise BundleError(f"{manifest} is damaged: {error}; make the bundle again") from error

    def save(self) -> None:
        """Write the manifest atomically; the files must be in place already."""
        raw: dict[str, Any] = {"format_version": FORMAT_VERSION, **dataclasses.asdict(self)}
        del raw["path"]
        write_atomically(self.path / MANIFEST, (json.dumps(raw, indent=2) + "\n").encode(), sync=True)

    def verify(self) -> None:
        """Compare every file with its recorded hash; raise :class:`BundleError` naming the first that differs."""
        for entry in self.files:
            file = self.path / entry.path
            if not file.is_file():
                raise BundleError(f"the bundle lacks its file {file}; make the bundle again")
            if file.stat().st_size != entry.bytes or sha256(file) != entry.sha256:
                raise BundleError(
                    f"{file} is not the file the bundle was made with (its hash differs); make the bundle again"
                )

    def file(self, role: str = "model", precision: str | None = None) -> ModelFile:
        """The ONNX file for ``role``; the first one listed unless ``precision`` asks for another."""
        for entry in self.files:
            if entry.role == role and precision in (None, entry.precision):
                return entry
        have = ", ".join(f"{entry.role} in {entry.precision}" for entry in self.files if entry.role != "external-data")
        wanted = f"{role} in {precision}" if precision else role
        raise BundleError(f"{self.path} has no {wanted} (it has {have})")

    def model_path(self, role: str = "model", precision: str | None = None) -> Path:
        """Path of the file that :meth:`file` gives."""
        return self.path / self.file(role, precision).path

    def outputs_of(self, role: str = "model") -> tuple[OutputSpec, ...]:
        """What the graph for ``role`` gives: of a promptable bundle its encoder's or its decoder's outputs."""
        if self.task != "promptable":
            return self.outputs
        return tuple(output for output in self.outputs if (output.kind == "embedding") == (role == "encoder"))

    def at_size(self, height: int, width: int) -> Bundle:
        """The same bundle with another input size, in pixels; :class:`UsageError` where the graph has a fixed one."""
        if not self.input.dynamic and (height, width) != (self.input.height, self.input.width):
            raise UsageError(
                f"{self.path} takes {self.input.height}x{self.input.width} images only, not {height}x{width}; "
                "export the model with that size"
            )
        return dataclasses.replace(self, input=dataclasses.replace(self.input, height=height, width=width))

    @property
    def fingerprint(self) -> str:
        """Hash of what decides the scores: task, original files, input, outputs and classes."""
        raw = dataclasses.asdict(self)
        decisive = {key: raw[key] for key in ("task", "input", "outputs", "classes", "background", "prompt")}
        decisive["files"] = [file for file in raw["files"] if not file["derived_from"]]
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def _load(kind: type[T], raw: Mapping[str, Any]) -> T:
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in raw.items()})
