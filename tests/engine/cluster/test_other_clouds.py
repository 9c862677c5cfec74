"""Runs from and into the storage of Azure and Google.

Azurite serves the one (``make test-azure``). For the other, a proxy before an S3 server speaks as much of Google's XML
interface as the client uses; real emulators know its JSON interface only.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from maskmill.cli import app
from maskmill.engine.model.storage import open_folder
from maskmill.engine.store.label_store import LabelStore
from maskmill.errors import StoreError

from ...ports import free_ports
from ..cli.test_reselect import label_home
from .bucket_proxy import GoogleProxy
from .bucket_server import serve_bucket, upload

pytest.importorskip("obstore")
pytest.importorskip("moto.server")
AZURITE = shutil.which("azurite", path=os.pathsep.join([f"{sys.prefix}/node_modules/.bin", os.environ["PATH"]]))
pytestmark = pytest.mark.filterwarnings("ignore")

ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""Account and key that every Azurite has."""
GOOGLE = {"disable_oauth": True, "client_email": "", "private_key": "", "private_key_id": ""}

Cloud = tuple[str, dict[str, str]]


def create_container(endpoint: str) -> None:
    """Create the container ``bucket``, which the client cannot."""
    headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2021-08-06"}
    lines = ["PUT", *[""] * 11, *(f"{name}:{value}" for name, value in headers.items())]
    text = "\n".join([*lines, f"/{ACCOUNT}/{ACCOUNT}/bucket", "restype:container"])
    digest = hmac.new(base64.b64decode(KEY), text.encode(), hashlib.sha256).digest()
    headers["Authorization"] = f"SharedKey {ACCOUNT}:{base64.b64encode(digest).decode()}"
    request = urllib.request.Request(f"{endpoint}/bucket?restype=container", method="PUT", headers=headers)
    with urllib.request.urlopen(request):
        pass


@pytest.fixture(scope="module", params=["az", "gs"])
def cloud(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    """URL of a bucket, and the storage options that reach it."""
    if request.param == "gs":
        with serve_bucket() as server:
            key = {**GOOGLE, "gcs_base_url": GoogleProxy(server.port).url}
            yield "gs://bucket", {"google_service_account_key": json.dumps(key), "allow_http": "true"}
    elif AZURITE is None:
        pytest.skip("azurite is not installed")
    else:
        with serve_azure(tmp_path_factory.mktemp("azurite")) as options:
            yield "az://bucket", options


@contextmanager
def serve_azure(folder: Path) -> Iterator[dict[str, str]]:
    ports = dict(zip(("blob", "queue", "table"), free_ports(3), strict=True))
    command = [str(AZURITE), "--location", str(folder), "--silent", "--skipApiVersionCheck", "--disableTelemetry"]
    for name, port in ports.items():
        command += [f"--{name}Host", "127.0.0.1", f"--{name}Port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    endpoint = f"http://127.0.0.1:{ports['blob']}/{ACCOUNT}"
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                create_container(endpoint)
                break
            except urllib.error.URLError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
        keys = {"azure_storage_account_name": ACCOUNT, "azure_storage_account_key": KEY, "azure_endpoint": endpoint}
        yield keys
    finally:
        process.terminate()
        process.wait()


def call(options: dict[str, str], *words: Any) -> str:
    storage = [word for name, value in options.items() for word in ("--storage-option", f"{name}={value}")]
    result = CliRunner().invoke(app, [str(word) for word in words] + storage, env={"COLUMNS": "300"})
    assert result.exit_code == 0, f"{result.exception!r}\n{result.output}"
    return result.output


def test_a_run_is_calibrated_labeled_continued_and_exported(
    cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket, options = cloud
    monkeypatch.chdir(tmp_path)
    label_home(tmp_path, {"local": ()})
    (tmp_path / "my photos").rename(tmp_path / "my ph%tos")
    for name in ("my ph%tos", "labels", "bundle"):
        upload(tmp_path / name, f"{bucket}/in/{name}", options)
    photos, model = f"{bucket}/in/my ph%tos", f"{bucket}/in/bundle"
    call(options, "calibrate", model, "--images", photos, "--labels", f"{bucket}/in/labels", "--alpha", "0.1",
         "-o", "cloud.json")  # fmt: skip
    upload(tmp_path / "cloud.json", f"{bucket}/in/c.json", options)
    label = ("label", model, photos, "-o", f"{bucket}/store", "--select", "conformal",
             "--calibration", f"{bucket}/in/c.json", "--keep-scores", "0.1")  # fmt: skip
    call(options, *label, "--limit", "5")
    assert len(LabelStore.open(f"{bucket}/store", storage_options=options)) == 5
    call(options, *label, "--runner", "array")
    assert "nothing to do" in call(options, *label)
    store = LabelStore.open(f"{bucket}/store", storage_options=options)
    ids, uris = store.ids(), [row.uri for row in store.inputs()]
    assert len(ids) == len(set(ids)) == len(uris) == len(set(uris)) == 12
    labels = {row.id: (row.label, row.weight) for row in store.iter_rows()}
    assert labels == {row.id: (row.label, row.weight) for row in LabelStore.open(tmp_path / "local").iter_rows()}
    call(options, "export-labels", f"{bucket}/store", "--format", "png", "-o", "files", "--images", "copy")
    assert len(list((tmp_path / "files").rglob("*.png"))) >= 24
    assert "nothing is damaged" in call(options, "verify", f"{bucket}/store")


def test_a_folder_is_like_one_on_a_disk(cloud: Cloud) -> None:
    bucket, options = cloud
    folder = open_folder(f"{bucket}/folder", options)
    assert folder.names("a") == {}
    folder.write("a/b c", b"one")
    assert folder.write_once("a/%2F", b"two")
    assert not folder.write_once("a/%2F", b"three")
    assert folder.names("a") == {"%2F": 3, "b c": 3}
    assert folder.read("a/%2F") == b"two"
    folder.remove("a/b c")
    folder.remove("a/b c")
    with pytest.raises(FileNotFoundError, match="a/b c does not exist"):
        folder.read("a/b c")


def test_a_bucket_that_does_not_exist_is_named(cloud: Cloud) -> None:
    bucket, options = cloud
    nobody = bucket.replace("bucket", "nobody")
    with pytest.raises(StoreError, match=rf"^cannot read {nobody}/store/run.json: the bucket nobody does not exist$"):
        LabelStore.open(f"{nobody}/store", storage_options=options)
    with pytest.raises(AssertionError, match="the bucket nobody does not exist"):
        call(options, "show", f"{nobody}/store")
