"""Reads from buckets end within their limits, and options are checked; the server's paths name how it misbehaves."""

from __future__ import annotations

import concurrent.futures
import pickle
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from maskmill.engine.inputs.sources import Item, Source, open_source
from maskmill.engine.model.storage import lance_url, location_of, open_folder, parse_storage_options
from maskmill.engine.reading.access import Access, Cancelled, is_bucket, replace_access, schemes_of
from maskmill.engine.reading.remote_path import StorageError
from maskmill.engine.reading.storage_options import options_of
from maskmill.engine.store.label_store import LabelStore
from maskmill.errors import (
    ImageError,
    MaskmillError,
    MissingPackageError,
    SourceError,
    StorageOutageWarning,
    UsageError,
)
from tests.hostile_server import HostileServer, hostile_server

KEYS = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "aws_region": "us-east-1"}
QUICK = Access(timeout=0.5, retries=0, max_bytes=4 << 20, max_unknown_bytes=1 << 20)


@pytest.fixture(scope="module")
def server() -> Iterator[HostileServer]:
    with hostile_server() as server:
        server.files["a.jpg"] = b"a photo"
        yield server


def options_for(server: HostileServer) -> dict[str, str]:
    return {**KEYS, "aws_endpoint": server.url}


def read(server: HostileServer, kind: str, access: Access = QUICK) -> bytes:
    """Read from the bucket that is named after the kind of answer."""
    return Source("", options_for(server), access=access).read(Item(f"s3://{kind}/a.jpg"))


@pytest.mark.parametrize(
    ("kind", "reason", "message"),
    [
        ("silent", "timeout", "no answer within 0.5 s"),
        ("endless", "unreadable", "Content-Length"),
        ("claims", "too-large", "it has 1,125,899,906,842,624 bytes; at most 4,194,304"),
        ("loop", "unreadable", "redirect"),
        ("to-file", "unreadable", "another region"),
        ("error", "unreadable", "the server answers 500"),
        ("endless-error", "timeout", "no answer within 0.5 s"),
        ("cut", "unreadable", "body error"),
    ],
)
def test_an_answer_out_of_bounds_is_one_reject(server: HostileServer, kind: str, reason: str, message: str) -> None:
    with pytest.raises(ImageError, match=f"^cannot read s3://{kind}/a.jpg: .*({message})") as caught:
        read(server, kind)
    assert caught.value.kind == reason
    assert "\n" not in str(caught.value)


def test_failures_that_may_pass_are_tried_again(server: HostileServer) -> None:
    assert read(server, "recovers", Access(retries=2)) == b"a photo"
    assert server.requests["recovers"] == 3


def test_compressed_objects_are_not_decompressed(server: HostileServer) -> None:
    assert read(server, "bomb")[:2] == b"\x1f\x8b"


@pytest.mark.parametrize("kind", ["silent", "slow-headers"])
def test_a_run_that_is_cancelled_waits_for_no_answer(server: HostileServer, kind: str) -> None:
    source = Source("", options_for(server), access=Access())
    threading.Timer(0.3, source.cancel).start()
    with pytest.raises(Cancelled):
        source.read(Item(f"s3://{kind}/a.jpg"))


def test_a_server_that_ignores_byte_ranges_is_noticed(server: HostileServer) -> None:
    source = Source("", options_for(server), access=QUICK)
    with pytest.raises(ImageError, match="non-partial response"):
        source.read(Item("s.tar::a.jpg", 3, path="s3://whole/a.jpg", offset=2))


@pytest.mark.parametrize("entry", ["error/list.txt", "silent/s.tar", "error/x.parquet", "silent/folder"])
def test_sources_that_cannot_be_listed_are_errors(server: HostileServer, entry: str) -> None:
    with pytest.raises(SourceError, match=f"^cannot list s3://{entry}: "):
        list(open_source(f"s3://{entry}", storage_options=options_for(server), access=QUICK))


def test_an_interrupt_ends_a_listing_that_no_server_answers(server: HostileServer, tmp_path: Path) -> None:
    code = (
        "from maskmill.engine.inputs.sources import open_source\n"
        f"source = open_source('s3://silent/folder', storage_options={options_for(server)!r})\n"
        "print('listing', flush=True)\n"
        "list(source)"
    )
    before = server.requests["silent"]
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while server.requests["silent"] == before and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    started = time.monotonic()
    _, errors = process.communicate(timeout=60)
    assert b"KeyboardInterrupt" in errors
    assert time.monotonic() - started < 20  # without the interrupt it is a minute and a half


