from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from maskmill.engine.model.bundle import Bundle
from maskmill.engine.runtimes.onnx_runtime import OnnxSession
from maskmill.errors import ExportError, UsageError
from maskmill.export.pretrained.checkpoint import fetch
from maskmill.export.pretrained.families import FAMILIES, Choices, bundle_from_pretrained, family_of, fold
from maskmill.export.pretrained.queries import class_scores, objects
from maskmill.export.pretrained.semantic import merged_head

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from ..checkpoints import CHECKPOINTS, MEAN, STD, save, square  # noqa: E402

CLASSES = ("cat", "sofa", "mat")
MAX_ERROR = 1e-4
"""Largest error of a score, as a share of the largest magnitude."""


def exported(folder: Path, family: str, choices: Choices | None = None) -> tuple[Bundle, Any]:
    """The bundle of a family's small checkpoint, and the model itself as transformers loads it."""
    (folder / family).mkdir(parents=True)
    CHECKPOINTS[family](folder / family)
    bundle = bundle_from_pretrained(str(folder / family), folder / "bundle", choices)
    return bundle, fetch(str(folder / family)).load(FAMILIES[family][1])


def images(bundle: Bundle, num: int, height: int = 0, width: int = 0) -> NDArray[np.float32]:
    """Prepared images (num, 3, H, W): smooth noise, of the bundle's own size by default."""
    torch.manual_seed(num)
    size = (height or bundle.input.height, width or bundle.input.width)
    noise = torch.nn.functional.interpolate(torch.randn(num, 3, 9, 9), size=size, mode="bicubic")
    return noise.numpy()


def assert_same(got: NDArray[Any], expected: Any, *, axis: int | None = 1) -> None:
    """The same numbers, and where ``axis`` is that of the classes the same best class."""
    expected = np.asarray(expected.detach())
    assert got.shape == expected.shape
    assert np.abs(expected).max() > 1e-3, "the model says nothing"
    assert np.abs(got - expected).max() <= MAX_ERROR * max(1.0, np.abs(expected).max())
    if axis is not None:
        assert (got.argmax(axis) == expected.argmax(axis)).mean() >= 0.9999


def assert_scores(bundle: Bundle, own: Callable[[Any], Any]) -> None:
    """The bundle gives the scores that the model's own forward leads to, at batch 1 and 4 and at another size."""
    session = OnnxSession(bundle)
    shapes = [(1, 0, 0), (4, 0, 0)]
    if bundle.input.dynamic:
        shapes.append((2, bundle.input.height + bundle.input.multiple, 3 * bundle.input.multiple))
    for shape in shapes:
        batch = images(bundle, *shape)
        with torch.no_grad():
            expected = own(torch.from_numpy(batch))
        assert_same(session.run(batch)[0], expected)


def folded(model: Any, image: Any, **inputs: Any) -> Any:
    """P[c] = sum over queries of softmax[q, c] * sigmoid(mask q), void dropped."""
    output = model(pixel_values=image, **inputs)
    probabilities = output.class_queries_logits.softmax(-1)[..., :-1]
    return torch.einsum("nqc,nqhw->nchw", probabilities, output.masks_queries_logits.sigmoid())


def test_segformer(tmp_path: Path) -> None:
    bundle, model = exported(tmp_path, "segformer", Choices(background="LABEL_2"))
    assert (bundle.task, bundle.outputs[0].activation, bundle.background) == ("semantic", "softmax", 2)
    spec = bundle.input
    assert (spec.height, spec.width, spec.dynamic, spec.multiple) == (64, 96, True, 32)
    assert (spec.resize, spec.resize_filter, spec.mean, spec.std) == ("stretch", "bilinear", tuple(MEAN), tuple(STD))
    assert "transformers" in bundle.source.exporter
    assert_scores(bundle, lambda image: model(pixel_values=image).logits)


