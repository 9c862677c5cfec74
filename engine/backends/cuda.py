"""The backend of an NVIDIA GPU: images, model inputs, scores and maps stay there; labels and weights are downloaded.

::

    predictor = SemanticPredictor(bundle, TensorRTSession(bundle), backend=CudaBackend())

Work is spread over four streams, so that copies and small kernels of the next images overlap the model:

=========  ===========================================================================================
decode     nvImageCodec decodes JPEG files, if it is installed
ingest     images are uploaded through pinned memory, resized and normalized
compute    models and kernels, in the order in which threads queue them
download   label and weight maps are copied to pinned memory
=========  ===========================================================================================

Events order the streams whenever data passes from one to another. Memory shared by streams is recycled; see
:mod:`maskmill.engine.backends.recycler`. Threads wait for the device only when they need a result, or when all upload
buffers are in use.
"""

from __future__ import annotations

import importlib
import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ... import kernels
from ...errors import ImageError
from ...kernels.gpu import device
from ...kernels.types import BackendArray
from ..inputs.images import MAX_PIXELS, image_size, preprocess, resized_size
from ..model.input_spec import BandSpec, InputSpec
from ..runtimes.device_arrays import array_over, is_device_array
from ..runtimes.nvidia import this_gpu
from .host import decoded_or_error
from .recycler import Recycler

if TYPE_CHECKING:
    import cupy

DECODE_SIZE = 8
"""Number of files per call of nvImageCodec."""
KEEP_SHARE = 4
"""Divisor: 1/KEEP_SHARE of the device's memory may hold results until the end of a run."""
MAX_STAGING = 16
"""Number of upload buffers in use at which a thread waits for the oldest."""
MAX_TENSORS = 64
"""Number of dropped model inputs that queued work still reads at which the ingest stream waits for the oldest."""
MAX_IMAGES = 64
"""Number of dropped images that queued work still reads at which a thread waits for the oldest."""


@dataclass(frozen=True)
class _Staging:
    """A pair of buffers through which an image is uploaded."""

    pinned: NDArray[np.uint8]
    """(bytes,) on the host; the device copies from it while the host continues."""
    device: cupy.ndarray
    """(bytes,) uint8 on the device, written and read on the ingest stream only."""
    copied: cupy.cuda.Event
    """Event that completes when the device has read ``pinned``."""


class _Lease:
    """Use of a recycled buffer; a finalizer returns the buffer when the last array over it is dropped."""


