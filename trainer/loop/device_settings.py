"""Settings of PyTorch for a training run on a CUDA device: TF32, cuDNN's search for algorithms, one memory pool."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from ..recipes import Recipe
from ..run import import_torch


@contextmanager
def device_settings(device: Any, recipe: Recipe) -> Iterator[None]:
    """Apply the settings of a recipe to PyTorch and CuPy inside the context; on a CPU there is nothing to set."""
    if device.type != "cuda":
        yield
        return
    backends = import_torch().backends
    with ExitStack() as previous:
        for owner, name, value in (
            (backends.cuda.matmul, "allow_tf32", recipe.tf32),
            (backends.cudnn, "allow_tf32", recipe.tf32),
            (backends.cudnn, "benchmark", recipe.cudnn_benchmark),
        ):
            previous.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, value)
        with suppress(ImportError):  # the kernels report it when a recipe needs them
            previous.enter_context(torch_memory(importlib.import_module("cupy")))
        yield


@contextmanager
def torch_memory(cupy: Any) -> Iterator[None]:
    """Let CuPy allocate from PyTorch's memory pool inside the context, since each pool keeps what it once used.

    Memory belongs to CuPy's current stream, which the kernels set to PyTorch's current one.
    """
    cuda = import_torch().cuda

    def allocate(size: int, device: int) -> int:
        return cuda.caching_allocator_alloc(size, device, cupy.cuda.get_current_stream().ptr)

    def free(address: int, device: int) -> None:
        cuda.caching_allocator_delete(address)

    allocator = cupy.cuda.PythonFunctionAllocator(allocate, free)
    with cupy.cuda.using_allocator(allocator.malloc):
        yield
