"""Checkpoints in the transformers format: a local folder, or a hub id that is downloaded once.

::

    checkpoint = fetch("nvidia/segformer-b0-finetuned-ade-512-512")
    model = checkpoint.load("SegformerForSemanticSegmentation")

Weights are read from safetensors. Reading a pickle can execute any code, so it is refused unless the caller allows it.
Code in a checkpoint is never executed. ``HF_ENDPOINT`` names another hub.
"""

from __future__ import annotations

import hashlib
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
from ...engine.model.schema import read_json_object
from ...engine.runtimes.base import first_line
from ...errors import ExportError, MissingPackageError, UsageError
from ...kernels.processors import limit_torch_threads

_SAFE = ("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json")
_PICKLED = ("pytorch_model.bin", "pytorch_model-*-of-*.bin", "pytorch_model.bin.index.json")
_DESCRIPTIONS = (
    "README.md", "config.json", "merges.txt", "preprocessor_config.json", "processor_config.json",
    "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json", "vocab.json",
)  # fmt: skip
_VOCABULARIES = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("vocab.txt",), ("tokenizer.model",))
"""Sets of files, any of which defines a tokenizer."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A model's folder on this disk."""

    folder: Path
    """Folder of ``config.json`` and the weights."""
    config: Mapping[str, Any]
    """Contents of ``config.json``."""
    source: Provenance
    """Hub id or the folder's name, revision, hash of the weights, license."""
    pickled: bool = False
    """True if the weights are a pickle, which the caller allowed."""

    def load(self, architecture: str) -> Any:
        """Load the model in fp32 and evaluation mode, as a class of transformers, with attention that is not fused.

        Raises :class:`ExportError` if it cannot be loaded, if the checkpoint lacks some of its weights (they would be
        random numbers), or if a weight is not finite.
        """
        import transformers

        limit_torch_threads()
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
                    trust_remote_code=False,
                    output_loading_info=True,
                )
            except Exception as error:
                raise ExportError(f"{self.folder} cannot be loaded as {architecture}: {first_line(error)}") from error
        missing_names = sorted(map(str, report["missing_keys"])) + sorted(map(str, report.get("mismatched_keys", ())))
        if missing_names:
            raise ExportError(
                f"{self.folder} lacks {len(missing_names)} weights of a {architecture}, {missing_names[0]} among them; "
                "export a checkpoint of the whole model, head included"
            )
        for name, weight in model.named_parameters():
            if not weight.isfinite().all():
                raise ExportError(f"{self.folder}: the weight {name} is not finite; the checkpoint is damaged")
        return model.eval()

    def tokenizer(self) -> Any:
        """Load the tokenizer in the folder; raises :class:`ExportError` if there is none.

        Without its files, transformers makes a tokenizer with an empty vocabulary, for which all texts are equal.
        """
        from transformers import AutoTokenizer

        if not any(all((self.folder / name).is_file() for name in names) for names in _VOCABULARIES):
            file_names = " or ".join(" and ".join(names) for names in _VOCABULARIES)
            raise ExportError(
                f"{self.folder} has no tokenizer files ({file_names}); "
                "class names are encoded with the model's own, so put them beside its weights"
            )
        with _quiet():
            try:
                return AutoTokenizer.from_pretrained(self.folder, local_files_only=True, trust_remote_code=False)
            except Exception as error:
                raise ExportError(
                    f"{self.folder} has no tokenizer that can be read ({first_line(error)}); class names are encoded "
                    "with the model's own, so put its tokenizer files beside its weights"
                ) from error

    def preprocessor(self) -> tuple[dict[str, Any], Path]:
        """Return the image processor's configuration, empty if there is none, and its file."""
        path = self.folder / "preprocessor_config.json"
        if path.is_file():
            return _read_json(path), path
        path = self.folder / "processor_config.json"
        config = _read_json(path).get("image_processor", {}) if path.is_file() else {}
        if not isinstance(config, dict):
            raise UsageError(f"{path}: image_processor must be an object, got {type(config).__name__}")
        return config, path


def fetch(model: str, *, revision: str | None = None, allow_pickle: bool = False, license: str = "") -> Checkpoint:
    """Open the checkpoint in the folder ``model``, or download it from the hub into the hub's cache.

    Raises :class:`UsageError` if ``model`` is neither a folder nor a hub id, :class:`ExportError` if the hub cannot be
    reached or does not have it, or if there are no weights that may be read.
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
        # without a network, the client raises errors of its HTTP library, which differ between versions
        raise ExportError(
            f"{model} is not in the hub's cache here and cannot be fetched from {endpoint} "
            f"({type(error).__name__}); connect, set HF_ENDPOINT, or give a local folder"
        ) from error


def _weights(folder: Path, model: str, allow_pickle: bool) -> tuple[list[Path], bool]:
    """Return the files with the weights, and True if they are pickles."""
    for patterns in (_SAFE, _PICKLED):
        files = sorted(path for pattern in patterns[:2] for path in folder.glob(pattern))
        if files and patterns is _PICKLED and not allow_pickle:
            break
        if files:
            return files, patterns is _PICKLED
    raise ExportError(
        f"{model} has no weights as safetensors ({_SAFE[0]}); a pickle ({_PICKLED[0]}) can run any code while it is "
        "read: convert it, or trust its author with --allow-pickle"
    )


def _joint_sha256(files: list[Path]) -> str:
    """Return the file's hash, or for several files the hash of their hashes in the order of their names."""
    digests = [sha256(path) for path in files]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def _license(card: Path) -> str:
    """Return the license that a model card's header names, or an empty text."""
    if not card.is_file():
        return ""
    match = re.search(r"^license:[ \t]*(\S+)[ \t]*$", card.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
    return match[1].strip("\"'") if match else ""


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return read_json_object(path)
    except FileNotFoundError as error:
        raise UsageError(f"cannot read {path}: {error}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers' remarks and progress bars; errors are raised."""
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