class CudaBackend:
    """CuPy's current device. Raises :class:`SessionError` if there is none, :class:`MissingPackageError`.

    nvImageCodec decodes JPEG files if it is installed. The calling threads decode all other files, and JPEG files that
    it does not support, on the CPU.
    """

    def __init__(self, *, bit_depth: int | None = None, bands: BandSpec | None = None) -> None:
        self.bit_depth = bit_depth
        self.bands = bands
        self._gpu = this_gpu()
        import cupy

        self._cupy = cupy
        self._decode, self._ingest, self._compute, self._download = (
            cupy.cuda.Stream(non_blocking=True) for _ in range(4)
        )
        self._staging: Recycler[_Staging] = Recycler(MAX_STAGING)
        self._tensors: dict[tuple[int, ...], Recycler[cupy.ndarray]] = {}
        self._images: Recycler[object] = Recycler(MAX_IMAGES)
        self._owned: set[int] = set()
        self._local = threading.local()
        try:
            self._codec: Any = importlib.import_module("nvidia.nvimgcodec")
        except ImportError:
            self._codec = None
        # buffers that queued work still reads must not be handed out again when the backend is dropped
        weakref.finalize(self, _wait_for, self._decode, self._ingest, self._compute, self._download).atexit = False

    @property
    def form(self) -> str:
        """``cuda``, or ``cuda, nvImageCodec`` with that JPEG decoder: pixels may differ by a level."""
        return "cuda" if self._codec is None else "cuda, nvImageCodec"

    @property
    def keep_limit(self) -> int:
        """Bytes of results that may stay on the device: a quarter of its memory."""
        return self._gpu.memory // KEEP_SHARE

    @property
    def streams(self) -> dict[str, cupy.cuda.Stream]:
        """The streams by name, so that their work can be timed."""
        return {
            "decode": self._decode, "ingest": self._ingest, "compute": self._compute, "download": self._download,
        }  # fmt: skip

    @property
    def xp(self) -> ModuleType:
        """CuPy."""
        return self._cupy

    @property
    def queued(self) -> bool:
        """True: a call leaves its work in a stream."""
        return True

    @property
    def decode_size(self) -> int:
        """Number of files per call of :meth:`decode_batch`."""
        return 1 if self._codec is None else DECODE_SIZE

    def decode(
        self, data: bytes, *, max_pixels: int = MAX_PIXELS, warn: Callable[[str], None] | None = None
    ) -> BackendArray:
        """Decode a file as :func:`maskmill.engine.inputs.images.decode_image`; JPEG on the device if possible."""
        (image,) = self.decode_batch(
            [data], max_pixels=max_pixels, warn=None if warn is None else lambda _, text: warn(text)
        )
        if isinstance(image, ImageError):
            raise image
        return image

    def decode_batch(
        self,
        files: Sequence[bytes],
        *,
        max_pixels: int = MAX_PIXELS,
        warn: Callable[[int, str], None] | None = None,
    ) -> list[Any | ImageError]:
        """Decode files as :func:`maskmill.engine.inputs.images.decode_image`; JPEG files in one call of nvImageCodec.

        If a file cannot be decoded, its error is returned in place of its image. ``warn`` is called with the index of a
        file and a text.
        """
        images: list[Any] = [None] * len(files)
        jpegs = []
        for index, data in enumerate(files):
            # the host's decoder raises an error for a truncated file; nvImageCodec would fill in the missing pixels
            if (
                self._codec is None
                or self.bands is not None
                or data[:3] != b"\xff\xd8\xff"
                or not data.rstrip(b"\0").endswith(b"\xff\xd9")
            ):
                continue
            try:
                image_size(data, max_pixels=max_pixels)  # refuses images that are too large
            except ImageError as error:
                images[index] = error
            else:
                jpegs.append(index)
        if jpegs:
            for index, image in zip(jpegs, self._decoded_on_device([files[index] for index in jpegs]), strict=True):
                images[index] = image
        for index, data in enumerate(files):
            if images[index] is None:
                images[index] = decoded_or_error(
                    data,
                    self.bands,
                    max_pixels=max_pixels,
                    bit_depth=self.bit_depth,
                    warn=warn and partial(warn, index),
                )
        return images

    def preprocess(self, image: Any, spec: InputSpec) -> tuple[Any, tuple[float, float]]:
        """Compute a model input as :func:`maskmill.engine.inputs.images.preprocess`, on the ingest stream.

        Bands are resized and normalized on the host.
        """
        if spec.bands is not None:
            host, covers = preprocess(image, spec)
            with self._compute:
                return self._cupy.asarray(host), covers
        height, width = resized_size(image.shape[0], image.shape[1], spec)
        shape = (3, spec.height, spec.width) if spec.layout == "NCHW" else (spec.height, spec.width, 3)
        staging = None
        if is_device_array(image):
            image = self.upload(image)
        with self._ingest:
            if not is_device_array(image):
                image, staging = self._staged(image)
            tensor = self._tensor(shape)
            try:
                kernels.resize_normalize(
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
                    out=tensor,
                )
            finally:
                if staging is not None:
                    # only now: the next upload into the same device buffer must be queued after this resize
                    self._staging.put(staging, staging.copied)
            ready = self._ingest.record()
        self._compute.wait_event(ready)
        return tensor, (height / spec.height, width / spec.width)

    def upload(self, image: Any) -> BackendArray:
        """Return the image on the device, for :meth:`preprocess` and work inside :meth:`queue`.

        Arrays of :meth:`decode` and their views are returned as they are; others are copied, device arrays in the order
        of CuPy's current stream.
        """
        if is_device_array(image) and image.data.mem.ptr in self._owned:
            return image
        caller = self._cupy.cuda.get_current_stream()
        self._sweep()
        with self._ingest:
            if is_device_array(image):
                self._ingest.wait_event(caller.record())
                buffer = image.copy()
            else:
                staged, staging = self._staged(image)
                buffer = staged.copy()
                self._staging.put(staging, staging.copied)
            ready = self._ingest.record()
        for stream in (self._compute, caller):
            stream.wait_event(ready)
        return self._shared(buffer.data.ptr, buffer.shape, buffer)

    def queue(self) -> AbstractContextManager[Any]:
        """Return a context that queues work on the compute stream."""
        return self._compute

    def constant(self, array: NDArray[Any]) -> BackendArray:
        """Return the values of a host array on the device, to be read only; equal arrays are uploaded once."""
        return device.constant(array)

    def download(self, *arrays: Any) -> list[NDArray[Any]]:
        """Copy arrays of the compute stream to pinned memory on the download stream, and wait for these copies only."""
        import cupyx

        with self._compute:
            arrays = tuple(self._cupy.asarray(array, order="C") for array in arrays)
        self._download.wait_event(self._compute.record())
        copies = [cupyx.empty_pinned(array.shape, array.dtype) for array in arrays]
        for array, copy in zip(arrays, copies, strict=True):
            self._cupy.asnumpy(array, stream=self._download, out=copy, blocking=False)
        # `arrays` stay referenced until the copies are done
        self._download.record(self._event()).synchronize()
        return copies

    def __repr__(self) -> str:
        jpeg = "on the CPU (nvImageCodec is not installed)" if self._codec is None else "by nvImageCodec"
        return f"images and kernels on {self._gpu} (CUDA), JPEG decoded {jpeg}"

    def _event(self) -> cupy.cuda.Event:
        return self._cupy.cuda.Event(block=True, disable_timing=True)

    def _decoded_on_device(self, files: Sequence[bytes]) -> list[Any]:
        """Decode JPEG files to (H, W, 3) uint8 RGB, upright, on the decode stream; None for unsupported ones."""
        codec = self._codec
        if not hasattr(self._local, "decoder"):
            self._local.decoder = codec.Decoder(max_num_cpu_threads=1)
            self._local.params = codec.DecodeParams(apply_exif_orientation=True, color_spec=codec.ColorSpec.SRGB)
        self._sweep()
        images = self._local.decoder.decode(
            [codec.CodeStream(data) for data in files], params=self._local.params, cuda_stream=self._decode.ptr
        )
        ready = self._decode.record()
        for stream in (self._ingest, self._compute):
            stream.wait_event(ready)
        return [None if image is None else self._array_of(image) for image in images]

    def _array_of(self, image: Any) -> BackendArray | None:
        """Wrap an image of nvImageCodec, whose conversion to CuPy would block; None if its layout is not supported."""
        memory = image.__cuda_array_interface__
        shape = tuple(memory["shape"])
        if len(shape) != 3 or shape[2] != 3 or memory["typestr"] != "|u1" or memory.get("strides") is not None:
            return None
        return self._shared(memory["data"][0], shape, image)

    def _shared(self, pointer: int, shape: tuple[int, ...], owner: object) -> BackendArray:
        """Wrap a uint8 image; its memory is released once all work queued before it was dropped has finished."""
        lease = _Lease()
        self._owned.add(pointer)
        streams = (self._ingest, self._compute)
        weakref.finalize(lease, _drop_image, owner, pointer, self._owned, self._images, *streams).atexit = False
        return array_over(pointer, shape, np.uint8, lease)

    def _sweep(self) -> None:
        """Release dropped images that no queued work reads any more."""
        while self._images.take(lambda event: event.synchronize()) is not None:
            pass

    def _staged(self, image: NDArray[np.uint8]) -> tuple[Any, _Staging]:
        """Upload an image on the ingest stream; returns it and the buffers in use."""
        staging = self._staging.take(lambda event: event.synchronize())
        if staging is None or staging.pinned.size < image.size:
            import cupyx

            # allocated under the ingest stream: CuPy's pools hand out memory whose last use may still be queued on the
            # stream that allocated it
            staging = _Staging(
                pinned=cupyx.empty_pinned(image.size, np.uint8),
                device=self._cupy.empty(image.size, np.uint8),
                copied=self._event(),
            )
        pinned = staging.pinned[: image.size].reshape(image.shape)
        pinned[...] = image
        array = staging.device[: image.size].reshape(image.shape)
        array.set(pinned, stream=self._ingest)
        self._ingest.record(staging.copied)
        return array, staging

    def _tensor(self, shape: tuple[int, ...]) -> BackendArray:
        """Return a float32 array for the ingest stream to fill; it may be read and dropped on the compute stream."""
        recycler = self._tensors.setdefault(shape, Recycler(MAX_TENSORS))
        buffer = recycler.take(self._ingest.wait_event)
        if buffer is None:
            buffer = self._cupy.empty(shape, np.float32)
        lease = _Lease()
        weakref.finalize(lease, _drop_tensor, buffer, recycler, self._compute).atexit = False
        return array_over(buffer.data.ptr, shape, np.float32, lease)


def _drop_tensor(buffer: cupy.ndarray, recycler: Recycler[cupy.ndarray], compute: cupy.cuda.Stream) -> None:
    recycler.put(buffer, compute.record())


def _drop_image(
    image: object, pointer: int, owned: set[int], recycler: Recycler[object], *streams: cupy.cuda.Stream
) -> None:
    owned.discard(pointer)
    recycler.put(image, *(stream.record() for stream in streams))


def _wait_for(*streams: cupy.cuda.Stream) -> None:
    for stream in streams:
        stream.synchronize()
