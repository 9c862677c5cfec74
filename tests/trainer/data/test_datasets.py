from __future__ import annotations

import json
import pickle
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from PIL import Image  # noqa: E402

from maskmill.engine.inputs.sources import open_source  # noqa: E402
from maskmill.engine.model.png import encode_png  # noqa: E402
from maskmill.engine.store.label_store import InputRow, LabelRow, LabelStore, content_id  # noqa: E402
from maskmill.errors import StoreError, TrainingError, UsageError  # noqa: E402
from maskmill.trainer.data.corpus import open_corpus  # noqa: E402
from maskmill.trainer.data.datasets import Draw, TrainingImages  # noqa: E402
from maskmill.trainer.data.parts import LabeledImages, StoredImages  # noqa: E402
from maskmill.trainer.methods import Consistency  # noqa: E402

from ...models import color_image  # noqa: E402
from ..builders import SIZE, TAXONOMY, add_labels, blocks, make_store, write_labeled  # noqa: E402


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_labeled(tmp_path / "photos", range(5))


def images(photos: Path, store: Path | None = None, **options) -> TrainingImages:
    corpus = open_corpus(
        stores=[] if store is None else [store], labeled=photos, ids=["0", "1"],
        unlabeled=photos / "images", taxonomy=TAXONOMY,
    )  # fmt: skip
    return TrainingImages(corpus.streams(), **{"crop": 32, "ignore": 255, **options})


def test_a_labeled_image_comes_with_its_classes_and_full_weight(photos: Path) -> None:
    labeled = LabeledImages.open(photos, TAXONOMY, ids=["3"])
    photo = labeled.read(0)
    np.testing.assert_array_equal(photo.label, blocks(3))
    np.testing.assert_array_equal(photo.image, color_image(blocks(3), strength=200))
    assert (photo.weight == 255).all()


def test_a_stored_image_comes_with_the_labels_and_weights_of_the_store(photos: Path, tmp_path: Path) -> None:
    make_store(tmp_path / "store", photos, range(5), weight=99)
    stored = StoredImages.open(tmp_path / "store")
    assert [Path(uri).stem for uri in stored.uris] == ["0", "1", "2", "3", "4"]
    for index in range(5):
        photo = stored.read(index)
        np.testing.assert_array_equal(photo.label, blocks(index))
        np.testing.assert_array_equal(photo.image, color_image(blocks(index), strength=200))
        assert (photo.weight == 99).all()


