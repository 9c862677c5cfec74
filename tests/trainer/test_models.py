"""Students by name, and what a finished run gives."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from maskmill.errors import UsageError  # noqa: E402
from maskmill.trainer.models import build_model, freeze_batchnorm, keep_batchnorm  # noqa: E402


@pytest.mark.parametrize("name", ["lite0", "tiny"])
def test_a_model_decodes_what_it_encodes(name: str) -> None:
    model = build_model(name, 5, pretrained=False).eval()
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        logits = model(images)
        assert torch.equal(model.decode(model.encode(images)), logits)
    stride = {"lite0": 4, "tiny": 2}[name]
    assert logits.shape == (2, 5, 64 // stride, 96 // stride)


@pytest.mark.parametrize("name", ["lite0", "tiny"])
def test_every_parameter_is_of_the_backbone_or_of_the_head(name: str) -> None:
    model = build_model(name, 5, pretrained=False)
    both = [id(parameter) for part in (model.backbone_parameters(), model.head_parameters()) for parameter in part]
    assert sorted(both) == sorted(id(parameter) for parameter in model.parameters())


def test_an_unknown_model_or_option_is_refused() -> None:
    with pytest.raises(UsageError, match="no model 'lite9'"):
        build_model("lite9", 5)
    with pytest.raises(UsageError, match="does not take these options.*depth"):
        build_model("tiny", 5, depth=3)


def test_batch_statistics_can_be_used_without_being_recorded() -> None:
    model = build_model("tiny", 3).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images = torch.randn(2, 3, 32, 32)
    with keep_batchnorm(model):
        kept = model(images)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(model(images), kept)
    assert any(not torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_frozen_batch_normalisation_neither_learns_nor_moves() -> None:
    model = build_model("tiny", 3).train()
    freeze_batchnorm(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    norms = [layer for layer in model.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    assert norms
    assert all(layer.weight.grad is None for layer in norms)
