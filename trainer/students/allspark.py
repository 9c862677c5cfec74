"""AllSpark: labeled features, rebuilt from unlabeled channels by channel-wise cross-attention with a semantic memory.

::

    network = allspark(lite0(21), num_classes=21, crop=256)
    logits = network(images)                                       # each image attends to its own channels
    logits = network.decoder.spark(network.encode(images), own)    # first half labeled, second half unlabeled

The block stands between the encoder and the decoder of any student, on its last feature map (N, C, h, w). A channel is
a vector of n = h w values. Source: Wang et al., "AllSpark", CVPR 2024, and the authors' code, which lost the
temperature of the attention; its value is unknown and 1 here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import UsageError
from ..run import import_torch

if TYPE_CHECKING:
    from torch import Tensor, nn


def allspark(
    body: nn.Module,
    num_classes: int,
    *,
    crop: int,
    heads: int = 2,
    dropout: float = 0.1,
    temperature: float = 1.0,
) -> nn.Module:
    """Insert the AllSpark block before the decoder of a student; changes ``body`` in place.

    ``crop`` is the side of the training images, which decides the size of the memory; ``temperature`` divides the
    normalized similarities of the attention before its softmax.
    """
    torch = import_torch()
    if not hasattr(body, "decoder"):
        raise UsageError("allspark needs a model with an encoder and a decoder; choose segformer, lite0 or another one")
    training = body.training
    body.eval()
    with torch.no_grad():
        last = body.encode(torch.zeros(1, 3, crop, crop))[-1]
    body.train(training)
    channels, tokens = last.shape[1], last.shape[2] * last.shape[3]

    class SparkDecoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = _block(channels, tokens, num_classes, heads, dropout, temperature)
            self.body = body.decoder

        def spark(self, features: list[Tensor], own: Tensor, *, memory: bool = True) -> Tensor:
            """Decode a batch of labeled and as many unlabeled images in training; ``own`` are logits of the latter."""
            return self.body([*features[:-1], self.block(features[-1], own, memory=memory)])

        def forward(self, features: list[Tensor]) -> Tensor:
            return self.body([*features[:-1], self.block.alone(features[-1])])

    body.decoder = SparkDecoder()
    body.options.update({"crop": crop, "heads": heads, "dropout": dropout, "temperature": temperature})
    return body


def channel_classes(logits: Tensor, embedding: Tensor) -> Tensor:
    """Assign each channel to the class whose score map is most similar to it (cosine): (N, C) int64.

    ``logits`` (N, K, h, w) at the size of the feature map; ``embedding`` (N, n, C).
    """
    torch = import_torch()
    normalize = torch.nn.functional.normalize
    return (normalize(logits.flatten(2), dim=-1) @ normalize(embedding, dim=1)).argmax(dim=1)


def _block(channels: int, tokens: int, num_classes: int, heads: int, dropout: float, temperature: float) -> nn.Module:
    torch = import_torch()
    layers = torch.nn

    class ChannelAttention(layers.Module):
        """Attention between channels: queries and keys are channels, a head has as many as the feature map."""

        def __init__(self) -> None:
            super().__init__()
            self.query, self.key, self.value = (layers.Linear(channels, channels * heads, bias=False) for _ in range(3))
            self.out = layers.Linear(channels * heads, channels, bias=False)
            self.drop = layers.Dropout(dropout)

        def weigh(self, similarity: Tensor) -> Tensor:
            normalized = layers.functional.instance_norm(similarity) / temperature
            return self.drop(normalized.softmax(dim=-1))

        def within(self, embedding: Tensor) -> Tensor:
            """Attend to the channels of the same image, per head: (N, n, C) → (N, n, C)."""
            projections = [
                layer(embedding).unflatten(-1, (heads, channels)).permute(0, 2, 3, 1)
                for layer in (self.query, self.key, self.value)
            ]
            query, key, value = projections  # (N, heads, C, n)
            mixed = self.weigh(query @ key.transpose(-1, -2)) @ value
            # the authors' order of the last axis: channels first, then heads
            return self.drop(self.out(mixed.permute(0, 3, 2, 1).flatten(2)))

        def across(self, embedding: Tensor, source: Tensor) -> Tensor:
            """Attend to the channels of all maps of ``source`` (M, n, C) as a single head: (N, n, C) → (N, n, C)."""
            query = self.query(embedding).transpose(-1, -2)[:, None]
            key, value = (layer(source).permute(1, 0, 2).flatten(1) for layer in (self.key, self.value))
            mixed = self.weigh(query @ key) @ value.T  # (N, 1, C heads, n)
            return self.drop(self.out(mixed.permute(0, 3, 2, 1).flatten(2)))

        def own(self, embedding: Tensor) -> Tensor:
            """Attend to the channels of the same image as a single head: (N, n, C) → (N, n, C)."""
            query = self.query(embedding).transpose(-1, -2)[:, None]
            key, value = (layer(embedding)[:, None] for layer in (self.key, self.value))
            mixed = self.weigh(query @ key) @ value.transpose(-1, -2)
            return self.drop(self.out(mixed.permute(0, 3, 2, 1).flatten(2)))

    class Block(layers.Module):
        def __init__(self) -> None:
            super().__init__()
            self.map_in = layers.Sequential(layers.Conv2d(channels, channels, 1), layers.GELU())
            self.map_out = layers.Sequential(layers.Conv2d(channels, channels, 1), layers.GELU())
            self.norm_in, self.norm_out = (layers.LayerNorm(channels, eps=1e-6) for _ in range(2))
            self.unlabeled, self.labeled = ChannelAttention(), ChannelAttention()
            for layer in self.modules():
                if isinstance(layer, layers.Linear):
                    layers.init.xavier_uniform_(layer.weight)
            self.register_buffer("memory", torch.randn(num_classes, channels, tokens))
            self.register_buffer("position", torch.zeros(num_classes, dtype=torch.long))

        def forward(self, feature: Tensor, score_maps: Tensor, *, memory: bool) -> Tensor:
            size = tuple(feature.shape[-2:])
            if size[0] * size[1] != tokens:
                raise UsageError(f"the memory of allspark holds maps of {tokens} values, got {size}; set model.crop")
            tokens_in = self.map_in(feature).flatten(2).transpose(-1, -2)
            labeled_tokens, unlabeled_tokens = self.norm_in(tokens_in).chunk(2)
            with torch.no_grad():
                logits = layers.functional.interpolate(
                    score_maps.float(), size=size, mode="bilinear", align_corners=False
                )
                self.remember(unlabeled_tokens, channel_classes(logits, unlabeled_tokens))
            # a copy: the next part of the batch changes the memory before this part's backward pass
            source = self.memory.clone().transpose(-1, -2) if memory else unlabeled_tokens
            attended = [self.labeled.across(labeled_tokens, source), self.unlabeled.within(unlabeled_tokens)]
            return self._map_out(torch.cat(attended) + tokens_in, size)

        def alone(self, feature: Tensor) -> Tensor:
            """Let each image attend to its own channels, as labeled images do without a memory."""
            hidden = self.map_in(feature).flatten(2).transpose(-1, -2)
            embedding = self.norm_in(hidden)
            return self._map_out(self.labeled.own(embedding) + hidden, tuple(feature.shape[-2:]))

        def _map_out(self, hidden: Tensor, size: tuple[int, ...]) -> Tensor:
            return self.map_out(self.norm_out(hidden).transpose(-1, -2).unflatten(-1, size))

        def remember(self, embedding: Tensor, classes: Tensor) -> None:
            """Put the channels (N, n, C) of each class into its first-in-first-out queue of C places."""
            numbers = torch.arange(num_classes, device=classes.device)
            for image, assigned in zip(embedding.float(), classes, strict=True):
                members = (assigned[:, None] == numbers).long()
                ranks = members.cumsum(0).gather(1, assigned[:, None])[:, 0] - 1
                self.memory[assigned, (self.position[assigned] + ranks) % channels] = image.T
                self.position.add_(members.sum(0)).remainder_(channels)

    return Block()
