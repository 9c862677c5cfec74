"""Checkpoints in the transformers format: a local folder, or a hub id that is fetched once.

::

    checkpoint = fetch("nvidia/segformer-b0-finetuned-ade-512-512")
    model = checkpoint.load("SegformerForSemanticSegmentation")

Weights are read from safetensors. A pickle can run any code while it is read, and is refused unless asked for. Code
that comes with a checkpoint is never run. ``HF_ENDPOINT`` names another hub.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...engine.model.bundle import Provenance
from ...engine.model.files import sha256
from ...engine.runtimes.base import first_line
from ...errors import ExportError, MissingPackageError, UsageError

_SAFE = ("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json")
_PICKLED = ("pytorch_model.bin", "pytorch_model-*-of-*.bin", "pytorch_model.bin.index.json")
_DESCRIPTIONS = (
    "README.md", "config.json", "merges.txt", "preprocessor_config.json", "processor_config.json",
    "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json", "vocab.json",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A model's folder, on this disk."""

    folder: Path
    """Where ``config.json`` and the weights lie."""
    config: Mapping[str, Any]
    """What ``config.json`` says."""
    source: Provenance
    """Hub id or the folder's name, revision, hash of the weights, license."""
    pickled: bool = False
    """Whether the weights are a pickle, which somebody asked for."""

    def load(self, architecture: str) -> Any:
        """The model in fp32 and eval mode, as a class of transformers; attention is written out, not fused.

        Raises :class:`ExportError` where it cannot be made, or the checkpoint lacks some of its weights: those would be
        random numbers.
        """
        import transformers

        kind = getattr(transformers, architecture, None)
        if kind is None:
            raise ExportError(f"transformers {transformers.__version__} has no {architecture}; install another version")
        with _quiet():
            try:
                model, report = kind.from_pretrained(
                    self.folder,
                    dtype="float32",
                    attn_implementation="eager",
                    use_safetensors=not self.pickled,
                    local_files_only=True,
                    output_loading_info=True,
                )
            except Exception as error:
                raise ExportError(f"{self.folder} cannot be loaded as {architecture}: {first_line(error)}") from error
        missing = sorted(map(str, report["missing_keys"])) + sorted(map(str, report.get("mismatched_keys", ())))
        if missing:
            raise ExportError(
                f"{self.folder} lacks {len(missing)} weights of a {architecture}, {missing[0]} among them; "
                "export a checkpoint of the whole model, head included"
            )
        return model.eval()

    def tokenizer(self) -> Any:
        """The tokenizer that lies in the folder; raises :class:`ExportError` where there is none."""
        from transformers import AutoTokenizer

        with _quiet():
            try:
                return AutoTokenizer.from_pretrained(self.folder, local_files_only=True)
            except Exception as error:
                raise ExportError(
                    f"{self.folder} has no tokenizer that can be read ({first_line(error)}); class names are encoded "
                    "with the model's own, so its tokenizer files must lie beside its weights"
                ) from error

    def preprocessor(self) -> tuple[dict[str, Any], Path]:
        """The image processor's configuration and the file it stands in; empty where there is none."""
        path = self.folder / "preprocessor_config.json"
        if path.is_file():
            return _read_json(path), path
        path = self.folder / "processor_config.json"
        return (_read_json(path).get("image_processor", {}) if path.is_file() else {}), path


def fetch(model: str, *, revision: str | None = None, allow_pickle: bool = False, license: str = "") -> Checkpoint:
    """The checkpoint in the folder ``model``, or on the hub under the id ``model``, fetched into the hub's cache.

    Raises :class:`UsageError` where ``model`` is neither, :class:`ExportError` where the hub cannot be reached, does
    not have it, or where there are no weights that may be read.
    """
    for name in ("torch", "transformers", "safetensors"):
        try:
            __import__(name)
        except ImportError as error:
            raise MissingPackageError(name, "export", "exporting a model") from error
    import transformers

    folder = Path(model)
    if folder.is_dir():
        name = folder.resolve().name
    else:
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model):
            raise UsageError(f"{model} is neither a folder with a model nor a hub id such as nvidia/segformer-b0")
        name = model
        folder = _download(model, revision, _PICKLED if allow_pickle else ())
        revision = folder.name
    if not (folder / "config.json").is_file():
        raise UsageError(f"{model} has no config.json; a checkpoint in the transformers format has one")
    weights, pickled = _weights(folder, model, allow_pickle)
    source = Provenance(
        id=name,
        revision=revision or "",
        weights_sha256=_joint_sha256(weights),
        license=license or _license(folder / "README.md"),
        exporter=f"transformers {transformers.__version__}",
    )
    return Checkpoint(folder=folder, config=_read_json(folder / "config.json"), source=source, pickled=pickled)


def _download(model: str, revision: str | None, pickles: tuple[str, ...]) -> Path:
    import huggingface_hub
    from huggingface_hub import errors

    endpoint = os.environ.get("HF_ENDPOINT") or huggingface_hub.constants.ENDPOINT
    try:
        return Path(
            huggingface_hub.snapshot_download(
                model, revision=revision, allow_patterns=[*_DESCRIPTIONS, *_SAFE, *pickles], endpoint=endpoint
            )
        )
    except errors.GatedRepoError:
        raise ExportError(f"{model} is gated: accept its terms at {endpoint}/{model}, then `hf auth login`") from None
    except errors.RepositoryNotFoundError:
        raise ExportError(f"{endpoint} has no model {model} (or it is private: `hf auth login`)") from None
    except errors.RevisionNotFoundError:
        raise ExportError(f"{model} has no revision {revision} at {endpoint}") from None
    except errors.HFValidationError as error:
        raise UsageError(f"{model} is neither a folder with a model nor a hub id: {first_line(error)}") from None
    except Exception as error:
        # the client's errors for a missing network are of its HTTP library, and change with it
        raise ExportError(
            f"{model} is not in the hub's cache here and cannot be fetched from {endpoint} "
            f"({type(error).__name__}); connect, set HF_ENDPOINT, or give a local folder"
        ) from error


def _weights(folder: Path, model: str, allow_pickle: bool) -> tuple[list[Path], bool]:
    """The files with the weights, and whether they are pickles."""
    for patterns in (_SAFE, _PICKLED):
        found = sorted(path for pattern in patterns[:2] for path in folder.glob(pattern))
        if found and patterns is _PICKLED and not allow_pickle:
            break
        if found:
            return found, patterns is _PICKLED
    raise ExportError(
        f"{model} has no weights as safetensors ({_SAFE[0]}); a pickle ({_PICKLED[0]}) can run any code while it is "
        "read: convert it, or trust its author with --allow-pickle"
    )


def _joint_sha256(files: list[Path]) -> str:
    """The file's hash, or of several files the hash of their hashes in the order of their names."""
    digests = [sha256(path) for path in files]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def _license(card: Path) -> str:
    """The license that a model card's header names, else nothing."""
    if not card.is_file():
        return ""
    match = re.search(r"^license:[ \t]*(\S+)[ \t]*$", card.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
    return match[1].strip("\"'") if match else ""


def _read_json(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UsageError(f"cannot read {path}: {error}") from error
    if not isinstance(raw, dict):
        raise UsageError(f"{path} must hold a JSON object, got {type(raw).__name__}")
    return raw


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' remarks and progress bars; what matters is raised."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
