"""Students by name, and what a finished run gives."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from maskmill.errors import MissingPackageError, UsageError  # noqa: E402
from maskmill.trainer.students.models import build_model, keep_batchnorm  # noqa: E402

SMALL_TRANSFORMER = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 16, 16], "num_attention_heads": [1, 1, 2, 2]}
MODELS: dict[str, dict[str, Any]] = {
    "lite0": {},
    "tiny": {},
    "deeplabv3plus": {"depth": 50, "blocks": [1, 1, 1, 2], "width": 4},
    "segformer": {"config": {**SMALL_TRANSFORMER, "decoder_hidden_size": 16}},
    "deeplabv3plus-mobilenetv2": {"config": {"depth_multiplier": 0.35, "output_stride": 16}},
    "dpt-dinov2": {
        "config": {
            "backbone_config": {
                "model_type": "dinov2", "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2,
                "image_size": 56, "out_features": ["stage1", "stage2", "stage3", "stage4"],
            },
            "readout_type": "ignore", "neck_hidden_sizes": [8, 8, 8, 8], "fusion_hidden_size": 8,
        }
    },
    "dpt-dinov3": {
        "config": {
            "backbone_config": {
                "model_type": "dinov3_vit", "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2,
                "intermediate_size": 32, "num_register_tokens": 1,
                "out_features": ["stage1", "stage2", "stage3", "stage4"],
            },
            "readout_type": "ignore", "neck_hidden_sizes": [8, 8, 8, 8], "fusion_hidden_size": 8,
        }
    },
    "linear-dinov3": {
        "config": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    },
}  # fmt: skip
ONE_PIECE = f"{__name__}:one_piece"


def one_piece(num_classes: int, *, pretrained: bool, kernel: int = 1) -> Any:
    assert not pretrained
    return torch.nn.Conv2d(3, num_classes, kernel)


def of_parts(num_classes: int, *, pretrained: bool) -> Any:
    return build_model("tiny", num_classes, pretrained=pretrained, width=4)


def whole_of_its_own(num_classes: int, *, pretrained: bool) -> Any:
    del pretrained
    model = torch.nn.Conv2d(3, num_classes, 1)
    for method in ("encode", "decode", "input_spec", "backbone_parameters", "options"):
        setattr(model, method, lambda *_: None)
    return model


def small(name: str, num_classes: int = 5) -> Any:
    return build_model(name, num_classes, pretrained=False, **copy.deepcopy(MODELS[name])).eval()


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> Any:
    return small(request.param)


def images_of(model: Any, multiples: tuple[int, int] = (2, 3)) -> Any:
    step = model.input_spec(448, 448).multiple
    height, width = (max(64 // step, 1) * step * count for count in multiples)
    return torch.randn(2, 3, height, width)


def test_a_model_decodes_what_it_encodes(model: Any) -> None:
    images = images_of(model)
    with torch.no_grad():
        features, logits = model.encode(images), model(images)
        assert torch.equal(model.decode(features), logits)
    assert all(feature.ndim == 4 and len(feature) == 2 for feature in features)
    assert logits.shape[:2] == (2, 5)
    # the whole picture at one stride, not distorted
    assert images.shape[-1] / images.shape[-2] == pytest.approx(logits.shape[-1] / logits.shape[-2])


@pytest.mark.parametrize("name", ["dpt-dinov2", "dpt-dinov3"])
@pytest.mark.parametrize("patches", [1, 3, 4])
def test_the_dense_head_has_eight_logits_per_patch_and_side(name: str, patches: int) -> None:
    model = small(name)
    step = model.input_spec(224, 224).multiple
    with torch.no_grad():
        assert model(torch.randn(1, 3, patches * step, patches * step)).shape[-2:] == (8 * patches, 8 * patches)


def test_every_parameter_is_of_the_backbone_or_of_the_head(model: Any) -> None:
    parts = [*model.backbone_parameters()], [*model.head_parameters()]
    assert all(parts)
    assert sorted(map(id, parts[0] + parts[1])) == sorted(map(id, model.parameters()))


def test_a_model_can_be_made_again_from_its_options(request: pytest.FixtureRequest, model: Any) -> None:
    name = request.node.callspec.params["model"]
    again = build_model(name, 5, pretrained=False, **model.options).eval()
    again.load_state_dict(model.state_dict())
    images = images_of(model)
    with torch.no_grad():
        assert torch.equal(again(images), model(images))


def test_every_weight_that_is_trained_gets_a_gradient(model: Any) -> None:
    trained = copy.deepcopy(model).train()
    trained(images_of(model)).square().sum().backward()
    assert not [name for name, value in trained.named_parameters() if value.requires_grad and value.grad is None]


@pytest.mark.slow
def test_a_model_can_be_exported_as_its_input_says(tmp_path: Path, model: Any) -> None:
    from maskmill.engine.model.bundle import OutputSpec
    from maskmill.export.pretrained.torch_module import bundle_from_module

    step = model.input_spec(448, 448).multiple
    # the export compares the graph with the model, at other sizes too where the input is dynamic
    bundle_from_module(
        model,
        tmp_path / "bundle",
        task="semantic",
        input=model.input_spec(2 * step * max(1, 32 // step), 3 * step * max(1, 32 // step)),
        outputs=[OutputSpec(name="scores")],
        classes=list("abcde"),
    )


def test_batch_statistics_can_be_shared_over_processes() -> None:
    model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(small("lite0"))
    norms = [layer for layer in model.modules() if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm)]
    assert norms
    assert all(isinstance(layer, torch.nn.SyncBatchNorm) for layer in norms)


def test_the_input_is_what_the_weights_were_trained_with() -> None:
    assert small("lite0").input_spec(64, 96).mean == (0.485, 0.456, 0.406)
    assert small("deeplabv3plus-mobilenetv2").input_spec(64, 96).mean == (0.5, 0.5, 0.5)
    with pytest.raises(UsageError, match="multiple of 14"):
        small("dpt-dinov2").input_spec(64, 64)


def test_lite0_starts_with_imagenet_weights() -> None:
    first, second = (build_model("lite0", 5) for _ in range(2))
    pairs = list(zip(first.backbone_parameters(), second.backbone_parameters(), strict=True))
    assert all(torch.equal(one, other) for one, other in pairs)
    assert any(
        not torch.equal(one, other)
        for one, other in zip(first.head_parameters(), second.head_parameters(), strict=True)
    )


def test_weights_come_from_a_folder(tmp_path: Path) -> None:
    saved = small("segformer")
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    config = SegformerConfig(**SMALL_TRANSFORMER, decoder_hidden_size=16, num_labels=7)
    whole = SegformerForSemanticSegmentation(config)
    whole.save_pretrained(tmp_path)
    model = build_model("segformer", 5, weights=str(tmp_path))
    encoder = dict(model.encoder.named_parameters())
    for name, value in whole.segformer.named_parameters():
        assert torch.equal(encoder[f"parts.0.{name}"], value)
    assert model(images_of(model)).shape[1] == 5
    assert model.options["config"]["hidden_sizes"] == saved.options["config"]["hidden_sizes"]


def test_weights_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot load .*nothing.*model\.weights"):
        build_model("segformer", 5, weights=str(tmp_path / "nothing"))


def test_a_resnet_starts_with_the_weights_of_a_file(tmp_path: Path) -> None:
    options = MODELS["deeplabv3plus"]
    encoder = small("deeplabv3plus").encoder
    torch.save({**encoder.state_dict(), "fc.bias": torch.zeros(1000)}, tmp_path / "resnet.pth")
    model = build_model("deeplabv3plus", 5, weights=str(tmp_path / "resnet.pth"), **options)
    assert all(torch.equal(value, encoder.state_dict()[name]) for name, value in model.encoder.state_dict().items())
    with pytest.raises(UsageError, match=r"has no weights of its own.*model\.weights"):
        build_model("deeplabv3plus", 5, **options)
    with pytest.raises(UsageError, match=r"nothing\.pth does not hold the weights"):
        build_model("deeplabv3plus", 5, weights=str(tmp_path / "nothing.pth"), **options)
    with pytest.raises(UsageError, match=r"does not hold the weights of this ResNet"):
        build_model("deeplabv3plus", 5, weights=str(tmp_path / "resnet.pth"), **{**options, "width": 8})


def test_any_function_can_make_the_model() -> None:
    model = build_model(ONE_PIECE, 5, pretrained=False, kernel=3)
    assert model(torch.zeros(1, 3, 8, 8)).shape == (1, 5, 6, 6)
    assert [*model.backbone_parameters()]
    assert not [*model.head_parameters()]
    assert model.options == {"kernel": 3}
    with pytest.raises(UsageError, match="not an encoder and a decoder"):
        model.encode(torch.zeros(1, 3, 8, 8))
    assert len(build_model(f"{__name__}:of_parts", 5).encode(torch.zeros(1, 3, 8, 8))) == 2


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("lite9", {}, "no model 'lite9'"),
        ("tiny", {"depth": 3}, "does not take these options.*depth"),
        ("segformer", {"size": "b9"}, "one of b0, .*b5, got 'b9'"),
        ("nowhere.at.all:make", {}, "cannot find the model nowhere.at.all:make"),
    ],
)
def test_an_unknown_model_or_option_is_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_model(name, 5, pretrained=False, **options)


def test_a_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "segmentation_models_pytorch", None)
    with pytest.raises(MissingPackageError, match=r"smp:Unet needs .*\[smp\]"):
        build_model("smp:Unet", 5)


def test_batch_statistics_can_be_used_without_being_recorded() -> None:
    model = build_model("tiny", 3).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images = torch.randn(2, 3, 32, 32)
    with keep_batchnorm(model):
        kept = model(images)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(model(images), kept)
    assert any(not torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_frozen_batch_normalization_neither_learns_nor_moves() -> None:
    model = build_model("tiny", 3, freeze_batchnorm=True).train()
    norms = [layer for layer in model.encoder.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    before = copy.deepcopy([layer.state_dict() for layer in norms])
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    assert all(layer.weight.grad is None for layer in norms)
    for layer, state in zip(norms, before, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in layer.state_dict().items())
    assert build_model("tiny", 3, **model.options).batchnorm_frozen
    with pytest.raises(UsageError, match="freeze it in the code of your own"):
        build_model(f"{__name__}:whole_of_its_own", 3, freeze_batchnorm=True)