def test_a_segformer_that_transformers_cannot_run_is_refused(tmp_path: Path) -> None:
    config = CHECKPOINTS["segformer"](tmp_path / "segformer") / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"reshape_last_stage": False}))
    with pytest.raises(UsageError, match="reshape_last_stage false .* set it to true"):
        bundle_from_pretrained(str(tmp_path / "segformer"), tmp_path / "bundle")


def test_the_merged_head_of_segformer_gives_its_own_logits() -> None:
    config = transformers.SegformerConfig(
        num_labels=3, hidden_sizes=[4, 6, 8, 10], num_attention_heads=[1, 1, 1, 1], decoder_hidden_size=12
    )
    torch.manual_seed(0)
    head = transformers.SegformerForSemanticSegmentation(config).decode_head.eval()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_()
        head.batch_norm.running_mean.normal_()
        head.batch_norm.running_var.uniform_(0.5, 2)
        features = [torch.randn(2, width, 8 >> k, 16 >> k) for k, width in enumerate(config.hidden_sizes)]
        merged = merged_head(head)
        torch.testing.assert_close(merged(features), head(features), atol=1e-3, rtol=1e-4)
        head.forward = lambda features: features[0][:, :3]  # as if transformers had changed it
    with pytest.raises(ExportError, match="differs by"):
        merged_head(head)


def test_sam(tmp_path: Path) -> None:
    bundle, model = exported(tmp_path, "sam")
    assert bundle.input.resize == "longest-side"
    # padding is zero after normalizing
    np.testing.assert_allclose(bundle.input.pad_value, np.array(MEAN) * 255, rtol=1e-6)
    assert bundle.prompt is not None
    assert (bundle.prompt.num_masks, bundle.prompt.mask_height) == (3, 24)
    assert_prompts(bundle, model)


def assert_prompts(bundle: Bundle, model: Any, *, best: bool = False) -> None:
    """Encoder and decoder give the masks of the model's own forward, for points and for boxes."""
    encoder, decoder = (OnnxSession(bundle, role=role) for role in ("encoder", "decoder"))
    batch = images(bundle, 4)
    single, four = encoder.run(batch[:1]), encoder.run(batch)
    side = bundle.input.width
    points = np.random.default_rng(0).uniform(0, side, (4, 2, 2)).astype(np.float32)
    corners = np.sort(points, axis=1)
    # what SAM's own preparation adds: a padding point where there is no box; SAM 2 adds it to a box, too
    assert bundle.prompt is not None
    pad_box = bundle.prompt.pad_boxes
    names = [output.name for output in bundle.outputs_of("encoder")]
    with_padding = np.concatenate([points, np.zeros((4, 1, 2), np.float32)], axis=1)
    boxes = np.concatenate([corners, np.zeros((4, 1, 2), np.float32)], axis=1) if pad_box else corners
    box_labels = [2, 3, -1] if pad_box else [2, 3]
    for embeddings, num in ((single, 1), (four, 4)):
        for prompt, labels, own in (
            (with_padding, [1, 0, -1],
             {"input_points": points[:num, None], "input_labels": np.tile([1, 0], (num, 1, 1))}),
            (boxes, box_labels, {"input_boxes": corners[:num].reshape(num, 1, 4)}),
        ):  # fmt: skip
            feeds = dict(zip(names, embeddings, strict=True))
            feeds |= {"points": prompt[:num], "labels": np.tile(np.float32(labels), (num, 1))}
            grid = bundle.prompt.mask_height
            earlier = np.where(np.arange(grid) < grid // 2, np.float32(9), np.float32(-9)) * np.ones((num, 1, grid, 1))
            given = labels == [2, 3]  # a mask beside a box
            feeds["mask_input"] = earlier.astype(np.float32)
            feeds["has_mask_input"] = np.full(num, given, np.float32)
            masks, ious = decoder.run(feeds)
            with torch.no_grad():
                expected = model(
                    pixel_values=torch.from_numpy(batch[:num]),
                    **{name: torch.from_numpy(value) for name, value in own.items()},
                    **({"input_masks": torch.from_numpy(feeds["mask_input"])} if given else {}),
                )
            all_masks, all_ious = expected.pred_masks[:, 0], expected.iou_scores[:, 0]
            if best:
                chosen = all_ious.argmax(1, keepdim=True)
                all_ious = all_ious.gather(1, chosen)
                all_masks = torch.take_along_dim(all_masks, chosen[..., None, None], 1)
            assert_same(masks, all_masks, axis=None)
            assert_same(ious, all_ious, axis=None)
            assert ((masks > 0) == (all_masks.numpy() > 0)).mean() >= 0.9999


@pytest.mark.slow
def test_sam_with_the_best_mask_only(tmp_path: Path) -> None:
    bundle, model = exported(tmp_path, "sam", Choices(masks="best"))
    assert bundle.prompt is not None
    assert bundle.prompt.num_masks == 1
    assert_prompts(bundle, model, best=True)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sam2", "sam3_tracker", "sam_hq"])
def test_further_promptable_models(tmp_path: Path, family: str) -> None:
    bundle, model = exported(tmp_path, family)
    assert (bundle.input.resize == "stretch") == (family != "sam_hq")
    assert_prompts(bundle, model)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["upernet", "dpt"])
