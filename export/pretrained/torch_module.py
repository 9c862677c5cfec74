"""Make a bundle from a ``torch.nn.Module``: export it, check it, and compare it with the module before publishing it.

::

    bundle = bundle_from_module(
        module,                                  # (N,3,H,W) float32 → logits (N,C,h,w)
        "bundle",
        task="semantic",
        input=InputSpec(name="image", height=512, width=512, dynamic=True, multiple=32, mean=(0, 0, 0), std=(1, 1, 1)),
        outputs=[OutputSpec(name="scores", activation="softmax")],
        classes=["background", "cat"],
        background="background",
    )

A promptable bundle has its encoder as ``module`` and its decoder as ``decoder``. Graphs come from torch's dynamo
exporter with a free batch axis; the outputs of the fp32 file must equal the module's (:mod:`..gate.parity`), or nothing
is written.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...checks import name_list
from ...engine.model.bundle import Bundle, ModelFile, OutputSpec, PromptSpec, Provenance, Role, Task, TextSpec
from ...engine.model.input_spec import InputSpec
from ...engine.runtimes.base import Session, first_line
from ...errors import ExportError, MissingPackageError, SessionError, UsageError
from ..gate.parity import prove
from ..graph import load_checked
from ..pictures import GateImage
from ..staging import model_file, staged

if TYPE_CHECKING:
    from torch import Tensor, nn

OPSET = 20
"""ONNX operator set of every exported graph."""

MAX_FILE_BYTES = 2**31 - 2**24
"""Size of the weights above which they get their own file, since a protobuf message is limited to 2 GiB."""

# sizes of the traced example; the comparison uses others, to find axes that the exporter froze
_TRACED_BATCH, _TRACED_POINTS, _TRACED_TEXTS, _TRACED_TOKENS = 2, 4, 3, 5


def bundle_from_module(
    module: nn.Module,
    folder: str | os.PathLike[str],
    *,
    task: Task,
    input: InputSpec,
    outputs: Sequence[OutputSpec],
    classes: Sequence[str] = (),
    background: str | None = None,
    reduced_labels: bool = False,
    decoder: nn.Module | None = None,
    prompt: PromptSpec | None = None,
    text: TextSpec | None = None,
    text_encoder: nn.Module | None = None,
    tokenizer: str = "",
    source: Provenance | None = None,
    images: Iterable[GateImage] | None = None,
) -> Bundle:
    """Export a module and adopt it; the bundle's first verdict is its comparison with the module.

    Parameters
    ----------
    module
        (N, 3, H, W) float32, prepared as ``input`` says → one tensor, or a tuple in the order of ``outputs``. Of a
        model with several graphs the image encoder. It is set to evaluation mode.
    folder
        The bundle's folder, which must not exist yet.
    task, input, outputs, classes, reduced_labels, prompt, text, source
        As in :class:`Bundle`. With ``input.dynamic``, heights and widths that are multiples of ``input.multiple`` are
        exported as free axes. If ``source`` has no hash of the weights, the module's is used; torch and the opset are
        added to its ``exporter``.
    background
        Name of the background class, if any.
    decoder
        Decoder of a promptable model: called with the embeddings in the order of ``outputs``, points (N, P, 2) and
        labels (N, P), float32, as :class:`PromptSpec` says for ``batched``; returns the other outputs in their order.
        Of a model that takes class names: called with the embeddings, texts and present as :class:`TextSpec` says.
    text_encoder, tokenizer
        Text encoder of a model that takes class names, as :class:`TextSpec` says, and the contents of its
        ``tokenizer.json``.
    images
        Names and (H, W, 3) uint8 RGB pixels of photos to compare on, such as a :class:`..gate.judge.GateImages`; they
        are iterated over twice. Generated pictures if None.

    Raises :class:`UsageError` for a specification that contradicts itself, :class:`ExportError` if torch cannot export
    the module, :class:`SessionError` if the module itself fails on a batch of 1 or 4, :class:`GateError` if the graph's
    output differs from the module's.
    """
    _require_torch()
    folder = Path(folder)
    if input.layout != "NCHW":
        raise UsageError("a torch module takes images as NCHW; export it with that layout")
    if background is not None and background not in classes:
        raise UsageError(f"the background {background!r} is not one of the classes: {name_list(classes)}")
    if (decoder is not None) != (task in ("promptable", "text")):
        raise UsageError("a bundle of the task promptable or text, and no other, is exported with a decoder")
    modules: dict[Role, nn.Module] = {"model": module} if decoder is None else {"encoder": module, "decoder": decoder}
    if text_encoder is not None:
        modules["text"] = text_encoder
    for part in modules.values():
        part.eval()
    source = source or Provenance()
    with staged(folder) as staging:
        bundle = Bundle(
            path=staging,
            task=task,
            files=(),
            input=input,
            outputs=tuple(outputs),
            classes=tuple(classes),
            background=None if background is None else list(classes).index(background),
            reduced_labels=reduced_labels,
            prompt=prompt,
            text=text,
            source=dataclasses.replace(
                source,
                weights_sha256=source.weights_sha256 or _weights_sha256(modules.values()),
                exporter=", ".join(filter(None, (source.exporter, _exporter()))),
            ),
        )
        files = [
            file
            for role, args in _example_inputs(bundle, modules).items()
            for file in _export(modules[role], args, bundle, role)
        ]
        if tokenizer:
            (staging / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
            files.append(model_file(staging / "tokenizer.json", role="tokenizer"))
        bundle = dataclasses.replace(bundle, files=tuple(files))
        sessions: dict[str, Session] = {
            role: TorchSession(part, bundle.source.weights_sha256) for role, part in modules.items()
        }
        prove(bundle, sessions, images).save()
    return Bundle.load(folder)


def as_module(forward: Callable[..., Any], *models: nn.Module) -> nn.Module:
    """Return the module that computes ``forward(*models, *inputs)``: a model with its post-processing folded in."""
    _require_torch()
    from torch import nn

    class Folded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.models = nn.ModuleList(models)

        def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
            return forward(*self.models, *inputs)

    return Folded().eval()


class TorchSession:
    """Run a module behind the session protocol, on the processor, as the original in comparisons.

    ``artifact`` is the hash of its weights.
    """

    kind = "torch/cpu/fp32"
    max_batch: int | None = None

    def __init__(self, module: nn.Module, artifact: str = "") -> None:
        self._module = module
        self.artifact = artifact

    @property
    def threads(self) -> int:
        """Threads that one call uses on the host."""
        import torch

        return torch.get_num_threads()

    def run(self, inputs: NDArray[np.float32] | Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Run the module on a batch, or on the values of a mapping in their order."""
        import torch

        arrays = list(inputs.values()) if isinstance(inputs, Mapping) else [inputs]
        try:
            with torch.no_grad():
                outputs = self._module(*(torch.from_numpy(np.ascontiguousarray(array)) for array in arrays))
        except Exception as error:
            shapes = ", ".join(str(tuple(array.shape)) for array in arrays)
            raise SessionError(f"the module fails on its input of shape {shapes}: {first_line(error)}") from error
        return [output.numpy() for output in ((outputs,) if isinstance(outputs, torch.Tensor) else outputs)]

    def __repr__(self) -> str:
        return f"PyTorch, cpu, fp32, {self.threads} thread(s)"


