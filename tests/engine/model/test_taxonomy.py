from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from maskmill.engine.model.bundle import Bundle
from maskmill.engine.model.taxonomy import Taxonomy
from maskmill.engine.model.taxonomy_draft import draft
from maskmill.errors import TaxonomyError

from ...models import color_bundle

GOOD = """
targets = ["warm", "blue"]
background = "blue"
[model]
red = "warm"
green = "dropped"
blue = "blue"
[labels]
0 = "ignore"
7 = "warm"
9 = "blue"
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return color_bundle(tmp_path_factory.mktemp("model"), background="blue")


def write(folder: Path, text: str) -> Path:
    path = folder / "classes.toml"
    path.write_text(text)
    return path


def test_a_file_maps_model_classes_and_labels(bundle: Bundle, tmp_path: Path) -> None:
    taxonomy = Taxonomy.load(write(tmp_path, GOOD), bundle)
    assert taxonomy.targets == ("warm", "blue")
    assert taxonomy.background == 1
    assert taxonomy.groups is not None
    assert taxonomy.groups.tolist() == [0, -1, 1]
    assert (taxonomy.num_targets, taxonomy.num_scored) == (2, 3)
    encoded = taxonomy.encode(np.array([[0, 7], [9, 255]], np.uint8), "a.png")
    assert encoded.dtype == np.uint8
    assert encoded.tolist() == [[255, 0], [1, 255]]


def test_without_a_file_the_models_classes_are_the_targets(bundle: Bundle) -> None:
    taxonomy = Taxonomy.of_model(bundle)
    assert taxonomy.groups is None
    assert taxonomy.num_scored == 3
    assert taxonomy.encode(np.array([[0, 2, 255]], np.uint8), "a.png").tolist() == [[0, 2, 255]]


def test_labels_may_be_named(bundle: Bundle, tmp_path: Path) -> None:
    text = GOOD.replace("targets =", 'label_names = ["void", "lava", "sea"]\ntargets =', 1)
    text = text.replace('0 = "ignore"\n7 = "warm"\n9 = "blue"', 'void = "ignore"\nlava = "warm"\n2 = "blue"')
    assert dict(Taxonomy.load(write(tmp_path, text), bundle).labels) == {0: -1, 1: 0, 2: 1}


def test_a_label_that_is_not_known_names_file_and_index(bundle: Bundle, tmp_path: Path) -> None:
    taxonomy = Taxonomy.load(write(tmp_path, GOOD), bundle)
    with pytest.raises(TaxonomyError, match=r"a/7\.png holds the label 4, which the taxonomy does not know"):
        taxonomy.encode(np.array([[0, 4]], np.uint8), "a/7.png")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('green = "dropped"\n', ""), "lacks the model classes green"),
        (('red = "warm"', 'red = "hot"'), "neither a target nor 'dropped'"),
        (('7 = "warm"', '7 = "hot"'), "neither a target nor 'ignore'"),
        (('7 = "warm"', 'seven = "warm"'), "neither a label index"),
        (('7 = "warm"', '70000 = "warm"'), "neither a label index"),
        (('red = "warm"', 'rde = "warm"'), "rde is unknown; did you mean red"),
        (('red = "warm"', 'red = "warm"\npink = "warm"'), r"\[model\] pink is unknown; the model has red, green, blue"),
        (('background = "blue"', 'background = "sky"'), "the background 'sky' is not one of the targets"),
        (('background = "blue"', 'backdrop = "blue"'), "unknown entries: backdrop"),
        (('"warm", "blue"', '"warm", "blue", "warm"'), "target names must be unique"),
        (("[model]", "[model"), "is not valid TOML"),
        (('["warm", "blue"]', '"warm"'), "must be a list of names"),
    ],
)
def test_a_faulty_file_is_refused_with_its_fault(
    bundle: Bundle, tmp_path: Path, change: tuple[str, str], message: str
) -> None:
    assert change[0] in GOOD
    with pytest.raises(TaxonomyError, match=message):
        Taxonomy.load(write(tmp_path, GOOD.replace(*change, 1)), bundle)


def test_more_than_255_targets_use_16_bit_maps() -> None:
    names = tuple(f"c{index}" for index in range(256))
    taxonomy = Taxonomy(
        targets=names, background=None, model=tuple(range(256)), labels={index: index for index in range(256)}
    )
    assert taxonomy.ignore_index == 65535
    encoded = taxonomy.encode(np.array([[255, 65535]], np.uint16), "a.png")
    assert encoded.dtype == np.uint16
    assert encoded.tolist() == [[255, 65535]]


def test_plain_data_gives_the_same_taxonomy_back(bundle: Bundle, tmp_path: Path) -> None:
    taxonomy = Taxonomy.load(write(tmp_path, GOOD), bundle)
    again = Taxonomy.from_json(taxonomy.to_json())
    assert again == taxonomy
    assert again.fingerprint == taxonomy.fingerprint


def test_labels_can_be_replaced_for_another_dataset(bundle: Bundle, tmp_path: Path) -> None:
    taxonomy = Taxonomy.load(write(tmp_path, GOOD), bundle)
    other = tmp_path / "other.toml"
    other.write_text('targets = ["warm", "blue"]\n[labels]\n1 = "warm"\n')
    assert dict(taxonomy.with_labels_of(other).labels) == {1: 0}
    other.write_text('targets = ["cold"]\n[labels]\n1 = "cold"\n')
    with pytest.raises(TaxonomyError, match="has the targets cold; the labels were made with warm, blue"):
        taxonomy.with_labels_of(other)


def test_the_draft_maps_equal_names_and_lists_the_rest(tmp_path: Path) -> None:
    bundle = color_bundle(tmp_path, classes=("background", "aeroplane", "potted plant"), background="background")
    text, unmatched = draft(bundle, {0: "void", 1: "Airplane", 2: "potted_plants"})
    taxonomy = Taxonomy.load(write(tmp_path, text), bundle)
    assert taxonomy.targets == ("background", "aeroplane")
    assert dict(taxonomy.labels) == {0: -1, 1: 1, 2: -1}
    assert unmatched == [
        "label 2 (potted_plants) → ignore; like the model's potted plant",
        "model class potted plant → dropped",
    ]


def test_the_draft_without_a_dataset_is_the_model_itself(bundle: Bundle, tmp_path: Path) -> None:
    text, unmatched = draft(bundle)
    assert Taxonomy.load(write(tmp_path, text), bundle) == replace(Taxonomy.of_model(bundle), assumed=False)
    assert unmatched == []
