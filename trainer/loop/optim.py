"""Optimizer and learning rate schedule of a recipe."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from ..phases import num_steps
from ..recipes import Recipe
from ..run import import_torch

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
    progress = step / num_steps(recipe)
    if recipe.schedule == "poly":
        return recipe.lr * (1 - progress) ** POLY_POWER
    return recipe.lr * (1 + math.cos(math.pi * progress)) / 2


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
    # the fused form skips a step of overflown gradients on the device; others would wait to learn of it
    fused = next(student.parameters()).device.type == "cuda" or None
    options = {"lr": recipe.lr, "weight_decay": recipe.weight_decay, "fused": fused}
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

    class Average(torch.optim.swa_utils.AveragedModel):
        """Counts its updates on the host, so that an update does not wait for the device."""

        def update_parameters(self, model: nn.Module) -> None:
            number = int(self.n_averaged)
            decay = min(1 - 1 / (number + 1), recipe.ema) if recipe.ema_warmup else recipe.ema
            pairs = [
                (average.detach(), value.detach())
                for mine, theirs in (
                    (self.module.parameters(), model.parameters()),
                    (self.module.buffers(), model.buffers()),
                )
                for average, value in zip(mine, theirs, strict=True)
            ]
            copied = [pair for pair in pairs if number == 0 or not pair[0].is_floating_point()]
            blended = [pair for pair in pairs if number and pair[0].is_floating_point()]
            for average, value in copied:
                average.copy_(value)
            if blended:
                torch._foreach_lerp_(*map(list, zip(*blended, strict=True)), 1 - decay)
            self.n_averaged += 1

    average = Average(student, use_buffers=True)
    average.module.eval()
    return average