def test_models_with_a_class_map(tmp_path: Path, family: str) -> None:
    bundle, model = exported(tmp_path, family)
    assert (bundle.outputs[0].activation, bundle.input.dynamic) == ("softmax", False)
    (scores,) = OnnxSession(bundle).run(images(bundle, 1))
    size = scores.shape[2:]

    def own(image: Any) -> Any:
        logits = model(pixel_values=image).logits
        # UperNet upsamples its head's logits to the image, which the bundle leaves to labeling
        return logits if logits.shape[2:] == size else model.decode_head(model.backbone(image).feature_maps)

    assert_scores(bundle, own)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["mask2former", "eomt", "eomt_dinov3", "oneformer"])
def test_models_with_queries(tmp_path: Path, family: str) -> None:
    bundle, model = exported(tmp_path, family)
    assert (bundle.outputs[0].activation, len(bundle.classes)) == ("none", 5)
    inputs: dict[str, Any] = {}

    def own(image: Any) -> Any:
        if family == "oneformer":
            tokens = fetch(str(tmp_path / family)).tokenizer()
            task = tokens("the task is semantic", padding="max_length", max_length=77, return_tensors="pt").input_ids
            inputs["task_inputs"] = task.expand(len(image), -1)
        return folded(model, image, **inputs)

    assert_scores(bundle, own)


@pytest.mark.slow
def test_clipseg(tmp_path: Path) -> None:
    bundle, model = exported(tmp_path, "clipseg", Choices(classes=CLASSES, template="a {}", background="other"))
    assert bundle.classes == ("other", *CLASSES)
    assert (bundle.background, bundle.outputs[0].activation) == (0, "sigmoid")
    tokens = fetch(str(tmp_path / "clipseg")).tokenizer()

    def own(image: Any) -> Any:
        channels = []
        for name in CLASSES:
            ids = tokens(f"a {name}", return_tensors="pt").input_ids
            channels.append(model(pixel_values=image, input_ids=ids.expand(len(image), -1)).logits)
        found = torch.stack(channels, dim=1)
        rest = 1 - found.sigmoid().amax(1, keepdim=True)
        return torch.cat([torch.logit(rest), found], dim=1)

    assert_scores(bundle, own)


def assert_sam3(bundle: Bundle, model: Any, tokenizer: Any) -> None:
    """Every image and class alone through the model's own forward, scored as its instance segmentation scores."""

    def own(image: Any) -> Any:
        classes = []
        for name in CLASSES:
            tokens = tokenizer(name, padding="max_length", max_length=32, return_tensors="pt")
            output = [model(pixel_values=single[None], **tokens) for single in image]
            scores = torch.cat([one.pred_logits.sigmoid() * one.presence_logits.sigmoid() for one in output])
            masks = torch.cat([one.pred_masks.sigmoid() for one in output])
            classes.append((scores[..., None, None] * masks).amax(1))
        best = torch.stack(classes, dim=1)
        return torch.cat([1 - best.amax(1, keepdim=True), best], dim=1)

    assert_scores(bundle, own)


