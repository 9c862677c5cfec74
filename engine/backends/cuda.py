"""The backend of a predictor on an NVIDIA GPU: what comes down from there is label and weight maps.

::

    predictor = SemanticPredictor(bundle, TensorRTSession(bundle), backend=CudaBackend())

Three streams. All kernels and the model work on one, in the order in which threads queue them, so that a stage may hand
its arrays to another thread. Photos go up on a second one, through pinned memory, and results come down on a third:
copies pass while the first one computes. Nothing waits for the device but the thread that needs a result, and one that
would overwrite an upload which is still being read.
"""

from __future__ import annotations

import importlib
import threading
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ... import kernels
from ..inputs.images import MAX_PIXELS, decode_image, image_size, resized_size
from ..model.bundle import InputSpec
from ..runtimes.device_arrays import array_over, is_device_array
from ..runtimes.nvidia import this_gpu


@dataclass
class _Staging:
    """Where one thread's photos pass on their way up."""

    pinned: NDArray[np.uint8]
    """(bytes,) on the host, which the device can read by itself."""
    device: Any
    """(bytes,) uint8 on the device."""
    read: Any
    """Event: the kernel that reads ``device`` is done."""


class CudaBackend:
    """CuPy's current device. Raises :class:`SessionError` where there is none, :class:`MissingPackageError`.

    JPEG files are decoded there by nvImageCodec where it is installed; everything else, and JPEG files that it does
    not take, by the calling threads as on a processor.
    """

    def __init__(self) -> None:
        self._gpu = this_gpu()
        import cupy

        self._cupy = cupy
        self._compute, self._upload, self._download = (cupy.cuda.Stream(non_blocking=True) for _ in range(3))
        self._local = threading.local()
        try:
            self._codec: Any = importlib.import_module("nvidia.nvimgcodec")
        except ImportError:
            self._codec = None

    @property
    def form(self) -> str:
        """``cuda``, or with another JPEG decoder ``cuda, nvImageCodec``: pixels may differ by a level."""
        return "cuda" if self._codec is None else "cuda, nvImageCodec"

    @property
    def xp(self) -> Any:
        """CuPy."""
        return self._cupy

    @property
    def queued(self) -> bool:
        """True: a call leaves its work in the queue."""
        return True

    def decode(self, data: bytes, *, max_pixels: int = MAX_PIXELS) -> Any:
        """As :func:`maskmill.engine.inputs.images.decode_image`; JPEG on the device where that is possible."""
        # one that is cut short is for the host's decoder, which says so instead of filling it up
        whole_jpeg = data[:3] == b"\xff\xd8\xff" and data.rstrip(b"\0").endswith(b"\xff\xd9")
        if self._codec is not None and whole_jpeg:
            image_size(data, max_pixels=max_pixels)  # refuses what is too large
            image = self._decoded(data)
            if image is not None:
                return image
        return decode_image(data, max_pixels=max_pixels)

    def preprocess(self, image: Any, spec: InputSpec) -> tuple[Any, tuple[float, float]]:
        """As :func:`maskmill.engine.inputs.images.preprocess`, by the kernel ``resize_normalize``."""
        height, width = resized_size(image.shape[0], image.shape[1], spec)
        staging = None
        if not is_device_array(image):
            image, staging = self._uploaded(image)
        tensor = kernels.resize_normalize(
            image,
            (height, width),
            filter=spec.resize_filter,
            antialias=spec.antialias,
            scale=spec.scale,
            mean=spec.mean,
            std=spec.std,
            channels=spec.channels,
            layout="HWC" if spec.layout == "NHWC" else "CHW",
            pad_to=(spec.height, spec.width),
            pad_value=spec.pad_value,
        )
        if staging is not None:
            staging.read.record(self._compute)
        return tensor, (height / spec.height, width / spec.width)

    def queue(self) -> AbstractContextManager[Any]:
        """Everything inside is queued on the one stream that computes."""
        return self._compute

    def download(self, *arrays: Any) -> list[NDArray[Any]]:
        """The arrays in pinned memory, copied on a stream of their own; waits for them alone."""
        import cupyx

        arrays = tuple(self._cupy.asarray(array, order="C") for array in arrays)
        self._download.wait_event(self._compute.record())
        copies = [cupyx.empty_pinned(array.shape, array.dtype) for array in arrays]
        for array, copy in zip(arrays, copies, strict=True):
            self._cupy.asnumpy(array, stream=self._download, out=copy, blocking=False)
        # `arrays` are not given back before the copies are done
        self._download.record(self._cupy.cuda.Event(block=True, disable_timing=True)).synchronize()
        return copies

    def __repr__(self) -> str:
        jpeg = "on the processor (nvImageCodec is not installed)" if self._codec is None else "by nvImageCodec"
        return f"images and kernels on {self._gpu} (CUDA), JPEG decoded {jpeg}"

    def _decoded(self, data: bytes) -> Any:
        """(H, W, 3) uint8 RGB on the device, upright, or None where nvImageCodec does not take this file."""
        codec = self._codec
        if not hasattr(self._local, "decoder"):
            self._local.decoder = codec.Decoder(max_num_cpu_threads=1)
            self._local.params = codec.DecodeParams(apply_exif_orientation=True, color_spec=codec.ColorSpec.SRGB)
        image = self._local.decoder.decode(
            codec.CodeStream(data), params=self._local.params, cuda_stream=self._compute.ptr
        )
        if image is None:
            return None
        # decoded, read and given back on the one stream; CuPy's own conversion would wait for all of it
        memory = image.__cuda_array_interface__
        shape = tuple(memory["shape"])
        if len(shape) != 3 or shape[2] != 3 or memory["typestr"] != "|u1" or memory.get("strides") is not None:
            return None
        return array_over(memory["data"][0], shape, np.uint8, image)

    def _uploaded(self, image: NDArray[np.uint8]) -> tuple[Any, _Staging]:
        """The image on the device, in this thread's staging memory."""
        staging = getattr(self._local, "staging", None)
        if staging is not None:
            staging.read.synchronize()
        if staging is None or staging.pinned.size < image.size:
            import cupyx

            self._local.staging = staging = _Staging(
                pinned=cupyx.empty_pinned(image.size, np.uint8),
                device=self._cupy.empty(image.size, np.uint8),
                read=self._cupy.cuda.Event(block=True, disable_timing=True),
            )
        pinned = staging.pinned[: image.size].reshape(image.shape)
        pinned[...] = image
        array = staging.device[: image.size].reshape(image.shape)
        array.set(pinned, stream=self._upload)
        self._compute.wait_event(self._upload.record())
        return array, staging