def _example_inputs(bundle: Bundle, modules: Mapping[Role, nn.Module]) -> dict[Role, list[tuple[str, Any, list[str]]]]:
    """Return (name, tensor, names of the free axes) of every input of each role, in the order of the call."""
    import torch

    spec = bundle.input
    image = torch.zeros(_TRACED_BATCH, spec.num_channels, spec.height, spec.width)
    free_axes = {0: "batch", 2: "height", 3: "width"} if spec.dynamic else {0: "batch"}
    roles: dict[Role, list[Any]] = {next(iter(modules)): [(spec.name, image, free_axes)]}
    if "decoder" not in modules:
        return roles
    embeddings = TorchSession(modules["encoder"]).run(image.numpy())
    names = [output.name for output in bundle.outputs_of("encoder")]
    axis = {0: "batch" if bundle.text else "prompts"}
    rows = [(name, torch.from_numpy(array), axis) for name, array in zip(names, embeddings, strict=True)]
    if bundle.text is not None:
        tokens = torch.ones(_TRACED_TEXTS, bundle.text.max_tokens, dtype=torch.int64)
        texts = TorchSession(modules["text"]).run({"ids": tokens.numpy(), "mask": tokens.numpy()})[0]
        # the exporter takes one tensor given twice for one input
        roles["text"] = [("input_ids", tokens, {0: "texts"}), ("attention_mask", tokens.clone(), {0: "texts"})]
        axis_names = {0: "texts", 1: "tokens"}
        token_mask = torch.ones(_TRACED_TEXTS, _TRACED_TOKENS, dtype=torch.bool)
        shortened = torch.from_numpy(texts[:, :_TRACED_TOKENS].copy())
        roles["decoder"] = [*rows, ("texts", shortened, axis_names), ("present", token_mask, axis_names)]
        return roles
    roles["decoder"] = [
        *rows,
        ("points", torch.ones(_TRACED_BATCH, _TRACED_POINTS, 2), {0: "prompts", 1: "points"}),
        ("labels", torch.ones(_TRACED_BATCH, _TRACED_POINTS), {0: "prompts", 1: "points"}),
    ]
    if bundle.prompt is not None and bundle.prompt.masks:
        shape = _TRACED_BATCH, 1, bundle.prompt.mask_height, bundle.prompt.mask_width
        roles["decoder"] += [
            ("mask_input", torch.zeros(shape), {0: "prompts"}),
            ("has_mask_input", torch.ones(_TRACED_BATCH), {0: "prompts"}),
        ]
    return roles


