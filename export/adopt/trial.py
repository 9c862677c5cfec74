"""Run a graph on import: its outputs must be finite, reproducible, and independent of the rest of the batch.

::

    trial = Trial(path, "image", ["scores"])
    batch = trial.fixed_batch(tensors)           # None if any batch is fine
    outputs = trial.steady_outputs(tensors)      # BundleError names the fault
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...engine.inputs.images import preprocess
from ...engine.model.input_spec import InputSpec
from ...engine.runtimes.base import first_line
from ...engine.runtimes.onnx_runtime import run_graph, session_settings
from ...errors import BundleError, MissingPackageError, SessionError
from ...kernels.processors import usable_processors
from ..pictures import GateImage, generated_images

REPEAT_ERROR = 1e-5
"""Largest difference between two runs on the same input, as a share of the output's largest magnitude."""
BATCH_ERROR = 1e-3
"""Largest difference between an image's output alone and in a batch, as a share of the output's largest magnitude:
kernels for other batch sizes sum in another order, and quantized graphs may round to the next step.
"""
BATCH_SHARE = 1e-3
"""Share of an output's values that may differ by more than :data:`BATCH_ERROR`."""
_BATCHES = (2, 4, 8, 16, 32, 64)


class Trial:
    """A graph in ONNX Runtime on the CPU, without a bundle."""

    def __init__(self, path: Path, image: str, outputs: Sequence[str]) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingPackageError("onnxruntime", "cpu", "importing a model") from error
        settings = session_settings("fp32", usable_processors(), log_severity=4)  # errors are raised, not logged
        settings["sess_options"].add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"], **settings)
        except Exception as error:
            raise SessionError(f"ONNX Runtime cannot load {path}: {first_line(error)}") from error
        self._image, self._outputs = image, list(outputs)
        batch = self._session.get_inputs()[0].shape[0]
        self._batch: int | None = batch if isinstance(batch, int) else None

    def run(self, batch: NDArray[np.float32]) -> list[NDArray[Any]]:
        """Run a batch (N, …) and return the outputs; raises :class:`SessionError`."""
        try:
            return [np.asarray(output) for output in run_graph(self._session, self._outputs, {self._image: batch})]
        except Exception as error:
            raise SessionError(f"the model failed on an input of shape {batch.shape}: {first_line(error)}") from error

    def fixed_batch(self, tensors: Sequence[NDArray[np.float32]]) -> int | None:
        """Return the only batch size that a graph accepts despite a free batch axis in its signature; else None.

        Raises :class:`SessionError` if no batch runs.
        """
        if self._batch is not None:
            return None
        try:
            self._run_batch(tensors, 1)
        except SessionError as error:
            for size in _BATCHES:
                if self._takes(tensors, size):
                    return size
            raise error
        return None if self._takes(tensors, 2) else 1

    def steady_outputs(self, tensors: Sequence[NDArray[np.float32]]) -> list[list[NDArray[Any]]]:
        """Return the outputs of each of at least three images, (…) without the batch axis.

        Raises :class:`BundleError` for values that are not finite, that differ between two runs, or that depend on the
        other images of the batch.
        """
        size = self._batch or 1
        outputs = [self._run_batch([tensor], size, pad=tensor) for tensor in tensors]
        for values in outputs:
            for name, value in zip(self._outputs, values, strict=True):
                if not np.isfinite(value).all():
                    raise BundleError(f"run on generated images, the model gives a {name} that is not finite; refused")
        self._compare(outputs[0], self._run_batch([tensors[0]], size, pad=tensors[0]), REPEAT_ERROR, 0.0, _CHANCE)
        if size > 1 or self._batch is None:
            for filler in tensors[1:3]:
                batched = self._run_batch([tensors[0]], max(size, 2), pad=filler)
                self._compare(outputs[0], batched, BATCH_ERROR, BATCH_SHARE, _NEIGHBORS)
        return outputs

    def _run_batch(
        self, tensors: Sequence[NDArray[np.float32]], size: int, *, pad: NDArray[np.float32] | None = None
    ) -> list[NDArray[Any]]:
        """Run a batch of ``size`` and return the outputs of its first image."""
        last = tensors[-1] if pad is None else pad
        batch = np.stack([*tensors[:size], *[last] * (size - len(tensors))])
        outputs = self.run(batch)
        for name, output in zip(self._outputs, outputs, strict=True):
            if output.ndim < 1 or len(output) != size:
                raise SessionError(
                    f"the model gives a {name} of shape {output.shape} for a batch of {size}; its first axis must be "
                    "the batch"
                )
        return [output[0] for output in outputs]

    def _takes(self, tensors: Sequence[NDArray[np.float32]], size: int) -> bool:
        try:
            self._run_batch(tensors, size)
        except SessionError:
            return False
        return True

    def _compare(
        self, expected: list[NDArray[Any]], actual: list[NDArray[Any]], limit: float, share: float, reason: str
    ) -> None:
        for name, first, second in zip(self._outputs, expected, actual, strict=True):
            largest = max(1e-6, float(np.abs(first, dtype=np.float64).max(initial=0.0)))
            differs = np.abs(first.astype(np.float64) - second) > limit * largest
            if first.shape != second.shape or float(differs.mean()) > share:
                raise BundleError(f"the output {name} of an image {reason}; refused")


def trial_tensors(spec: InputSpec, images: Sequence[GateImage] = (), *, at_least: int = 3) -> list[NDArray[np.float32]]:
    """Prepare the given photos, and generated pictures up to a total of ``at_least``, as a model's input."""
    pictures = [*images, *generated_images(spec, max(0, at_least - len(images)))]
    return [preprocess(picture, spec)[0] for _, picture in pictures]


_CHANCE = "differs between two runs on the same input; export the model without random operators"
_NEIGHBORS = "depends on the other images of its batch; export the model in evaluation mode (model.eval())"