@pytest.mark.slow
def test_sam3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskmill.export.pretrained.concepts.CHUNK", 2)
    bundle, model = exported(tmp_path, "sam3", Choices(classes=CLASSES))
    assert bundle.classes == ("background", *CLASSES)
    assert (bundle.background, bundle.outputs[0].activation, bundle.input.height) == (0, "none", 112)
    tokenizer = fetch(str(tmp_path / "sam3")).tokenizer()
    assert_sam3(bundle, model, tokenizer)
    with torch.no_grad():
        tokens = tokenizer(CLASSES[0], padding="max_length", max_length=32, return_tensors="pt")
        output = model(pixel_values=torch.from_numpy(images(bundle, 1)), **tokens)
    assert 0.01 < output.presence_logits.sigmoid() < 0.99
    assert 0.01 < output.pred_logits.sigmoid().max() < 0.99
    assert 0.01 < (output.pred_masks > 0).float().mean() < 0.99


@pytest.mark.slow
def test_sam3_at_another_size(tmp_path: Path) -> None:
    bundle, _ = exported(tmp_path, "sam3", Choices(classes=CLASSES, size=(168, 168)))
    assert (bundle.input.height, bundle.input.width) == (168, 168)
    config = transformers.Sam3Config.from_pretrained(tmp_path / "sam3")
    config.image_size = 168  # as transformers' documentation says
    model = transformers.Sam3Model.from_pretrained(tmp_path / "sam3", config=config, attn_implementation="eager").eval()
    assert_sam3(bundle, model, fetch(str(tmp_path / "sam3")).tokenizer())


@pytest.mark.slow
@pytest.mark.parametrize("family", ["resnet", "convnext", "efficientnet", "vit"])
def test_classifiers(tmp_path: Path, family: str) -> None:
    bundle, model = exported(tmp_path, family)
    assert [(output.name, output.kind) for output in bundle.outputs] == [
        ("cam", "cam"), ("logits", "logits"), ("features", "features")
    ]  # fmt: skip
    assert (bundle.outputs[1].activation, bundle.input.dynamic) == ("softmax", family != "vit")
    head = [layer for layer in model.modules() if isinstance(layer, torch.nn.Linear)][-1]
    weight, bias = head.weight.detach().numpy(), head.bias.detach().numpy()
    sizes = [(1, 0, 0), (4, 0, 0)] + ([(2, 128, 160)] if family != "vit" else [])
    for shape in sizes:
        batch = images(bundle, *shape)
        maps, logits, features = OnnxSession(bundle).run(batch)
        with torch.no_grad():
            own = model(torch.from_numpy(batch), **({"interpolate_pos_encoding": True} if family == "vit" else {}))
        assert_same(logits, own.logits)
        np.testing.assert_allclose(maps, np.einsum("cd,ndhw->nchw", weight, features), atol=1e-3)
        if family != "vit":
            np.testing.assert_allclose(maps.mean((2, 3)) + bias, logits, atol=1e-3)


