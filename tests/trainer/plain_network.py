"""A network without batch statistics or dropout: its gradients over a batch are the sums over its parts."""

from __future__ import annotations

import torch


def plain(num_classes: int, *, pretrained: bool) -> torch.nn.Module:
    del pretrained
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 6, 3, stride=2, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(6, num_classes, 1)
    )


def never_finite(num_classes: int, *, pretrained: bool) -> torch.nn.Module:
    network = plain(num_classes, pretrained=pretrained)
    torch.nn.init.constant_(network[0].weight, float("nan"))
    return network
