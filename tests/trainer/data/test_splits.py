from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest

from maskmill.engine.inputs.names import read_ids
from maskmill.errors import UsageError
from maskmill.trainer.data.corpus import open_corpus
from maskmill.trainer.data.splits import parse_share, seeded_split

from ..builders import TAXONOMY, write_labeled

URIS = [f"/data/images/{number:04d}.jpg" for number in range(1464)]


@pytest.mark.parametrize(("share", "count"), [("1/16", 91), ("1/8", 183), ("1/4", 366), ("0.5", 732), ("1", 1464)])
def test_a_split_is_a_share_of_the_images(share: str, count: int) -> None:
    assert len(seeded_split(URIS, parse_share(share), seed=0)) == count


def test_a_split_depends_on_its_seed_and_on_file_names_alone() -> None:
    first = seeded_split(URIS, Fraction(1, 16), seed=0)
    moved = [uri.replace("/data", "/elsewhere") for uri in reversed(URIS)]
    assert seeded_split(moved, Fraction(1, 16), seed=0) == [uri.replace("/data", "/elsewhere") for uri in first]
    assert seeded_split(URIS, Fraction(1, 16), seed=1) != first


def test_splits_of_a_seed_are_nested() -> None:
    assert set(seeded_split(URIS, Fraction(1, 16), seed=3)) < set(seeded_split(URIS, Fraction(1, 8), seed=3))


@pytest.mark.parametrize("text", ["0", "2", "-1/4", "1/0", "some"])
def test_what_is_no_share_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="share of the labeled images"):
        parse_share(text)


def test_a_corpus_uses_a_share_of_its_labeled_images_and_leaves_the_others_unlabeled(tmp_path: Path) -> None:
    photos = write_labeled(tmp_path / "photos", range(8))
    corpus = open_corpus(
        labeled=photos, unlabeled=photos / "images", taxonomy=TAXONOMY, labeled_share="1/4", split_seed=2
    )
    assert corpus.labeled is not None
    assert corpus.plain is not None
    assert (len(corpus.labeled.uris), len(corpus.plain.uris)) == (2, 6)
    assert corpus.record["labeled"]["split"] == {"share": "1/4", "seed": 2}


def test_published_split_lists_name_the_image_before_its_label_map(tmp_path: Path) -> None:
    listed = tmp_path / "labeled.txt"
    listed.write_text("JPEGImages/2007_000032.jpg SegmentationClass/2007_000032.png\nJPEGImages/a b.jpg\n")
    assert read_ids(listed) == {"JPEGImages/2007_000032.jpg", "JPEGImages/a b.jpg"}
