from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from maskmill.engine.model.files import sha256
from maskmill.errors import ExportError, UsageError
from maskmill.export.pretrained.checkpoint import fetch

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from ..checkpoints import segformer  # noqa: E402

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def hub(models: dict[str, Path]) -> Iterator[tuple[str, list[str]]]:
    """A hub on loopback that serves folders by their ids; gives its address and the files it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *values: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = urlsplit(self.path).path.strip("/")
            for name, folder in models.items():
                files = {file.name: file.read_bytes() for file in folder.iterdir()}
                if path in (f"api/models/{name}", f"api/models/{name}/revision/main"):
                    return self.answer_json({"id": name, "sha": COMMIT, "siblings": [{"rfilename": n} for n in files]})
                if path == f"api/models/{name}/tree/{COMMIT}":
                    entries = [
                        {"type": "file", "path": file, "size": len(data), "oid": etag(data)}
                        for file, data in files.items()
                    ]
                    return self.answer_json(entries)
                prefix = f"{name}/resolve/{COMMIT}/"
                if path.startswith(prefix) and path.removeprefix(prefix) in files:
                    asked.append(path.removeprefix(prefix))
                    return self.answer(files[asked[-1]])
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return None

        def answer_json(self, content: object) -> None:
            self.answer(json.dumps(content).encode(), "application/json")

        def answer(self, data: bytes, kind: str = "application/octet-stream") -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("ETag", f'"{etag(data)}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def etag(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    segformer(folder)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n")
    (folder / "training_state.bin").write_bytes(b"nothing that is needed")
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_ENDPOINT", raising=False)


def test_a_hub_id_is_fetched_once_with_what_is_needed(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with hub({"someone/segformer": checkpoint}) as (address, asked):
        monkeypatch.setenv("HF_ENDPOINT", address)
        found = fetch("someone/segformer")
        assert (found.source.id, found.source.revision) == ("someone/segformer", COMMIT)
        assert found.source.weights_sha256 == sha256(checkpoint / "model.safetensors")
        assert found.source.license == "apache-2.0"
        assert found.load("SegformerForSemanticSegmentation").config.num_labels == 5
        assert "training_state.bin" not in asked
        num = len(asked)
        fetch("someone/segformer")
        assert len(asked) == num
    # the hub is gone, the cache is there
    assert fetch("someone/segformer").source == found.source


def test_a_hub_that_cannot_be_reached_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ExportError, match=r"not in the hub's cache here and cannot be fetched from http://127.0.0.1:9"):
        fetch("someone/segformer")


def test_a_model_that_the_hub_does_not_have(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with hub({"someone/segformer": checkpoint}) as (address, _):
        monkeypatch.setenv("HF_ENDPOINT", address)
        with pytest.raises(ExportError, match="has no model someone/else"):
            fetch("someone/else")


def test_a_pickle_is_refused_unless_asked_for(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = fetch(str(checkpoint)).load("SegformerForSemanticSegmentation").state_dict()
    (checkpoint / "model.safetensors").unlink()
    torch.save(state, checkpoint / "pytorch_model.bin")
    with pytest.raises(ExportError, match="no weights as safetensors .*--allow-pickle"):
        fetch(str(checkpoint))
    found = fetch(str(checkpoint), allow_pickle=True)
    assert found.pickled
    assert torch.equal(found.load("SegformerForSemanticSegmentation").state_dict()["decode_head.classifier.bias"],
                       state["decode_head.classifier.bias"])  # fmt: skip
    with hub({"someone/segformer": checkpoint}) as (address, asked):
        monkeypatch.setenv("HF_ENDPOINT", address)
        with pytest.raises(ExportError, match="no weights as safetensors"):
            fetch("someone/segformer")
        assert "pytorch_model.bin" not in asked
        assert fetch("someone/segformer", allow_pickle=True).pickled


def test_a_checkpoint_without_its_head_is_refused(checkpoint: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(checkpoint / "model.safetensors")
    save_file({name: value for name, value in weights.items() if "classifier" not in name},
              checkpoint / "model.safetensors", metadata={"format": "pt"})  # fmt: skip
    with pytest.raises(ExportError, match=r"lacks 2 weights of a Segformer.*decode_head.classifier.bias"):
        fetch(str(checkpoint)).load("SegformerForSemanticSegmentation")


@pytest.mark.parametrize("name", ["not a model", "no/such/folder", "/nowhere/at/all"])
def test_what_is_neither_a_folder_nor_an_id(name: str) -> None:
    with pytest.raises(UsageError, match="neither a folder with a model nor a hub id"):
        fetch(name)


def test_a_folder_without_a_configuration(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no config.json"):
        fetch(str(tmp_path))