def test_a_class_token_that_attends_to_one_patch_alone_sees_that_patchs_feature() -> None:
    import transformers

    from maskmill.export.pretrained.classifier import _vit

    config = transformers.ViTConfig(
        num_labels=3, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, image_size=16,
        patch_size=8, attn_implementation="eager",
    )  # fmt: skip
    model = transformers.ViTForImageClassification(config).eval()
    image = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        maps, _, _ = _vit(model, image)
        # all attention on patch 2: by a mask on everything else
        layer, body = model.vit.layers[0], model.vit
        mask = torch.full((1, 1, 5, 5), -1e9)
        mask[..., 1 + 2] = 0
        token = body.layernorm(layer(body.embeddings(image), mask))[:, 0]
        expected = model.classifier(token) - model.classifier.bias
    torch.testing.assert_close(maps[0, :, 1, 0], expected[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("background", [None, "rest", "void"])
def test_queries_fold_to_the_sum_of_class_times_mask(background: Any) -> None:
    # two queries on a map of two pixels; the second is void for the most part
    probabilities = torch.tensor([[[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]]])
    masks = torch.tensor([[[[1.0, 0.0]], [[1.0, 1.0]]]])
    scores = class_scores(probabilities.log(), torch.where(masks > 0, 100.0, -100.0), background)
    expected = torch.tensor([[[[0.8, 0.1]], [[0.3, 0.1]]]])
    first = {"rest": [[0.2, 0.9]], "void": [[0.9, 0.8]]}
    if background is not None:
        expected = torch.cat([torch.tensor([[first[background]]]), expected], dim=1)
    torch.testing.assert_close(scores, expected)


def test_objects_are_the_best_pairs_of_query_and_class() -> None:
    # two queries on a map of two pixels, three classes and void
    probabilities = torch.tensor([[[0.7, 0.1, 0.1, 0.1], [0.1, 0.2, 0.6, 0.1]]])
    masks = torch.logit(torch.tensor([[[[0.9, 0.2]], [[0.8, 0.6]]]]))
    scores, classes, chosen = objects(probabilities.log(), masks, 3, first=1)
    # of class 0 on the first mask, class 2 and class 1 on the second: times the mean of the mask's own pixels
    torch.testing.assert_close(scores, torch.tensor([[0.7 * 0.9, 0.6 * 0.7, 0.2 * 0.7]]), atol=1e-5, rtol=0)
    assert classes.tolist() == [[1, 3, 2]]
    torch.testing.assert_close(chosen[0, :, 0], masks[0, [0, 1, 1], 0])


@pytest.mark.slow
@pytest.mark.parametrize("family", ["mask2former", "sam3"])
def test_objects_are_exported_beside_the_scores(tmp_path: Path, family: str) -> None:
    choices = Choices(classes=CLASSES if family == "sam3" else None, instances=5)
    bundle, _ = exported(tmp_path, family, choices)
    scores, values, classes, masks = OnnxSession(bundle).run(images(bundle, 2))
    assert (values.shape, classes.shape, masks.shape) == ((2, 5), (2, 5), (2, 5, *scores.shape[2:]))


def test_the_family_follows_the_architecture_in_the_configuration(tmp_path: Path) -> None:
    for family in ("segformer", "resnet"):
        (tmp_path / family).mkdir()
        assert family_of(fetch(str(CHECKPOINTS[family](tmp_path / family)))) == family


def test_a_checkpoint_of_video_holds_sam3_and_its_tracker(tmp_path: Path) -> None:
    """As facebook/sam3 is published: one configuration, and one transformer that both parts use."""
    from safetensors.torch import load_file, save_file

    folders = {name: tmp_path / name for name in ("sam3", "sam3_tracker", "video")}
    for name, folder in folders.items():
        folder.mkdir()
        if name != "video":
            CHECKPOINTS[name](folder)
    weights = {
        f"detector_model.{name}": value for name, value in load_file(folders["sam3"] / "model.safetensors").items()
    }
    tracker = load_file(folders["sam3_tracker"] / "model.safetensors")
    for name in list(tracker):
        published = name.removeprefix("tracker_model.")
        if published.startswith("detector_model."):
            tracker[name] = weights[published].clone()
        else:
            weights[published if published.startswith("tracker_neck.") else name] = tracker[name]
    save_file(tracker, folders["sam3_tracker"] / "model.safetensors", metadata={"format": "pt"})
    for file in folders["sam3"].iterdir():
        if file.name not in ("config.json", "model.safetensors"):
            (folders["video"] / file.name).write_bytes(file.read_bytes())
    save_file(weights, folders["video"] / "model.safetensors", metadata={"format": "pt"})
    configs = [json.loads((folders[name] / "config.json").read_text()) for name in ("sam3", "sam3_tracker")]
    video = {"model_type": "sam3_video", "detector_config": configs[0], "tracker_config": configs[1]}
    (folders["video"] / "config.json").write_text(json.dumps({**video, "architectures": ["Sam3VideoModel"]}))
    assert family_of(fetch(str(folders["video"]))) == "sam3"
    image = torch.randn(1, 3, 112, 112)
    for family, choices in (("sam3", Choices(classes=CLASSES)), ("sam3_tracker", Choices())):
        modules = [fold(fetch(str(folders[name])), choices, family=family).module for name in ("video", family)]
        with torch.no_grad():
            outputs = [module(image) for module in modules]
        torch.testing.assert_close(outputs[0], outputs[1])


def test_every_family_has_a_checkpoint_here() -> None:
    assert set(CHECKPOINTS) == set(FAMILIES)


def test_names_that_a_model_lists_twice_get_their_index(tmp_path: Path) -> None:
    import transformers

    config = transformers.ResNetConfig(
        id2label={0: "crane", 1: "cat", 2: "crane"}, embedding_size=8, hidden_sizes=[8], depths=[1]
    )
    save(transformers.ResNetForImageClassification(config), tmp_path, size=square(32))
    from maskmill.export.pretrained.folded import class_names

    assert class_names(fetch(str(tmp_path)), Choices()) == ("crane (0)", "cat", "crane (2)")


@pytest.mark.parametrize(
    ("family", "choices", "message"),
    [
        ("segformer", Choices(size=(100, 100)), "multiple of 32"),
        ("segformer", Choices(background="sky"), "background 'sky' is not one of the classes"),
        ("segformer", Choices(classes=("a", "b")), "the model has 5 classes, 2 names are given"),
        ("sam", Choices(size=(64, 64)), "takes 96x96 images only, not 64x64"),
        ("segformer", Choices(instances=5), "gives no single objects"),
        ("clipseg", Choices(), "give the class names with --classes"),
        ("clipseg", Choices(classes=CLASSES, size=(64, 96)), "square images only"),
        ("clipseg", Choices(classes=CLASSES, background="x", background_score="void"), "can only be 'rest'"),
    ],
)
def test_choices_that_a_model_does_not_have_are_refused(
    tmp_path: Path, family: str, choices: Choices, message: str
) -> None:
    (tmp_path / family).mkdir()
    CHECKPOINTS[family](tmp_path / family)
    with pytest.raises(UsageError, match=message):
        bundle_from_pretrained(str(tmp_path / family), tmp_path / "bundle", choices)
    assert [path.name for path in tmp_path.iterdir()] == [family]


def test_without_a_preprocessor_nothing_is_guessed(tmp_path: Path) -> None:
    folder = CHECKPOINTS["segformer"](tmp_path)
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(UsageError, match=r"has no preprocessor_config.json"):
        bundle_from_pretrained(str(folder), tmp_path / "bundle")


def edit(path: Path, **changes: Any) -> None:
    """Set keys of a JSON file, or remove those that are None."""
    raw = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in raw.items() if value is not None}))


