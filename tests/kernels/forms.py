"""The forms of the kernels, with the keyword arguments of the public functions."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from types import ModuleType
from typing import Any

from maskmill.kernels import cpu as cpu_form
from maskmill.kernels import gpu as gpu_form
from maskmill.kernels import reference as reference_form
from maskmill.kernels.plans.class_stats import DecodeOptions

OTHER = ("truth", "thresholds", "out", "threads")
"""Arguments of ``class_stats`` beside its options."""


def with_keywords(function: Callable[..., Any]) -> Callable[..., Any]:
    """A form of ``class_stats`` called as the public function; any other function unchanged."""
    if function.__name__ != "class_stats":
        return function

    @wraps(function)
    def class_stats(scores: Any, size: tuple[int, int], **arguments: Any) -> Any:
        others = {name: arguments.pop(name) for name in OTHER if name in arguments}
        return function(scores, size, DecodeOptions(**arguments), **others)

    return class_stats


class Form:
    """One form; its functions take the arguments of the public ones."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._module, name)
        return with_keywords(value) if callable(value) else value


reference, cpu, gpu = Form(reference_form), Form(cpu_form), Form(gpu_form)
