"""Headers of ``.npy`` files, read apart from the array so that its size can be checked first."""

from __future__ import annotations

from typing import Any, BinaryIO

import numpy as np


def read_npy_header(stream: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return an array's shape, whether it is in Fortran order, and its dtype; the stream then is at the samples.

    Raises :class:`ValueError` for a damaged header.
    """
    try:
        version = np.lib.format.read_magic(stream)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        return read_header(stream)
    except Exception as error:
        # NumPy parses the header as Python code, whose tokenizer has its own exceptions
        raise ValueError(f"the .npy file is cut short or damaged: {error}") from error