def test_an_image_with_two_names_is_taken_once(photos: Path, tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", photos, range(2))
    first = next(iter(store.inputs()))
    again = InputRow(uri="/elsewhere/copy.png", size=1, stamp="", id=first.id, error=None, message=None)
    store.commit([], [again])
    assert len(StoredImages.open(tmp_path / "store").uris) == 2


def test_labeled_and_held_out_images_are_never_taken_from_a_store_or_the_unlabeled(
    photos: Path, tmp_path: Path
) -> None:
    make_store(tmp_path / "store", photos, range(5))
    corpus = open_corpus(
        stores=[tmp_path / "store"], labeled=photos, ids=["0"], validation=photos, validation_ids=["1"],
        unlabeled=photos / "images",
    )  # fmt: skip
    names = {
        stream: sorted(Path(uri).stem for part in parts for uri in part.uris)
        for stream, parts in corpus.streams().items()
    }
    assert names["union"] == ["0", "2", "3", "4"]
    assert names["stored"] == ["2", "3", "4"]
    assert names["unlabeled"] == ["2", "2", "3", "3", "4", "4"]


def test_images_in_an_archive_are_found_by_their_place(photos: Path, tmp_path: Path) -> None:
    archive = tmp_path / "shard.tar"
    with tarfile.open(archive, "w") as tar:
        for seed in range(3):
            tar.add(photos / "images" / f"{seed}.png", f"{seed}.png")
    store = LabelStore.create(tmp_path / "store", {"classes": TAXONOMY.to_json()})
    source = open_source(archive)
    for seed, item in enumerate(source):
        data = source.read(item)
        row = LabelRow(
            id=content_id(data), width=SIZE[1], height=SIZE[0], label=encode_png(blocks(seed)),
            weight=encode_png(np.full(SIZE, 255, np.uint8)), counts=[0, 0, 0], kept=1.0, confidence=1.0,
        )  # fmt: skip
        found = InputRow(uri=item.uri, size=item.size, stamp=item.stamp, id=row.id, error=None, message=None)
        store.commit([row], [found])
    stored = StoredImages.open(tmp_path / "store")
    np.testing.assert_array_equal(stored.read(2).image, color_image(blocks(2), strength=200))


def test_an_image_that_changed_since_it_was_labeled_is_refused(photos: Path, tmp_path: Path) -> None:
    make_store(tmp_path / "store", photos, range(3))
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(photos / "images" / "2.png")
    found = images(photos, tmp_path / "store")[Draw("stored", 0, 0)]
    assert isinstance(found, TrainingError)
    assert "2.png" in str(found)
    assert "has changed since it was labeled" in str(found)


def test_another_image_of_the_same_size_is_refused(photos: Path, tmp_path: Path) -> None:
    make_store(tmp_path / "store", photos, range(3))
    (photos / "images" / "2.png").write_bytes((photos / "images" / "1.png").read_bytes())
    stored = StoredImages.open(tmp_path / "store")
    index = next(index for index, uri in enumerate(stored.uris) if uri.endswith("2.png"))
    with pytest.raises(TrainingError, match=r"2\.png has changed since it was labeled"):
        stored.read(index)


def test_a_run_reads_one_moment_of_a_store_until_it_is_complete(photos: Path, tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", photos, range(3))
    corpus = open_corpus(stores=[store.path], run=tmp_path / "run")
    write_labeled(tmp_path / "more", range(10, 12))
    add_labels(store, tmp_path / "more", range(10, 12))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").touch()  # the run started, and is resumed
    for reader in (corpus, open_corpus(stores=[store.path], run=tmp_path / "run")):
        (part,) = reader.stored
        assert len(part.uris) == len(part.store) == 3
        assert corpus.pin in part.store._tables["labels"].open().tags.list()
    (tmp_path / "run" / "run.json").unlink()  # a new run of the same name
    (part,) = open_corpus(stores=[store.path], run=tmp_path / "run").stored
    assert len(part.uris) == 5
    corpus.release()
    assert corpus.pin not in part.store._tables["labels"].open().tags.list()


def test_datasets_pickle_without_open_handles(photos: Path, tmp_path: Path) -> None:
    make_store(tmp_path / "store", photos, range(5))
    used = images(photos, tmp_path / "store", scale=(0.5, 2.0), flip=0.5, views=Consistency(cell=8))
    draws = [Draw("union", 3, 7), Draw("unlabeled", 2, 1)]
    before = [used[draw] for draw in draws]
    copy = pickle.loads(pickle.dumps(used))
    for draw, first in zip(draws, before, strict=True):
        second = copy[draw]
        assert first.keys() == second.keys()
        for name, value in first.items():
            assert (value == second[name]).all() if isinstance(value, torch.Tensor) else value == second[name]


def test_a_sample_depends_on_its_draw(photos: Path) -> None:
    data = images(photos, scale=(0.5, 2.0), flip=0.5)
    same = [data[Draw("labeled", 0, 3)]["image"] for _ in range(2)]
    assert (same[0] == same[1]).all()
    assert (data[Draw("labeled", 0, 4)]["image"] != same[0]).any()


def test_a_labeled_sample_has_image_label_and_weight_of_the_same_crop(photos: Path) -> None:
    sample = images(photos, crop=24, flip=0.5)[Draw("labeled", 1, 5)]
    assert {
        name: (value.dtype, tuple(value.shape)) for name, value in sample.items() if name not in ("uri", "stream")
    } == {
        "image": (torch.uint8, (3, 24, 24)),
        "label": (torch.uint8, (24, 24)),
        "weight": (torch.uint8, (24, 24)),
    }
    assert (sample["image"].argmax(dim=0) == sample["label"]).all()


def test_padding_has_no_label_and_is_not_real(photos: Path) -> None:
    data = images(photos, crop=64)
    labeled, unlabeled = data[Draw("labeled", 0, 0)], data[Draw("unlabeled", 0, 0)]
    assert (labeled["label"][40:] == 255).all()
    assert (labeled["weight"][:, 48:] == 0).all()
    assert unlabeled["real"].sum() == 40 * 48
    assert "label" not in unlabeled


def test_an_unlabeled_sample_has_its_views(photos: Path) -> None:
    sample = images(photos, views=Consistency(cell=8, cover_probability=1.0, cutmix=1.0))[Draw("unlabeled", 0, 0)]
    assert sample["strong"].shape == sample["second"].shape == (3, 32, 32)
    assert tuple(sample["cells"].shape) == (4, 4)
    assert sample["cells"].any()
    assert (sample["box"][2:] > sample["box"][:2]).all()
    plain = images(photos, views=Consistency(cell=8, cover_probability=0.0, cutmix=0.0))[Draw("unlabeled", 0, 0)]
    assert not plain["cells"].any()
    assert not plain["box"].any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "classes are not known"),
        ({"labeled": "nowhere", "taxonomy": TAXONOMY}, "labeled images are expected in"),
        ({"labeled": "photos", "ids": ["9"], "taxonomy": TAXONOMY}, "1 of the 1 listed images are not there: 9"),
    ],
)
def test_a_corpus_that_cannot_be_opened_says_why(tmp_path: Path, photos: Path, options: dict, message: str) -> None:
    if "labeled" in options:
        options = {**options, "labeled": tmp_path / options["labeled"]}
    with pytest.raises(UsageError, match=message):
        open_corpus(**options)


