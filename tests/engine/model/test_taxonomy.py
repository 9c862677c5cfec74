from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from maskmill.engine.model.bundle import Bundle
from maskmill.engine.model.color_tables import named_table
from maskmill.engine.model.taxonomy import Taxonomy
from maskmill.engine.model.taxonomy_draft import draft, read_label_names
from maskmill.engine.model.taxonomy_file import nearest_name
from maskmill.errors import TaxonomyError, UsageError

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
        (('red = "warm"', 'red = "hot"'), "neither a target nor 'dropped'; add it to targets, or map it to one"),
        (('7 = "warm"', '7 = "hot"'), "neither a target nor 'ignore'"),
        (('7 = "warm"', '70000 = "warm"'), "neither a label index"),
        (('red = "warm"', 'rde = "warm"'), "rde is unknown; did you mean red"),
        (('red = "warm"', 'red = "warm"\npink = "warm"'), r"\[model\] pink is unknown; the model has red, green, blue"),
        (('background = "blue"', 'background = "sky"'), "the background 'sky' is not one of the targets"),
        (('background = "blue"', 'backdrop = "blue"'), "unknown entries: backdrop"),
        (('"warm", "blue"', '"warm", "blue", "warm"'), "target names must be unique"),
        (("[model]", "[model"), "is not valid TOML"),
        (
            ('["warm", "blue"]', '"warm"'),
            r"targets must be a valid array, got 'warm'; list the classes, as in targets = \[",
        ),
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
        "label 2 (potted_plants) → ignore; did you mean the model's potted plant?",
        "model class potted plant → dropped",
    ]


def test_the_draft_makes_unmatched_names_background_if_asked(tmp_path: Path) -> None:
    bundle = color_bundle(tmp_path, classes=("background", "cow", "dog"), background="background")
    text, unmatched = draft(bundle, {0: "cow", 1: "grass"}, unmatched="background")
    assert dict(Taxonomy.load(write(tmp_path, text), bundle).labels) == {0: 1, 1: 0}
    assert unmatched[0] == "label 1 (grass) → background"
    with pytest.raises(UsageError, match="the model has no background class"):
        draft(color_bundle(tmp_path, name="other", background=None), {0: "red"}, unmatched="background")


def test_the_draft_by_name_writes_names(tmp_path: Path) -> None:
    bundle = color_bundle(tmp_path, classes=("background", "cow", "dog"), background="background")
    text, unmatched = draft(bundle, {4: "background", 7: "cow", 9: "gräs"}, by_name=True)
    assert unmatched[0] == "label gräs → ignore"
    taxonomy = Taxonomy.load(write(tmp_path, text), bundle)
    assert (dict(taxonomy.labels), dict(taxonomy.named_labels)) == ({}, {"background": 0, "cow": 1, "gräs": -1})
    values = taxonomy.for_labels({0: "cow", 1: "background", 2: "gräs"}, "set.json", by_name=True)
    assert dict(values.labels) == {0: 1, 1: 0, 2: -1}


def test_the_draft_states_the_color_table(tmp_path: Path) -> None:
    bundle = color_bundle(tmp_path, classes=("sky", "road", "car"))
    text, _ = draft(bundle, read_label_names("camvid"), colors="camvid")
    taxonomy = Taxonomy.load(write(tmp_path, text), bundle)
    assert taxonomy.colors is named_table("camvid")
    assert {taxonomy.targets[target] for target in taxonomy.labels.values() if target >= 0} == {"sky", "road", "car"}


def test_reduced_labels_of_a_model_are_shifted(bundle: Bundle, tmp_path: Path) -> None:
    shifted = replace(bundle, reduced_labels=True)
    taxonomy = Taxonomy.of_model(shifted)
    assert taxonomy.encode(np.array([[0, 1, 3]], np.uint8), "a.png").tolist() == [[255, 0, 2]]
    text, _ = draft(shifted)
    assert Taxonomy.load(write(tmp_path, text), shifted) == replace(taxonomy, assumed=False)


def test_a_draft_with_nothing_to_label_is_refused(tmp_path: Path) -> None:
    bundle = color_bundle(tmp_path, classes=("background", "cow", "dog"), background="background")
    for unmatched in ("ignore", "background"):
        with pytest.raises(TaxonomyError, match="no name of the labels is a class of the model.*label 0, label 1"):
            draft(bundle, {0: "label 0", 1: "label 1"}, unmatched=unmatched)  # type: ignore[arg-type]


def test_a_taxonomy_with_one_class_or_background_alone_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    one = (
        GOOD.replace('"warm", "blue"]', '"warm"]').replace('background = "blue"\n', "").replace('= "blue"', '= "warm"')
    )
    with pytest.raises(TaxonomyError, match="warm is the only class"):
        Taxonomy.load(write(tmp_path, one), bundle)
    with pytest.raises(TaxonomyError, match="maps no label to another target than the background 'blue'"):
        Taxonomy.load(write(tmp_path, GOOD.replace('7 = "warm"', '7 = "blue"')), bundle)


def test_a_byte_order_mark_is_no_part_of_a_taxonomy(bundle: Bundle, tmp_path: Path) -> None:
    assert Taxonomy.load(write(tmp_path, f"\ufeff{GOOD}"), bundle).targets == ("warm", "blue")


COLORED = """
targets = ["warm", "blue"]
[model]
red = "warm"
green = "dropped"
blue = "blue"
"""