@pytest.mark.parametrize(
    ("kind", "message", "status"),
    [
        ("refuses", "the server refuses access", 2),
        ("unknown", "the bucket unknown does not exist", 2),
        ("error", "the server answers 500", 1),
        ("loop", "redirect: for a bucket in another region, give aws_region", 1),
        ("silent", "no answer in time", 1),
    ],
)
def test_a_store_whose_server_refuses_or_fails_is_one_error(
    server: HostileServer, kind: str, message: str, status: int
) -> None:
    with replace_access(timeout=0.5, retries=0):
        for opened in (
            lambda url: LabelStore.open(url, storage_options=options_for(server)),
            lambda url: LabelStore.open_or_create(url, {}, storage_options=options_for(server)),
            lambda url: location_of(url, options_for(server)).is_dir(),
        ):
            with pytest.raises(MaskmillError, match=f"^cannot read s3://{kind}/st.*: .*{message}") as caught:
                opened(f"s3://{kind}/st")
            assert caught.value.exit_code == status
            assert "\n" not in str(caught.value)


def test_a_server_that_is_down_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
        for name, value in (("endpoint", endpoint), ("access_key_id", "a"), ("secret_access_key", "b")):
            monkeypatch.setenv(f"AWS_{name.upper()}", value)
        monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
        monkeypatch.setenv("AWS_REGION", "us-east-1")
        reason = rf"{endpoint} does not answer \(Connection refused\)$"
        with pytest.raises(StorageError, match=rf"^cannot read s3://bucket/store/run\.json: {reason}"):
            LabelStore.open(location_of("s3://bucket/store"))
        with pytest.raises(SourceError, match=rf"^cannot list s3://bucket/photos: {reason}"):
            list(open_source("s3://bucket/photos"))


def test_a_store_without_credentials_is_an_error_of_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY", raising=False)
    with pytest.raises(MaskmillError, match="Missing SecretAccessKey") as caught:
        location_of("s3://b/st", {"aws_access_key_id": "x"}).exists()
    assert caught.value.exit_code == 2


def test_the_name_of_an_object_does_not_decide_what_its_error_means(server: HostileServer) -> None:
    with pytest.raises(ImageError, match="the server answers 500"):
        Source("", options_for(server), access=QUICK).read(Item("s3://error/Missing 169.254.169.254 TimedOut.jpg"))


