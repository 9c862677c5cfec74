"""Objects in a bucket with names that the client refuses: each is one reject, and the others are labeled."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from maskmill.engine.inputs.sources import Item, open_source
from maskmill.engine.labeling.selection import Selection
from maskmill.engine.model.storage import fetched, location_of
from maskmill.engine.reading.storage_options import use_storage
from maskmill.engine.store.label_store import LabelStore
from maskmill.errors import ImageError
from tests.hostile_server import hostile_server

from ...models import color_bundle
from ..corpus import label_folder, write_photos
from .bucket_server import KEYS, serve_bucket

boto3: Any = pytest.importorskip("boto3")
pytest.importorskip("moto.server")
pytest.importorskip("obstore")

KEYS_OF_IMAGES = [
    "m/a.png", "m//b.png", "m//deep/c.png", "m/d/e.png", "m/d//", "m/lead/ f.png", "m/h%2Fi.png", "m/j#k?l.png",
    "m/u\u0308.png", "m/\u00fc.png", "m/100%.png", "m/n\\o.png", "m/p\x01q.png", "/r.png", "top.png",
]  # fmt: skip
REFUSED = ["m//", "m/d//", "m/p\x01q.png"]


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    photos = [path.read_bytes() for path in write_photos(tmp_path_factory.mktemp("photos"), len(KEYS_OF_IMAGES))]
    with serve_bucket() as server:
        keys = {name: value for name, value in KEYS.items() if name != "aws_region"}
        client = boto3.client("s3", endpoint_url=server.options["aws_endpoint"], region_name="us-east-1", **keys)
        for key, photo in zip(KEYS_OF_IMAGES, photos, strict=True):
            client.put_object(Bucket="bucket", Key=key, Body=photo)
        yield server.options


def split(source: Any) -> tuple[list[str], list[str]]:
    items = list(source)
    names = [[item.uri.removeprefix("s3://bucket/") for item in items if bool(item.problem) == bad] for bad in (0, 1)]
    for item in items:
        if item.problem:
            with pytest.raises(ImageError, match=f"^cannot read {re.escape(item.uri)}: its name has an empty part"):
                source.read(item)
    return names[0], names[1]


def test_the_other_objects_of_a_folder_are_found(options: dict[str, str]) -> None:
    source = open_source("s3://bucket/m", storage_options=options)
    sound, refused = split(source)
    expected = [key for key in KEYS_OF_IMAGES if key.startswith("m/") and "//" not in key and "\x01" not in key]
    assert sorted(sound) == sorted(expected)
    assert sorted(refused) == REFUSED
    assert len({source.read(item) for item in source if not item.problem}) == len(sound)
    sound, refused = split(open_source("s3://bucket", storage_options=options))
    assert (sound[0], len(sound), sorted(refused)) == ("top.png", 10, ["/", *REFUSED])
    first = next(iter(open_source("s3://bucket/m/*.png", storage_options=options)))
    assert first.uri == "s3://bucket/m/100%.png"


def test_an_object_with_such_a_name_is_not_taken_for_another_one(options: dict[str, str]) -> None:
    source = open_source("s3://bucket/m", storage_options=options)
    for key in ("/top.png", "m//a.png", "m/./a.png", "m/d/../a.png"):
        with pytest.raises(ImageError, match="a name in the bucket has an empty part"):
            source.read(Item(f"s3://bucket/{key}"))


def test_a_run_labels_the_others(options: dict[str, str], tmp_path: Path) -> None:
    with use_storage(options):
        label_folder(color_bundle(tmp_path), "s3://bucket/m", tmp_path / "store", selection=Selection.argmax())
    store = LabelStore.open(tmp_path / "store")
    assert len(store) == 9
    assert sorted(row.uri for row in store.rejects()) == [f"s3://bucket/{name}" for name in REFUSED]


def test_a_folder_with_such_names_is_copied_without_them(options: dict[str, str]) -> None:
    names = sorted(path.name for path in fetched(location_of("s3://bucket/m/d", options)).iterdir())
    assert names == ["e.png"]


def test_dots_are_no_folders() -> None:
    keys = ["n/a.png", "n/.", "n/..hidden.png"]
    objects = "".join(
        f"<Contents><Key>{key}</Key><Size>3</Size><ETag>x</ETag><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
        "</Contents>"
        for key in keys
    )
    folders = "".join(f"<CommonPrefixes><Prefix>{name}</Prefix></CommonPrefixes>" for name in ("n/../", "n/./"))
    with hostile_server() as server:
        server.files["listing"] = f"<ListBucketResult>{objects}{folders}</ListBucketResult>".encode()
        source = open_source("s3://listing/n", storage_options={**KEYS, "aws_endpoint": server.url})
        items = [(item.uri.removeprefix("s3://listing/n/"), bool(item.problem)) for item in source]
    assert sorted(items) == [(".", True), ("../", True), ("..hidden.png", False), ("./", True), ("a.png", False)]
