"""``--storage-option``: every command that reads has it, and all that a command opens behind URLs uses it."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from typer.testing import CliRunner

from maskmill.cli import app
from maskmill.engine.reading.access import current_access
from maskmill.engine.store.label_store import LabelStore

from ...test_help import commands
from .test_reselect import call, fault, label_home

pytestmark = pytest.mark.filterwarnings("ignore:UPath 'locked'")

OPTION = ("--storage-option", "password=open sesame", "--storage-option", "aws_region=elsewhere")


class LockedFileSystem(MemoryFileSystem):
    """Storage that opens with its password alone, and knows no region."""

    protocol = "locked"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    cachable = False

    def __init__(self, password: str = "", **options: Any) -> None:
        super().__init__(**options)
        if password != "open sesame" or "aws_region" in options:
            raise PermissionError("the password is wrong")

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.replace("locked://", "memory://"))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A model, photos, labels, a calibration and a store; and all but the store in ``locked://``."""
    fsspec.register_implementation("locked", LockedFileSystem, clobber=True)
    folder = tmp_path_factory.mktemp("home")
    label_home(folder, {"store": ()})
    (folder / "ids.txt").write_text("".join(f"{number}.png\n" for number in range(8)))
    (folder / "my photos").rename(folder / "photos")
    call("label", folder / "bundle", folder / "photos", "-o", folder / "plain")
    call("export-labels", folder / "plain", "--format", "png", "-o", folder / "files", "--images", "none")
    parts = ("bundle", "photos", "labels", "files", "c.json", "ids.txt")
    system = LockedFileSystem(password="open sesame")
    for file in folder.rglob("*"):
        if file.is_file() and file.relative_to(folder).parts[0] in parts:
            system.pipe_file(f"/home/{file.relative_to(folder).as_posix()}", file.read_bytes())
    yield folder
    LockedFileSystem.store.clear()


URL = "locked://home"
COPIES = f"{tempfile.gettempdir()}/maskmill-"
LABELED = ("--images", f"{URL}/photos", "--labels", f"{URL}/labels", "--ids", f"{URL}/ids.txt")


def test_every_command_that_reads_has_the_option() -> None:
    without = {name for name, command in commands() if "storage_option" not in {p.name for p in command.params}}
    assert without == {"demo", "doctor"}


@pytest.mark.parametrize(
    "words",
    [
        ("label", f"{URL}/bundle", f"{URL}/photos", "-o", "new", "--calibration", f"{URL}/c.json", "--select",
         "conformal"),
        ("calibrate", f"{URL}/bundle", *LABELED, "--alpha", "0.2", "-o", "new.json"),
        ("calibrate", "--calibration", f"{URL}/c.json", "--alpha", "0.2", "-o", "again.json"),
        ("evaluate", f"{URL}/bundle", *LABELED, "--calibration", f"{URL}/c.json"),
        ("report", "store", "--model", f"{URL}/bundle", "--calibration", f"{URL}/c.json"),
        ("rank", "store", "--budget", "0", "--images", f"{URL}/photos", "--calibration", f"{URL}/c.json",
         "--model", f"{URL}/bundle", "--labels", f"{URL}/labels", "--ids", f"{URL}/ids.txt"),
        ("export-labels", "store", "--format", "png", "-o", "few", "--ids", f"{URL}/ids.txt"),
        ("import-labels", "plain", f"{URL}/files"),
        ("taxonomy", f"{URL}/bundle", "-o", "new.toml"),
        ("manifest", f"{URL}/photos", "-o", "photos.parquet"),
        ("show", f"{URL}/bundle", f"{URL}/photos/3.png"),
    ],
    ids=lambda words: " ".join(words[:2]),
)  # fmt: skip
def test_everything_behind_urls_is_opened_with_the_options(
    home: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.chdir(home)
    result = CliRunner().invoke(app, [*words, *OPTION])
    assert result.exit_code == 0, (result.output, result.exception)
    assert not current_access().storage_options, "they end with the command"
    assert COPIES not in result.output
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code != 0
    assert COPIES not in f"{result.output}{result.exception}"


@pytest.mark.parametrize(
    ("name", "data", "words", "message"),
    [
        ("none", b"", ("photos",), "{url} is not a model bundle: it has no bundle.json"),
        ("none", b"", ("bundle/bundle.json",), "{url} is not a model bundle: it has no bundle.json"),
        ("b1/bundle.json", b"{", ("b1",), "cannot read {url}/bundle.json: .*; make the bundle again"),
        ("b2/bundle.json", b'{"format_version": 0}', ("b2",), "{url}/bundle.json has format version 0"),
        ("b3/model.onnx", b"x", ("b3",), "{url}/model.onnx is not the file the bundle was made with"),
        ("b4/bundle.json", b"", ("bundle", "--taxonomy", "ids.txt"), "the taxonomy {url} is not valid TOML"),
        ("b5/bundle.json", b"", ("bundle", "--calibration", "ids.txt"), "cannot read the calibration {url}: .*"),
        ("b6/bundle.json", b"", ("bundle", "--calibration", "no.json"), "the calibration {url} does not exist"),
    ],
)
def test_messages_name_the_url(
    home: Path, monkeypatch: pytest.MonkeyPatch, name: str, data: bytes, words: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(home)
    system = LockedFileSystem(password="open sesame")
    if name.startswith("b3"):
        system.copy("/home/bundle", "/home/b3", recursive=True)
    system.pipe_file(f"/home/{name}", data)
    places = [word if word.startswith("--") else f"{URL}/{word}" for word in words]
    select = ("--select", "conformal") if "--calibration" in words else ()
    result = CliRunner().invoke(app, ["label", places[0], f"{URL}/photos", "-o", "x", *places[1:], *select, *OPTION])
    text = f"{result.output}{result.exception}"
    assert re.search(message.replace("{url}", re.escape(places[-1])), text), text
    assert COPIES not in text


def test_a_run_from_a_url_labels_every_image(home: Path) -> None:
    call("label", f"{URL}/bundle", f"{URL}/photos", "-o", home / "remote", *OPTION)
    remote, local = (
        {row.id: row.label for row in LabelStore.open(home / name).iter_rows()} for name in ("remote", "plain")
    )
    assert remote == local


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (("report", "store", "-o", "s3://bucket/report.html"), "--output"),
        (("export-labels", "store", "--format", "png", "-o", "s3://bucket/files"), "--output"),
        (("convert", "s3://bucket/model", "--precision", "fp16", "--images", "photos"), "BUNDLE"),
        (("train", "-o", "gs://bucket/run"), "--output"),
    ],
    ids=lambda words: words[0] if isinstance(words, tuple) else "",
)
def test_a_url_where_only_a_local_path_goes_is_refused(tmp_path: Path, words: tuple[str, ...], name: str) -> None:
    message = fault(*words)
    assert message.startswith(f"{name} must be a local file or folder, got ")
    assert "://bucket/" in message
