"""The objectives of a run as one module, which each step calls, in one process or several."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..processes import Process
from ..run import import_torch
from .base import Losses, Moment
from .steps import OBJECTIVES

if TYPE_CHECKING:
    from torch import nn


def parallel_objectives(student: nn.Module, process: Process) -> nn.Module:
    """Wrap the objectives as a module, so that DistributedDataParallel treats all passes of a step as one."""
    torch = import_torch()

    class Objectives(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.student = student

        def forward(self, batch: Mapping[str, Any], moment: Moment) -> Losses:
            dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(moment.recipe.precision)
            with torch.autocast(process.device.type, dtype=dtype, enabled=dtype is not None):
                return OBJECTIVES[moment.phase.objective](self.student, batch, moment)

    if process.world == 1:
        return Objectives()
    devices = [process.device.index] if process.device.type == "cuda" else None
    # AllSpark trains one half of its attention only in the phases with unlabeled images
    unused = hasattr(getattr(student, "decoder", None), "spark")
    return torch.nn.parallel.DistributedDataParallel(Objectives(), device_ids=devices, find_unused_parameters=unused)