def test_a_model_with_one_class_gets_a_background_at_one_minus_its_probability(tmp_path: Path) -> None:
    import transformers

    config = transformers.SegformerConfig(
        id2label={0: "cat"}, hidden_sizes=[8, 16], depths=[1, 1], num_attention_heads=[1, 2], num_encoder_blocks=2,
        sr_ratios=[8, 4], patch_sizes=[7, 3], strides=[4, 2], mlp_ratios=[2, 2], decoder_hidden_size=16,
    )  # fmt: skip
    (tmp_path / "one").mkdir()
    save(transformers.SegformerForSemanticSegmentation(config), tmp_path / "one", size=square(64))
    checkpoint = fetch(str(tmp_path / "one"))
    folded = fold(checkpoint, Choices())
    assert (folded.classes, folded.background) == (("background", "cat"), "background")
    model = checkpoint.load(FAMILIES["segformer"][1])
    batch = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        p = model(pixel_values=batch).logits.sigmoid()
        scores = folded.module(batch).softmax(1)
    torch.testing.assert_close(scores, torch.cat([1 - p, p], dim=1), atol=1e-5, rtol=0)


def test_preprocessing_can_be_given_and_labels_are_known_to_be_reduced(tmp_path: Path) -> None:
    folder = CHECKPOINTS["segformer"](tmp_path)
    edit(folder / "preprocessor_config.json", do_reduce_labels=True, resample=5)
    choices = Choices(mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0), resize_filter="lanczos")
    folded = fold(fetch(str(folder)), choices)
    assert (folded.input.mean, folded.input.std, folded.input.resize_filter) == (choices.mean, choices.std, "lanczos")
    assert folded.reduced_labels


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("preprocessor_config.json", {"image_mean": None}, "normalizes, but its image_mean is missing; give --mean"),
        ("preprocessor_config.json", {"do_color_jitter": True}, "the key 'do_color_jitter', whose effect"),
        ("config.json", {"id2label": None}, r"names no classes \(id2label is missing\); give them with --classes"),
        ("config.json", {"id2label": {"0": "a", "2": "b"}}, "id2label leaves out class 1 of 2"),
        ("config.json", {"id2label": {"x": "a"}}, "id2label must map class indices to names"),
        ("config.json", {"id2label": {"0": "a", "1": ""}}, "class 1 has the name ''"),
        ("config.json", {"id2label": {"0": "a\nb", "1": "c"}}, "class 0 has the name 'a"),
    ],
)
def test_a_description_that_says_too_little_stops_before_the_weights_are_read(
    tmp_path: Path, file: str, changes: dict[str, Any], message: str
) -> None:
    folder = CHECKPOINTS["segformer"](tmp_path)
    edit(folder / file, **changes)
    (folder / "model.safetensors").write_bytes(b"never read")
    with pytest.raises(UsageError, match=message):
        bundle_from_pretrained(str(folder), tmp_path / "bundle")


