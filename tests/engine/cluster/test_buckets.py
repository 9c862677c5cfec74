"""Stores, bundles and photos in a bucket of an S3-compatible server on this machine, with an outage during a run."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import lance
import pytest

from maskmill.engine.calibration.calibration import Calibration
from maskmill.engine.cluster.job import Job
from maskmill.engine.cluster.leases import Leases
from maskmill.engine.cluster.runner import run_array
from maskmill.engine.cluster.status import read_status
from maskmill.engine.inputs.sources import open_source
from maskmill.engine.labeling.history import read_history
from maskmill.engine.labeling.label_run import label
from maskmill.engine.labeling.selection import Selection
from maskmill.engine.model.bundle import Bundle
from maskmill.engine.model.storage import lance_options, location_of, open_folder
from maskmill.engine.store import label_store
from maskmill.engine.store.label_store import LabelStore
from maskmill.engine.store.verify import verify
from maskmill.errors import CalibrationError, StoreError

from ...models import color_bundle
from ..corpus import label_folder, write_photos
from .bucket_server import KEYS, Server, serve_bucket, upload

pytest.importorskip("moto.server")
pytest.importorskip("obstore")


@pytest.fixture(scope="module")
def options() -> Iterator[dict[str, str]]:
    with serve_bucket() as server:
        yield server.options


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return color_bundle(tmp_path)


def labels_of(store: LabelStore) -> dict[str, tuple[bytes, bytes]]:
    return {row.id: (row.label, row.weight) for row in store.iter_rows()}


@pytest.mark.filterwarnings("ignore")
class TestBucket:
    """Tests that share one server."""

    def test_a_store_in_a_bucket_is_verified_repaired_and_has_a_history(
        self, bundle: Bundle, tmp_path: Path, options: dict[str, str]
    ) -> None:
        write_photos(tmp_path / "photos", 4)
        place = location_of("s3://bucket/verified", options)
        label_folder(bundle, tmp_path / "photos", place, selection=Selection.argmax())
        assert [run["images"] for run in read_history(place)] == [4]
        sound = verify("s3://bucket/verified", storage_options=options)
        assert (sound.damages, sound.rows["labels"], sound.rows["inputs"]) == ([], 4, 4)
        store = LabelStore.open(place)
        store.commit([], [replace(next(store.inputs()), uri="/lost.png", id="0" * 32)])
        (damage,) = verify(place).damages
        assert (damage.name, damage.reason) == ("/lost.png", "its labels are damaged or missing")
        assert verify(place, repair=True).sound
        assert verify(place).damages == []
        assert sorted(row.uri for row in LabelStore.open(place).inputs()) == sorted(
            str(path) for path in (tmp_path / "photos").iterdir()
        )

    def test_a_run_from_a_bucket_into_a_bucket(
        self, jobs: Any, bundle: Bundle, tmp_path: Path, options: dict[str, str]
    ) -> None:
        write_photos(tmp_path / "photos", 20)
        upload(tmp_path / "photos", "s3://bucket/photos", options)
        upload(bundle.path, "s3://bucket/model", options)
        copy = Bundle.load(location_of("s3://bucket/model", options))
        assert copy.classes == bundle.classes
        job = Job(
            opening=jobs.opening_of(copy),
            selection=Selection.argmax(),
            source=open_source("s3://bucket/photos", storage_options=options),
            store="s3://bucket/labels",
            storage_options=options,
        )
        assert run_array(job, threads=1).images == 20
        store = LabelStore.open("s3://bucket/labels", storage_options=options)
        label_folder(bundle, tmp_path / "photos", tmp_path / "alone", selection=Selection.argmax())
        assert labels_of(store) == labels_of(LabelStore.open(tmp_path / "alone"))
        assert store.summary()["bytes"] > 0
        status = read_status("s3://bucket/labels", options)
        assert (status.images, status.run) == (20, "finished")
        assert run_array(job, threads=1).inputs == 0

    def test_profiles_of_aws_hold_the_credentials(
        self, tmp_path: Path, options: dict[str, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "credentials").write_text("[work]\naws_access_key_id = a\naws_secret_access_key = b\n")
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
        monkeypatch.setenv("AWS_PROFILE", "work")
        place: Any = location_of("s3://bucket/profiles/a.jpg", {"aws_endpoint": options["aws_endpoint"]})
        place.write_bytes(b"a photo")
        assert (place.read_bytes(), place.is_file(), place.parent.is_dir()) == (b"a photo", True, True)
        assert [path.name for path in place.parent.iterdir()] == ["a.jpg"]
        status = place.stat()
        assert (status.st_size, abs(status.st_mtime - time.time()) < 3600) == (7, True)

    def test_a_lance_dataset_in_a_bucket_is_a_source(self, tmp_path: Path, options: dict[str, str]) -> None:
        import pyarrow as pa

        photos = [path.read_bytes() for path in write_photos(tmp_path / "photos", 100)]
        rows = pa.table({"image": photos, "key": [f"{number}.png" for number in range(100)]})
        lance.write_dataset(rows, "s3://bucket/photos.lance", storage_options=lance_options(options))
        source = open_source("s3://bucket/photos.lance", storage_options=options)
        items = list(source)
        assert items[1].uri == "s3://bucket/photos.lance::1/1.png"
        assert [source.read(item) for item in items] == photos

    def test_an_ordinary_run_commits_into_a_bucket(
        self, jobs: Any, bundle: Bundle, tmp_path: Path, options: dict[str, str]
    ) -> None:
        write_photos(tmp_path / "photos", 5)
        predictor, taxonomy = jobs.open_predictor(bundle.path, 0.0, None)
        place = location_of("s3://bucket/ordinary", options)
        source = open_source(tmp_path / "photos")
        assert label(predictor, source, place, taxonomy, Selection.argmax()).images == 5
        assert label(predictor, source, place, taxonomy, Selection.argmax()).inputs == 0
        assert len(LabelStore.open(place)) == 5

    def test_a_store_in_a_bucket_is_compacted(self, options: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
        from ...builders import input_row, label_row

        monkeypatch.setattr(label_store, "COMPACT_EVERY", 2)
        store = LabelStore.create(location_of("s3://bucket/compacted", options), {"run": 1})
        for number in range(5):
            store.commit([label_row(str(number))], [input_row(str(number))])
        assert len(set(store.ids())) == len(store) == 5

    @pytest.mark.parametrize("moment", ["before", "between", "after"])
    def test_a_store_is_created_though_the_server_resets_the_connection(
        self, options: dict[str, str], monkeypatch: pytest.MonkeyPatch, moment: str
    ) -> None:
        from ...builders import input_row, label_row

        write, failed = lance.write_dataset, set()
        place: Any = location_of(f"s3://bucket/reset-{moment}", options)

        def reset_once(data: Any, uri: str, **words: Any) -> None:
            if uri not in failed:
                failed.add(uri)
                if moment == "between":  # the request before that for the version
                    location_of(f"{uri}/_transactions/0-a.txn", options).write_bytes(b"")
                if moment == "after":
                    write(data, uri, **words)
                raise OSError("LanceError(IO): Error performing PUT http://x in 1s - HTTP error: error sending request")
            write(data, uri, **words)

        monkeypatch.setattr(lance, "write_dataset", reset_once)
        store = LabelStore.create(place, {"run": 1})
        assert len(failed) == 3
        store.commit([label_row("1")], [input_row("1")])
        assert len(LabelStore.open(place)) == 1

    def test_a_store_that_may_not_be_created_is_one_line(
        self, options: dict[str, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        attempts = []

        def refuse(data: Any, uri: str, **words: Any) -> None:
            attempts.append(uri)
            raise OSError(
                "LanceError(IO): Error performing PUT http://x in 1s - Server returned non-2xx status code: 403 "
                "Forbidden: <?xml?>\n<Error><Code>AccessDenied</Code></Error>"
            )

        monkeypatch.setattr(lance, "write_dataset", refuse)
        message = r"^cannot create a label store in s3://bucket/refused: the server refuses access \(AccessDenied\)$"
        with pytest.raises(StoreError, match=message):
            LabelStore.create(location_of("s3://bucket/refused", options), {"run": 1})
        assert len(attempts) == 1
        monkeypatch.undo()
        message = "^cannot read s3://nowhere/store/run.json: the bucket nowhere does not exist$"
        with pytest.raises(StoreError, match=message):
            LabelStore.create(location_of("s3://nowhere/store", options), {"run": 1})

    def test_a_run_into_a_bucket_that_does_not_exist_is_one_line(
        self, jobs: Any, bundle: Bundle, tmp_path: Path, options: dict[str, str]
    ) -> None:
        write_photos(tmp_path / "photos", 1)
        job = jobs.color_job(bundle, tmp_path / "photos", "s3://nowhere/labels", storage_options=options)
        with pytest.raises(
            StoreError, match=r"^cannot write to the label store s3://nowhere/labels: the bucket nowhere does "
        ):
            run_array(job, threads=1)
        # the first look of a driver on Ray
        with pytest.raises(
            StoreError, match="^cannot read the label store .*: the bucket nowhere does not exist$"
        ) as caught:
            Leases("s3://nowhere/labels", options).lead({"token": "a"})
        assert caught.value.exit_code == 2

    def test_many_writers_commit_each_image_once(self, options: dict[str, str]) -> None:
        from ...builders import input_row, label_row

        place = location_of("s3://bucket/writers", options)
        LabelStore.create(place, {"run": 1})

        def commit(part: int) -> None:
            store = LabelStore.open(place)
            for start in range(0, 30, 10):
                names = [str(number) for number in range(start + part, start + part + 20)]
                store.commit([label_row(name) for name in names], [input_row(name) for name in names])

        threads = [threading.Thread(target=commit, args=(part,)) for part in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        store = LabelStore.open(place)
        ids, uris = store.ids(), [row.uri for row in store.inputs()]
        assert len(ids) == len(set(ids)) == len(uris) == len(set(uris)) == 42

    def test_one_of_many_claims_each_lease(self, options: dict[str, str]) -> None:
        from concurrent.futures import ThreadPoolExecutor

        from maskmill.engine.inputs.sources import Item

        leases = Leases("s3://bucket/claims", options)
        for number in range(6):
            leases.publish(str(number), [Item(f"s3://bucket/{number}.jpg")])

        def claim_all(worker: str) -> list[str]:
            claimed = []
            while (lease := leases.claim(worker)) is not None:
                claimed.append(lease[0])
            return claimed

        with ThreadPoolExecutor(3) as pool:
            claimed = [lease for part in pool.map(claim_all, "abc") for lease in part]
        assert sorted(claimed) == [str(number) for number in range(6)]

    def test_objects_that_stand_for_folders_are_no_images(self, tmp_path: Path, options: dict[str, str]) -> None:
        from boto3 import client

        keys = {f"aws_{name}": options[f"aws_{name}"] for name in ("access_key_id", "secret_access_key")}
        server = client("s3", endpoint_url=options["aws_endpoint"], region_name=options["aws_region"], **keys)
        (path,) = write_photos(tmp_path / "photos", 1)
        for key in ("odd/a.png", "odd/empty/", "odd/trail.jpg/", "odd/full/", "odd/full/b.png"):
            server.put_object(Bucket="bucket", Key=key, Body=b"" if key.endswith("/") else path.read_bytes())
        source = open_source("s3://bucket/odd", storage_options=options)
        items = list(source)
        assert [item.uri for item in items] == ["s3://bucket/odd/a.png", "s3://bucket/odd/full/b.png"]
        assert [len(source.read(item)) for item in items] == [len(path.read_bytes())] * 2

    def test_a_folder_in_a_bucket_is_like_one_on_a_disk(self, tmp_path: Path, options: dict[str, str]) -> None:
        for place in (tmp_path / "folder", location_of("s3://bucket/folder", options)):
            folder = open_folder(place)
            assert folder.names("a") == {}
            folder.write("a/1", b"one")
            folder.write("a/2", b"")
            assert folder.write_once("a/3", b"three")
            assert not folder.write_once("a/3", b"four")
            assert folder.names("a") == {"1": 3, "2": 0, "3": 5}
            assert folder.read("a/3") == b"three"
            folder.remove("a/1")
            folder.remove("a/1")
            with pytest.raises(FileNotFoundError):
                folder.read("a/1")


@pytest.mark.filterwarnings("ignore")
def test_an_outage_delays_a_run(jobs: Any, bundle: Bundle, tmp_path: Path) -> None:
    seconds = float(os.environ.get("MASKMILL_OUTAGE_SECONDS", "8"))
    server = Server()
    options = server.options
    write_photos(tmp_path / "photos", 60)
    upload(tmp_path / "photos", "s3://bucket/photos", options)
    source = open_source("s3://bucket/photos", storage_options=options)
    job = jobs.color_job(bundle, tmp_path / "photos", "s3://bucket/labels", pause=0.1, storage_options=options)
    job = replace(job, source=source)

    def outage() -> None:
        while not Leases("s3://bucket/labels", options).claims() and time.monotonic() < started + 120:
            time.sleep(0.2)
        server.process.send_signal(signal.SIGSTOP)
        time.sleep(seconds)
        server.process.send_signal(signal.SIGCONT)

    started = time.monotonic()
    thread = threading.Thread(target=outage)
    thread.start()
    try:
        progress = run_array(job, threads=1)
        thread.join()
        assert time.monotonic() - started > seconds
        assert (progress.images, progress.rejects) == (60, {})
        store = LabelStore.open("s3://bucket/labels", storage_options=options)
        assert len(store) == len({row.uri for row in store.inputs()}) == 60
    finally:
        server.process.send_signal(signal.SIGCONT)
        server.process.kill()
        server.process.wait()


def test_lance_may_use_http_if_the_address_says_so() -> None:
    assert lance_options(KEYS) == KEYS
    local = {**KEYS, "aws_endpoint": "http://127.0.0.1:1"}
    assert lance_options(local) == {**local, "allow_http": "true"}
    assert lance_options(None) is None


def test_file_urls_are_paths(tmp_path: Path) -> None:
    LabelStore.create(f"file://{tmp_path}/labels", {"run": 1})
    assert (tmp_path / "labels" / "run.json").is_file()
    assert len(LabelStore.open(f"file://{tmp_path}/labels")) == 0


def test_calibration_and_bundle_come_from_memory(bundle: Bundle, tmp_path: Path) -> None:
    target: Any = location_of("memory://models/colors")
    for file in bundle.path.rglob("*"):
        if file.is_file():
            (target / file.relative_to(bundle.path).as_posix()).write_bytes(file.read_bytes())
    assert Bundle.load("memory://models/colors").classes == bundle.classes
    with pytest.raises(CalibrationError, match="^the calibration memory://models/none.json does not exist$"):
        Calibration.load("memory://models/none.json")
    assert not list(Path().glob("memory:*"))
