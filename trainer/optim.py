"""Optimizer and learning rate schedule of a recipe."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from .phases import num_steps
from .recipes import Recipe
from .run import import_torch

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer
    from torch.optim.swa_utils import AveragedModel

MOMENTUM = 0.9
POLY_POWER = 0.9


def learning_rate(recipe: Recipe, step: int) -> float:
    """Return the learning rate of the backbone at step t of T: linear warm-up, then ``poly`` or ``cosine``.

    ``poly``: lr (1 - t/T)^0.9; ``cosine``: lr (1 + cos(pi t/T)) / 2.
    """
    if step < recipe.warmup:
        return recipe.lr * (step + 1) / recipe.warmup
    done = step / num_steps(recipe)
    if recipe.schedule == "poly":
        return recipe.lr * (1 - done) ** POLY_POWER
    return recipe.lr * (1 + math.cos(math.pi * done)) / 2


def make_optimizer(student: Any, recipe: Recipe) -> Optimizer:
    """Make SGD or AdamW over the trainable parameters; ``multiple`` of a group is its factor of the learning rate."""
    optim = import_torch().optim
    groups = [
        {"params": [parameter for parameter in parameters if parameter.requires_grad], "multiple": multiple}
        for parameters, multiple in (
            (student.backbone_parameters(), 1.0),
            (student.head_parameters(), recipe.head_lr),
        )
    ]
    groups = [group for group in groups if group["params"]]
    options = {"lr": recipe.lr, "weight_decay": recipe.weight_decay}
    if recipe.optimizer == "sgd":
        return optim.SGD(groups, momentum=MOMENTUM, **options)
    return optim.AdamW(groups, **options)


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """Set the rate of each group to ``rate`` times its multiple."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["multiple"]


def make_average(student: nn.Module, recipe: Recipe) -> AveragedModel:
    """Make the exponential moving average of weights and buffers, an ``AveragedModel`` whose ``module`` is in eval
    mode.

    With ``ema_warmup`` the decay of update t is min(1 - 1/(t + 1), ema), as in UniMatch V2's code. Integer buffers are
    copied.
    """
    torch = import_torch()

    def update(averages: Any, values: Any, num_averaged: Any) -> None:
        decay = recipe.ema
        if recipe.ema_warmup:
            decay = min(1 - 1 / (int(num_averaged) + 1), decay)
        if averages[0].is_floating_point():
            torch._foreach_lerp_(averages, values, 1 - decay)
        else:
            for average, value in zip(averages, values, strict=True):
                average.copy_(value)

    average = torch.optim.swa_utils.AveragedModel(student, multi_avg_fn=torch.no_grad()(update), use_buffers=True)
    average.module.eval()
    return average