def test_stores_of_other_classes_do_not_mix(photos: Path, tmp_path: Path) -> None:
    make_store(tmp_path / "store", photos, range(2))
    from maskmill.trainer.data.corpus import classes_taxonomy

    with pytest.raises(UsageError, match="same classes"):
        open_corpus(stores=[tmp_path / "store"], taxonomy=classes_taxonomy(["a", "b"]))


def test_a_store_of_segments_gives_no_labels(photos: Path, tmp_path: Path) -> None:
    make_store(tmp_path / "store", photos, range(2), run={"maps": "segments"})
    with pytest.raises(StoreError, match="segments without classes"):
        open_corpus(stores=[tmp_path / "store"])


def test_a_batch_asks_a_store_once_and_gets_what_single_reads_give(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_store(tmp_path / "store", photos, range(5), weight=99)
    stored = StoredImages.open(tmp_path / "store")
    singly = [stored.read(index) for index in (3, 1, 3)]
    take, asked = LabelStore.take, []
    monkeypatch.setattr(LabelStore, "take", lambda *args, **options: asked.append(args[1]) or take(*args, **options))
    together = list(stored.read_all([3, 1, 3]))
    for one, other in zip(singly, together, strict=True):
        for first, second in zip(one, other, strict=True):
            np.testing.assert_array_equal(first, second)
    assert len(asked) == 1


def test_labeled_images_may_have_a_coco_file_in_place_of_label_maps(tmp_path: Path) -> None:
    image = color_image(np.zeros((8, 8), int))
    (tmp_path / "images").mkdir()
    Image.fromarray(image).save(tmp_path / "images" / "a.png")
    names = list(TAXONOMY.targets)
    raw = {
        "images": [{"id": 1, "file_name": "a.png", "height": 8, "width": 8}],
        "categories": [{"id": index, "name": name} for index, name in enumerate([*names, "background"])],
        "annotations": [
            {"image_id": 1, "category_id": len(names), "segmentation": [[0, 0, 1, 0, 1, 1, 0, 1]]},
            {"image_id": 1, "category_id": 2, "segmentation": [[2, 2, 6, 2, 6, 6, 2, 6]]},
        ],
    }
    (tmp_path / "instances.json").write_text(json.dumps(raw))
    taxonomy = replace(TAXONOMY, labels={}, named_labels={"background": -1}, assumed=False)
    label = LabeledImages.open(tmp_path, taxonomy).read(0).label
    assert (label == 2).sum() == 16
    assert (label == 255).sum() == 48