def test_a_table_of_colors_takes_the_place_of_labels(bundle: Bundle, tmp_path: Path) -> None:
    text = COLORED + '[colors]\n"220, 0, 0" = "warm"\n"#0000dc" = "blue"\n"0 0 0" = "ignore"\n'
    taxonomy = Taxonomy.load(write(tmp_path, text), bundle)
    assert taxonomy.colors is not None
    pixels = np.array([[[220, 0, 0], [0, 0, 220], [0, 0, 0]]], np.uint8)
    assert taxonomy.encode(taxonomy.colors.encode(pixels, "1.png"), "1.png").tolist() == [[0, 1, 255]]
    assert Taxonomy.from_json(taxonomy.to_json()) == taxonomy


def test_colors_of_a_data_set_are_given_by_its_name(bundle: Bundle, tmp_path: Path) -> None:
    text = 'colors = "camvid"\n' + COLORED + '[labels]\nSky = "blue"\n17 = "warm"\n'
    taxonomy = Taxonomy.load(write(tmp_path, text), bundle)
    assert dict(taxonomy.labels) == {21: 1, 17: 0}
    assert Taxonomy.from_json(taxonomy.to_json()) == taxonomy
    with pytest.raises(TaxonomyError, match="named color tables are voc, cityscapes, ade20k, camvid; got 'kitti'"):
        Taxonomy.load(write(tmp_path, text.replace("camvid", "kitti")), bundle)
    with pytest.raises(TaxonomyError, match="'sky' is neither .* did you mean Sky"):
        Taxonomy.load(write(tmp_path, text.replace("Sky", "sky")), bundle)


@pytest.mark.parametrize("color", ["red", "1, 2", "1, 2, 300", "#12345"])
def test_other_colors_are_refused(bundle: Bundle, tmp_path: Path, color: str) -> None:
    with pytest.raises(TaxonomyError, match="a color is written"):
        Taxonomy.load(write(tmp_path, COLORED + f'[colors]\n"{color}" = "warm"\n'), bundle)


def test_label_names_of_data_sets_are_known(tmp_path: Path) -> None:
    assert read_label_names("ade20k")[1] == "wall"
    assert read_label_names("voc")[15] == "person"
    (tmp_path / "classes.txt").write_text('\ufeffdark\n# a comment\n"traffic light"\n', encoding="utf-8")
    assert read_label_names(tmp_path / "classes.txt") == {0: "dark", 1: "traffic light"}


def test_labels_that_are_only_assumed_lead_to_a_draft(bundle: Bundle) -> None:
    with pytest.raises(
        TaxonomyError, match=r"label 7 on 2 pixels, and the model has no class for it .*maskmill taxonomy"
    ):
        Taxonomy.of_model(bundle).encode(np.array([[7, 7, 0]], np.uint8), "a.png")


def test_the_draft_without_a_dataset_is_the_model_itself(bundle: Bundle, tmp_path: Path) -> None:
    text, unmatched = draft(bundle)
    assert Taxonomy.load(write(tmp_path, text), bundle) == replace(Taxonomy.of_model(bundle), assumed=False)
    assert unmatched == []


NAMED = """
targets = ["background", "cow"]
background = "background"
label_names = ["void", "grass", "cow"]
[model]
background = "background"
cow = "cow"
dog = "dropped"
[labels]
void = "ignore"
grass = "background"
cow = "cow"
"""


def test_names_of_indices_are_found_in_a_file_whose_values_mean_nothing(tmp_path: Path) -> None:
    bundle = color_bundle(tmp_path, classes=("background", "cow", "dog"), background="background")
    taxonomy = Taxonomy.load(write(tmp_path, NAMED), bundle)
    for loaded in (taxonomy, Taxonomy.from_json(taxonomy.to_json())):
        # the file has another order, and not the class void
        assert dict(loaded.for_labels({0: "cow", 1: "grass"}, "set.json", by_name=True).labels) == {0: 1, 1: 0}
        assert dict(loaded.for_labels({}, "folder", by_name=False).labels) == {0: -1, 1: 0, 2: 1}


def test_indices_are_refused_for_a_file_whose_values_mean_nothing(tmp_path: Path) -> None:
    bundle = color_bundle(tmp_path, classes=("background", "cow", "dog"), background="background")
    head = NAMED.partition("[labels]")[0].replace("label_names", "# label_names")
    taxonomy = Taxonomy.load(write(tmp_path, f'{head}[labels]\n0 = "ignore"\n2 = "cow"\n'), bundle)
    with pytest.raises(TaxonomyError, match=r"names the label 0, but the labels of set.json have names and no indices"):
        taxonomy.for_labels({0: "cow", 1: "grass"}, "set.json", by_name=True)


@pytest.mark.parametrize("label", ["9", "sky"])
def test_a_target_with_labels_and_no_model_class_is_refused_by_name(label: str, bundle: Bundle, tmp_path: Path) -> None:
    text = GOOD.replace('red = "warm"', 'red = "dropped"').replace('7 = "warm"', f'{label} = "warm"')
    text = text.replace('9 = "blue"', '8 = "blue"')
    with pytest.raises(
        TaxonomyError, match="no model class is mapped to the target 'warm', .* map at least one .* or remove"
    ):
        Taxonomy.load(write(tmp_path, text), bundle)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("persn", "person"), ("Train", "train"), ("rtain", "train"), ("cows", "cow"), ("mountain", None),
        ("street", None), ("sky", None),
    ],
)  # fmt: skip
def test_only_misspellings_are_taken_for_another_name(name: str, meant: str | None) -> None:
    assert nearest_name(name, ["person", "train", "cow", "tree", "sheep"]) == meant