def test_only_a_bucket_that_has_answered_is_waited_for(server: HostileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskmill.engine.reading.outages.OUTAGE_SECONDS", 2.0)
    with replace_access(timeout=0.5, retries=0):
        folder = open_folder("s3://outage/st", options_for(server))
        server.files["outage"] = b""
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(OSError, match="^the server answers 500"):
                folder.read("a")
        del server.files["outage"]
        assert folder.read("a") == b"a photo"
        server.files["outage"] = b""
        with (
            pytest.warns(StorageOutageWarning, match="s3://outage has not answered since .*; waiting"),
            pytest.raises(OSError, match="the storage does not answer: the server answers 500"),
        ):
            folder.read("a")
        del server.files["outage"]


def after_warning(caught: list[warnings.WarningMessage], action: Callable[[], object]) -> None:
    """Do something after the outage was reported, or after a minute."""
    deadline = time.monotonic() + 60
    while not caught and time.monotonic() < deadline:
        time.sleep(0.01)
    action()


def test_an_outage_delays_the_images_of_a_bucket(server: HostileServer) -> None:
    source = Source("", options_for(server), access=QUICK)
    assert source.read(Item("s3://outage-of-images/a.jpg")) == b"a photo"
    server.files["outage"] = b""
    with warnings.catch_warnings(record=True) as caught, concurrent.futures.ThreadPoolExecutor(5) as pool:
        warnings.simplefilter("always")
        pool.submit(after_warning, caught, lambda: server.files.pop("outage"))
        photos = list(pool.map(source.read, [Item("s3://outage-of-images/a.jpg")] * 4))
    assert photos == [b"a photo"] * 4
    (warning,) = caught
    assert warning.category is StorageOutageWarning
    assert re.match("s3://outage-of-images has not answered since .*; waiting", str(warning.message))


def test_an_object_that_fails_in_a_bucket_that_works_is_one_reject(server: HostileServer) -> None:
    source = Source("", options_for(server), access=QUICK)
    assert source.read(Item("s3://damaged/a.jpg")) == b"a photo"
    with pytest.raises(ImageError, match="^cannot read s3://damaged/bad.jpg: the server answers 500"):
        source.read(Item("s3://damaged/bad.jpg"))


def test_a_run_that_is_cancelled_does_not_wait_for_the_end_of_an_outage(server: HostileServer) -> None:
    source = Source("", options_for(server), access=QUICK)
    assert source.read(Item("s3://outage-without-end/a.jpg")) == b"a photo"
    server.files["outage"] = b""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        threading.Thread(target=after_warning, args=(caught, source.cancel)).start()
        with pytest.raises(Cancelled):
            source.read(Item("s3://outage-without-end/a.jpg"))
    assert [warning.category for warning in caught] == [StorageOutageWarning]
    del server.files["outage"]


def test_a_store_is_opened_when_its_bucket_answers_again(
    server: HostileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("maskmill.engine.reading.outages.OUTAGE_SECONDS", 1.0)
    with replace_access(timeout=0.5, retries=0):
        server.files.pop("outage", None)
        assert open_folder("s3://outage/st", options_for(server)).read("a") == b"a photo"
        server.files["outage"] = b""
        with (
            pytest.warns(StorageOutageWarning, match="s3://outage has not answered since .*; waiting"),
            pytest.raises(
                StorageError, match="^cannot read s3://outage/st/run.json: the storage does not answer: .*answers 500"
            ),
        ):
            LabelStore.open("s3://outage/st", storage_options=options_for(server))
        del server.files["outage"]


def start(code: str, server: HostileServer, url: str = "s3://silent/st") -> subprocess.Popen[bytes]:
    """Start a process that watches interrupts, as the command line does, and runs code with ``folder``."""
    lines = (
        "from maskmill.engine.cli.interrupts import watch_interrupts\n"
        "from maskmill.engine.model.storage import open_folder\n"
        "watch_interrupts()\n"
        f"folder = open_folder({url!r}, {options_for(server)!r})\n"
        f"{code}"
    )
    process = subprocess.Popen([sys.executable, "-c", lines], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    return process


ENDLESS = """
import signal, time
signal.signal(signal.SIGINT, lambda *_: print('again', flush=True))
print('ready', flush=True)
while True:
    time.sleep(60)
"""


def test_an_interrupt_ends_a_process_whose_bucket_does_not_answer(server: HostileServer) -> None:
    before = server.requests["silent"]
    process = start(
        "print('ready', flush=True)\ntry:\n    folder.read('a')\nfinally:\n    folder.remove('a')\n", server
    )
    deadline = time.monotonic() + 60
    while server.requests["silent"] == before and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)  # without the watch, minutes
    assert process.returncode == 130, errors
    assert errors.startswith(b"maskmill: interrupted; the storage does not answer"), errors


def test_a_second_interrupt_ends_a_process_that_hangs(server: HostileServer) -> None:
    process = start(ENDLESS, server, url="s3://ok/st")
    process.send_signal(signal.SIGINT)
    assert process.stdout is not None
    assert process.stdout.readline() == b"again\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, b"maskmill: interrupted\n")


@pytest.mark.parametrize("name", ["ha#sh", "st?2", "pc%20x", "sp ace", "ünï", "plus+x"])
def test_lance_gets_the_url_of_the_same_object(name: str) -> None:
    assert unquote(urlsplit(lance_url(f"s3://b/x/{name}")).path) == f"/x/{name}"
    assert lance_url(f"/x/{name}") == f"/x/{name}"


@pytest.mark.parametrize(
    "texts", [["aws_region=a", "region=b"], ["aws_region=a", "aws_region=b"], ["aws_region=a", "AWS_REGION=a"]]
)
def test_an_option_that_is_given_twice_is_refused(texts: list[str]) -> None:
    with pytest.raises(UsageError, match=r"^storage options: .*; give one of them$"):
        parse_storage_options(texts)


@pytest.mark.parametrize(
    ("url", "options", "message"),
    [
        ("s3://b/x", {"aws_regoin": "x"}, "unknown storage option aws_regoin for s3://b; .* such as aws_region"),
        ("s3://b/x", {"key": "x"}, "unknown storage option key"),
        ("gs://b/x", {"google_key": "x"}, "unknown storage option google_key for gs://b"),
        ("s3://b/x", {"timeout": "soon"}, "cannot open s3://b: .*soon"),
        ("az://b/x", {}, "azure_storage_account_name=NAME"),
        ("az://b/x", {"azure_storage_account_name": "a", "azure_kee": "x"}, "unknown storage option azure_kee"),
    ],
)
def test_unknown_and_missing_options_are_refused(
    url: str, options: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    with pytest.raises(UsageError, match=message) as caught:
        open_source(url, storage_options=options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["s3://b/x", "gs://b/x", "gcs://b/x", "az://b/x", "abfs://b@account.dfs.core.windows.net/x", "abfss://b/x"]
)
def test_buckets_of_every_kind_are_opened(url: str) -> None:
    options = {"azure_storage_account_name": "account", "aws_region": "eu-west-1"}
    assert repr(open_source(url, storage_options=options)) == f"Source({url!r})"
    place = location_of(url, options)
    assert (str(place / "y"), place.name, str(place.parent / "x")) == (f"{url}/y", "x", url)
    assert pickle.loads(pickle.dumps(place)) == place


@pytest.mark.parametrize(("scheme", "extra"), [("s3", "s3"), ("gs", "gcs"), ("az", "azure")])
def test_a_missing_client_names_the_extra(scheme: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    for opened in (lambda: open_source(f"{scheme}://b-{extra}/x"), lambda: location_of(f"{scheme}://b/x")):
        with pytest.raises(MissingPackageError, match=rf"\[{extra}\]") as caught:
            opened()
        assert "\n" not in str(caught.value)


def test_each_kind_of_bucket_takes_its_own_options() -> None:
    options = {"aws_region": "x", "google_service_account": "y", "azure_endpoint": "z", "timeout": "9s"}
    assert options_of("s3", options) == {"aws_region": "x", "timeout": "9s"}
    assert options_of("gs", options) == {"google_service_account": "y", "timeout": "9s"}
    assert options_of("abfs", options) == {"azure_endpoint": "z", "timeout": "9s"}
    assert options_of("memory", options) == {"timeout": "9s"}


def test_colons_in_a_key_are_no_chain(server: HostileServer) -> None:
    assert Source("", options_for(server), access=QUICK).read(Item("s3://colons/odd/a::b.jpg")) == b"a photo"
    assert schemes_of("s3://b/odd/a::b.jpg") == ["s3"]
    assert schemes_of("zip://a.jpg::s3://b/c.zip") == ["zip", "s3"]


def test_urls_of_buckets_are_told_from_others() -> None:
    assert all(map(is_bucket, ("s3://b/x", "gs://b", "az://b/x", "abfs://c@a.dfs.core.windows.net/x")))
    assert not any(map(is_bucket, ("/s3", "s3", "https://s3/x", "memory://b", "zip://a.jpg::s3://b/a.zip")))


@pytest.mark.parametrize("scheme", ["s3", "http"])
def test_a_request_without_an_answer_does_not_keep_a_finished_process(server: HostileServer, scheme: str) -> None:
    url = "s3://silent/a.jpg" if scheme == "s3" else f"{server.url}/silent/a.jpg"
    code = (
        "import threading\n"
        "from maskmill.engine.inputs.sources import Item, Source\n"
        "from maskmill.engine.reading.access import Access\n"
        f"source = Source('', {options_for(server) if scheme == 's3' else {}!r}, access=Access(timeout=3600))\n"
        f"threading.Thread(target=source.read, args=(Item({url!r}),), daemon=True).start()\n"
        "input()\n"
    )
    before = server.requests["silent"]
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 60
    while server.requests["silent"] == before and time.monotonic() < deadline:
        time.sleep(0.05)
    _, errors = process.communicate(b"\n", timeout=60)
    assert (process.returncode, errors) == (0, b"")