def test_texts_need_the_tokenizer_and_tokens_of_their_own(tmp_path: Path) -> None:
    folder = CHECKPOINTS["clipseg"](tmp_path)
    with pytest.raises(UsageError, match=r"'a photo of a cat\.' and 'a photo of a  cat\.' have the same tokens"):
        fold(fetch(str(folder)), Choices(classes=("cat", " cat")))
    for name in ("tokenizer.json", "vocab.json", "merges.txt"):
        (folder / name).unlink(missing_ok=True)
    with pytest.raises(ExportError, match="has no tokenizer files"):
        fold(fetch(str(folder)), Choices(classes=CLASSES))


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    folder = CHECKPOINTS["segformer"](tmp_path)
    model = fetch(str(folder)).load(FAMILIES["segformer"][1])
    with torch.no_grad():
        next(model.parameters()).view(-1)[3] = float("nan")
    model.save_pretrained(folder)
    with pytest.raises(ExportError, match="is not finite; the checkpoint is damaged"):
        fetch(str(folder)).load(FAMILIES["segformer"][1])


def test_an_unfinished_eomt_is_refused(tmp_path: Path) -> None:
    import transformers

    CHECKPOINTS["eomt"](tmp_path)
    model = fetch(str(tmp_path)).load("EomtForUniversalSegmentation")
    assert isinstance(model, transformers.PreTrainedModel)
    model.attn_mask_probs.fill_(0.5)
    model.save_pretrained(tmp_path)
    with pytest.raises(ExportError, match="in the middle of training"):
        bundle_from_pretrained(str(tmp_path), tmp_path / "bundle")
