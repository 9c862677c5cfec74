"""A stand-in for nvImageCodec: JPEG files decoded by Pillow into memory of the stream that it is called with."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from maskmill.engine.inputs.images import decode_image

from . import cupy_fake


class Codec(ModuleType):
    """The module, which does not support progressive JPEG."""

    def __init__(self, cupy: Any) -> None:
        super().__init__("nvidia.nvimgcodec")
        self.ColorSpec = SimpleNamespace(SRGB=1)
        self.CodeStream = bytes
        self.decoded: list[int] = []
        codec = self

        class DecodeParams:
            def __init__(self, *, apply_exif_orientation: bool, color_spec: int) -> None:
                assert (apply_exif_orientation, color_spec) == (True, 1)

        class Decoder:
            def __init__(self, *, max_num_cpu_threads: int) -> None:
                pass

            def decode(self, srcs: list[bytes], *, params: DecodeParams, cuda_stream: int) -> list[Any]:
                supported = [b"\xff\xc2" not in data for data in srcs]
                codec.decoded.append(sum(supported))
                with cupy_fake.stream_at(cuda_stream):
                    return [
                        cupy.asarray(decode_image(data)) if known else None
                        for data, known in zip(srcs, supported, strict=True)
                    ]

        self.DecodeParams, self.Decoder = DecodeParams, Decoder


def install(cupy: Any, patch: pytest.MonkeyPatch) -> Codec:
    """``import nvidia.nvimgcodec`` gives the stand-in."""
    module, package = Codec(cupy), ModuleType("nvidia")
    package.nvimgcodec = module  # type: ignore[attr-defined]
    patch.setitem(sys.modules, "nvidia", package)
    patch.setitem(sys.modules, "nvidia.nvimgcodec", module)
    return module