def _export(module: nn.Module, inputs: Sequence[Any], bundle: Bundle, role: Role) -> Iterator[ModelFile]:
    import torch

    names, tensors, free_axes = zip(*inputs, strict=True)
    with _quiet():
        try:
            program = torch.onnx.export(
                as_module(lambda part, *args: part(*args), module),
                tuple(tensors),
                dynamo=True,
                opset_version=OPSET,
                input_names=list(names),
                output_names=[output.name for output in bundle.outputs_of(role)],
                dynamic_shapes=(tuple(free_axes),),
                custom_translation_table=_translations(),
                optimize=True,
                verbose=False,
            )
        except Exception as error:
            raise ExportError(f"torch cannot export the {role}: {_cause(error)}") from error
    assert program is not None
    _check_outputs(program.model.graph.outputs, bundle, role)
    graph = program.model.graph
    for part in (*graph.inputs, *graph.initializers.values(), *graph.all_nodes()):
        # module names and local source paths, which are private and make up most of a small file
        part.metadata_props.clear()
    for node in graph.all_nodes():
        for value in node.outputs:
            value.metadata_props.clear()
    weights = sum(value.const_value.nbytes for value in graph.initializers.values())
    path = bundle.path / f"{role}.onnx"
    program.save(path, external_data=weights > MAX_FILE_BYTES)
    load_checked(path)
    yield model_file(path, role=role)
    for data in sorted(bundle.path.glob(f"{role}.onnx.*")):
        yield model_file(data, role="external-data")


def _translations() -> dict[Any, Any]:
    """Translate operators that torch leaves in a graph, such as the unused condition of a check."""
    import torch
    from onnxscript import INT32
    from onnxscript.onnx_opset import opset20 as op

    def is_all_true(values: Any) -> Any:
        return op.ReduceMin(op.Cast(values, to=INT32.dtype), keepdims=0) > 0

    return {torch.ops.aten._is_all_true.default: is_all_true}


def _check_outputs(values: Sequence[Any], bundle: Bundle, role: str) -> None:
    """Raise :class:`UsageError` if the manifest contradicts the graph."""
    outputs = bundle.outputs_of(role)
    if len(values) != len(outputs):
        raise UsageError(f"the {role} gives {len(values)} outputs, {len(outputs)} are described")
    for output, value in zip(outputs, values, strict=True):
        if output.kind not in ("scores", "logits", "cam") or bundle.text is not None:
            continue
        num_classes = value.shape[output.class_axis]
        if num_classes != len(bundle.classes):
            raise UsageError(
                f"the output {output.name!r} has shape {tuple(map(str, value.shape))}, so {num_classes} classes on "
                f"axis {output.class_axis}; {len(bundle.classes)} class names are given (background included)"
            )


def _cause(error: BaseException) -> str:
    """Return the first line of the innermost error of the exporter's chain."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)  # type: ignore[arg-type]


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's messages about deprecations inside torch and missing packages."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _weights_sha256(modules: Iterable[nn.Module]) -> str:
    digest = hashlib.sha256()
    for module in modules:
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _exporter() -> str:
    import torch

    return f"torch {torch.__version__}, opset {OPSET}"


def _require_torch() -> None:
    for name in ("torch", "onnxscript"):
        try:
            __import__(name)
        except ImportError as error:
            raise MissingPackageError(name, "export", "exporting a model") from error
