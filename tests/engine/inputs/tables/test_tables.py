"""Images in the rows of Parquet files, Lance datasets and saved data sets: listed, read and labeled as files are."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from maskmill.engine.cluster.job import Job
from maskmill.engine.cluster.planner import Planner
from maskmill.engine.inputs.labeled_source import pair_images
from maskmill.engine.inputs.labels import LabelFolder
from maskmill.engine.inputs.sources import open_source, read_uri
from maskmill.engine.inputs.tables import reader
from maskmill.engine.model.taxonomy import Taxonomy
from maskmill.engine.reading.access import Access
from maskmill.engine.reading.manifest import write_manifest
from maskmill.engine.store.label_store import LabelStore
from maskmill.errors import ImageError, SourceError
from tests.hostile_server import hostile_server

NUM = 150


def picture(number: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((4, 6, 3), number, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


PICTURES = [picture(number) for number in range(NUM)]


def table(*, structs: bool, nameless: bool = False) -> pa.Table:
    """Rows of images with a label, as ``{bytes, path}`` or as bytes with a column of names."""
    names = [None if nameless else f"photo-{number}.png" for number in range(NUM)]
    if structs:
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        rows = [{"bytes": data, "path": name} for data, name in zip(PICTURES, names, strict=True)]
        return pa.table({"label": list(range(NUM)), "image": pa.array(rows, kind)})
    columns = {"jpg": pa.array(PICTURES, pa.large_binary()), "label": list(range(NUM))}
    return pa.table(columns if nameless else {"__key__": names, **columns})


def write_parquet(folder: Path, rows: pa.Table) -> Path:
    pq.write_table(rows, folder / "photos.parquet", row_group_size=32)
    return folder / "photos.parquet"


def write_lance(folder: Path, rows: pa.Table) -> Path:
    lance.write_dataset(rows, folder / "photos.lance")
    return folder / "photos.lance"


def write_saved(folder: Path, rows: pa.Table) -> Path:
    """Two files and a state, as ``datasets`` saves a data set."""
    folder = folder / "saved"
    folder.mkdir()
    names = ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"]
    for name, part in zip(names, (rows.slice(0, 100), rows.slice(100)), strict=True):
        with pa.ipc.new_stream(folder / name, rows.schema) as writer:
            writer.write_table(part, max_chunksize=30)
    state = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "1", "_split": None}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")
    return folder


WRITERS = {"parquet": write_parquet, "lance": write_lance, "saved": write_saved}


@pytest.mark.parametrize("structs", [True, False], ids=["structs", "bytes"])
@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_rows_are_images(tmp_path: Path, write: Callable[[Path, pa.Table], Path], structs: bool) -> None:
    source = open_source(write(tmp_path, table(structs=structs)))
    items = list(source)
    assert [source.read(item) for item in items] == PICTURES
    assert [item.uri.rpartition("/")[2] for item in items] == [f"photo-{number}.png" for number in range(NUM)]
    assert len({item.uri for item in items}) == NUM
    assert list(source) == items
    assert read_uri(items[7].uri) == PICTURES[7]
    with ThreadPoolExecutor(4) as pool:  # in any order
        order = np.random.default_rng(0).permutation(NUM)
        assert list(pool.map(lambda number: source.read(items[number]), order)) == [PICTURES[n] for n in order]


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_rows_without_names_are_known_by_their_numbers(tmp_path: Path, write: Any) -> None:
    path = write(tmp_path, table(structs=False, nameless=True))
    uris = [item.uri for item in open_source(path)]
    assert uris[0].endswith("::0")
    assert len(set(uris)) == NUM


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_labels_are_paired_by_the_names_of_rows(tmp_path: Path, write: Any) -> None:
    source = open_source(write(tmp_path, table(structs=True)))
    (tmp_path / "labels").mkdir()
    for number in (3, 140):
        Image.fromarray(np.zeros((4, 6), np.uint8)).save(tmp_path / "labels" / f"photo-{number}.png")
    classes = Taxonomy(targets=("a", "b"), background=None, model=(0, 1))
    labeled = pair_images(source, LabelFolder(tmp_path / "labels"), classes)
    assert [source.read(item) for item in labeled.items] == [PICTURES[3], PICTURES[140]]


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_manifest_of_a_table_reads_the_same_images(tmp_path: Path, write: Any) -> None:
    source = open_source(write(tmp_path, table(structs=True)))
    write_manifest(source, tmp_path / "manifest.parquet")
    listed = open_source(tmp_path / "manifest.parquet")
    assert list(listed) == list(source)
    assert [listed.read(item) for item in listed] == PICTURES


def test_the_splits_of_a_saved_data_set_follow_each_other(tmp_path: Path) -> None:
    (tmp_path / "all").mkdir()
    for name, rows in (("train", table(structs=True).slice(0, 120)), ("test", table(structs=True).slice(120))):
        (tmp_path / name).mkdir()
        write_saved(tmp_path / name, rows).rename(tmp_path / "all" / name)
    (tmp_path / "all" / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    source = open_source(tmp_path / "all")
    assert [source.read(item) for item in source] == PICTURES


def test_a_glob_of_tables_is_one_source(tmp_path: Path) -> None:
    for number in range(3):
        rows = table(structs=True).slice(50 * number, 50)
        pq.write_table(rows, tmp_path / f"part {number}.parquet")
    source = open_source(f"{tmp_path}/*.parquet")
    assert [source.read(item) for item in source] == PICTURES


def test_a_table_behind_a_url(tmp_path: Path) -> None:
    import fsspec

    with fsspec.open("memory://tables/photos.parquet", "wb") as file:
        file.write(write_parquet(tmp_path, table(structs=True)).read_bytes())
    for spec in ("memory://tables/photos.parquet", "memory://tables/*.parquet"):
        source = open_source(spec)
        assert [source.read(item) for item in source] == PICTURES


def test_a_list_with_other_columns_stays_a_list(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PICTURES[0])
    pq.write_table(pa.table({"image": [str(tmp_path / "a.png")], "hash": [b"123"]}), tmp_path / "list.parquet")
    assert [item.uri for item in open_source(tmp_path / "list.parquet")] == [str(tmp_path / "a.png")]


def damage_group(path: Path, group: int, column: int) -> None:
    """Overwrite the header of a page of a row group."""
    start = pq.read_metadata(path).row_group(group).column(column).data_page_offset
    data = bytearray(path.read_bytes())
    data[start : start + 16] = b"\xff" * 16
    path.write_bytes(data)


def test_rows_of_a_damaged_row_group_are_refused_and_the_others_are_read(tmp_path: Path) -> None:
    path = write_parquet(tmp_path, table(structs=False))
    damage_group(path, 1, 0)  # of names
    damage_group(path, 3, 1)  # of images
    source = open_source(path)
    items = list(source)
    assert len(items) == NUM
    for number, item in enumerate(items):
        if number // 32 in (1, 3):
            with pytest.raises(ImageError) as caught:
                source.read(item)
            assert caught.value.kind == "unreadable"
        else:
            assert source.read(item) == PICTURES[number]


def test_damage_of_a_table_behind_a_url_ends_nothing_but_itself(tmp_path: Path) -> None:
    import fsspec

    path, memory = write_parquet(tmp_path, table(structs=False)), fsspec.filesystem("memory")
    sound = path.read_bytes()
    damage_group(path, 1, 0)  # of names
    damage_group(path, 3, 1)  # of images
    files = {"a.parquet": path.read_bytes(), "b.parquet": sound[:200], "c.parquet": sound}
    for name, data in files.items():
        memory.pipe_file(f"/damaged/{name}", data)
    source = open_source("memory://damaged/*.parquet")
    items = list(source)
    assert len(items) == 2 * NUM + 1
    assert items[NUM].problem.startswith("its list ends early")
    unread = []
    for number, item in enumerate(items):
        try:
            assert source.read(item) == PICTURES[number if number < NUM else number - NUM - 1]
        except ImageError:
            unread.append(number)
    assert unread == [*range(32, 64), *range(96, 128), NUM]


def test_a_server_that_fails_while_rows_are_listed_is_no_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise ConnectionError("connection reset")

    opened = reader._Parquet(pa.BufferReader(parquet_bytes(table(structs=False))), "photos.parquet")
    monkeypatch.setattr(opened, "read", fail)
    with pytest.raises(ConnectionError):
        list(reader.row_names(opened))


def parquet_bytes(rows: pa.Table) -> bytes:
    stream = io.BytesIO()
    pq.write_table(rows, stream, row_group_size=32)
    return stream.getvalue()


@pytest.mark.parametrize("scheme", ["http", "s3"])
def test_a_parquet_file_behind_a_url_is_a_few_requests(scheme: str) -> None:
    with hostile_server() as server:
        server.files["photos.parquet"] = parquet_bytes(table(structs=True))
        options = {"aws_endpoint": server.url, "aws_access_key_id": "a", "aws_secret_access_key": "b"}
        spec = "s3://ok/photos.parquet" if scheme == "s3" else f"{server.url}/ok/photos.parquet"
        source = open_source(spec, storage_options=options)
        assert [source.read(item) for item in source] == PICTURES
        assert server.requests["ok"] < 20


def test_saved_data_sets_behind_urls_are_refused(tmp_path: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    for file in write_saved(tmp_path, table(structs=True)).iterdir():
        memory.pipe_file(f"/saved/{file.name}", file.read_bytes())
    with pytest.raises(SourceError, match="it holds .*arrow.*; copy saved data sets to a disk"):
        list(open_source("memory://saved"))


def test_lance_datasets_behind_other_urls_than_buckets_are_refused() -> None:
    import fsspec

    fsspec.filesystem("memory").pipe_file("/photos.lance/x", b"")
    with pytest.raises(SourceError, match="neither on a disk nor in a bucket"):
        list(open_source("memory://photos.lance"))


def test_entries_of_a_damaged_row_group_of_a_list_are_refused_and_the_others_are_read(tmp_path: Path) -> None:
    for number in range(6):
        (tmp_path / f"{number}.png").write_bytes(PICTURES[number])
    paths = pa.table({"image": [f"{number}.png" for number in range(6)]})
    pq.write_table(paths, tmp_path / "list.parquet", row_group_size=2, use_dictionary=False)
    damage_group(tmp_path / "list.parquet", 1, 0)
    items = list(open_source(tmp_path / "list.parquet"))
    assert [bool(item.problem) for item in items] == [False, False, True, True, False, False]


@pytest.mark.parametrize("others", [{}, {"name": ["a"]}])
def test_a_column_of_bytes_with_another_name_is_pointed_out(tmp_path: Path, others: dict[str, Any]) -> None:
    pq.write_table(pa.table({"pic": pa.array([PICTURES[0]], pa.binary()), **others}), tmp_path / "photos.parquet")
    with pytest.raises(SourceError, match="images in a column of bytes named image, .*; pic holds bytes: rename it"):
        list(open_source(tmp_path / "photos.parquet"))


def test_rows_that_hold_no_image_are_refused_one_by_one(tmp_path: Path) -> None:
    rows = pa.array([PICTURES[0], None, bytes(3000)], pa.binary())
    pq.write_table(pa.table({"image": rows}), tmp_path / "photos.parquet")
    source = open_source(tmp_path / "photos.parquet", access=Access(max_bytes=2000))
    items = list(source)
    assert source.read(items[0]) == PICTURES[0]
    for item, kind in ((items[1], "unreadable"), (items[2], "too-large"), (items[0]._replace(uri="x"), "unreadable")):
        with pytest.raises(ImageError) as caught:
            source.read(item)
        assert caught.value.kind == kind
    with pytest.raises(ImageError, match="has no row 99"):
        read_uri(f"{tmp_path}/photos.parquet::99")


@pytest.mark.parametrize("write", [write_parquet, write_saved])
def test_a_damaged_table_is_named(tmp_path: Path, write: Any) -> None:
    path = write(tmp_path, table(structs=True))
    file = path / "data-00000-of-00002.arrow" if path.is_dir() else path
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(SourceError):
        list(open_source(path))


@pytest.mark.parametrize("state", ["{", "[]", "{}", '{"_data_files": [{"filename": "../../secret.arrow"}]}'])
def test_a_damaged_state_is_named(tmp_path: Path, state: str) -> None:
    path = write_saved(tmp_path, table(structs=True))
    (path / "state.json").write_text(state)
    with pytest.raises(SourceError, match=r"the saved data set .* is damaged: state\.json"):
        list(open_source(path))


def test_several_columns_of_images_need_a_name(tmp_path: Path) -> None:
    kind = pa.struct([("bytes", pa.binary())])
    rows = pa.array([{"bytes": PICTURES[0]}], kind)
    pq.write_table(pa.table({"left": rows, "right": rows}), tmp_path / "pairs.parquet")
    with pytest.raises(SourceError, match=r"several columns of images \(left, right\); name the one to use image"):
        list(open_source(tmp_path / "pairs.parquet"))


def test_each_row_group_is_read_once_and_belongs_to_one_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(write_parquet(tmp_path, table(structs=True)))
    pieces: list[int] = []
    read = reader._Parquet.read

    def counted(self: Any, piece: int, column: str) -> Any:
        pieces.append(piece) if column == "image.bytes" else None
        return read(self, piece, column)

    monkeypatch.setattr(reader._Parquet, "read", counted)
    assert [source.read(item) for item in source] == PICTURES
    assert pieces == [0, 1, 2, 3, 4]
    store = LabelStore.create(tmp_path / "store", {})
    leases: list[int] = []

    class Leases:
        def open_names(self) -> list[str]:
            return []

        def publish(self, lease: str, items: list[Any]) -> None:
            leases.append(len(items))

    job = Job(opening=lambda: None, selection=None, source=source, store=str(store.path))
    planner = Planner(job, Leases(), store, name="a", size=lambda: 20)  # type: ignore[arg-type]
    planner.make_room(100)
    planner._run()
    assert planner.error is None
    assert leases == [32, 32, 32, 32, 22]
