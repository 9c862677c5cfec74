"""Open the predictor that a bundle and options ask for: semantic, prompted, or segment-everything."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ...errors import UsageError
from ..backends.open import open_backend
from ..runtimes.open import Provider


def open_predictor(
    bundle: Path,
    taxonomy: Path | None,
    provider: Provider,
    threads: int,
    tile: int | None,
    overlap: int,
    batch: int,
    *,
    precision: str | None = None,
    allow_unverified: bool = False,
    say: Callable[[str], None] | None = None,
) -> tuple[Any, Any]:
    """The predictor and the taxonomy that the options ask for; ``say`` is told what runs where."""
    from ..model.bundle import Bundle
    from ..predictors.semantic import SemanticPredictor
    from ..runtimes.open import open_session

    model = Bundle.load(bundle)
    model.verify()
    classes = load_taxonomy(bundle, taxonomy)
    session = open_session(
        model, provider=provider, threads=threads, precision=precision, allow_unverified=allow_unverified
    )
    backend = open_backend(provider)
    if say is not None:
        say(f"{model.path}: {session}; {backend}")
    return SemanticPredictor(model, session, tile=tile, overlap=overlap, batch=batch, backend=backend), classes


def load_taxonomy(bundle: Path, taxonomy: Path | None) -> Any:
    """The class mapping of ``taxonomy``, or of the model itself where None."""
    from ..model.bundle import Bundle
    from ..model.taxonomy import Taxonomy
    from ..predictors.prompted.activation_maps import scored_bundle

    model = scored_bundle(Bundle.load(bundle))
    return Taxonomy.load(taxonomy, model) if taxonomy else Taxonomy.of_model(model)


@dataclass(frozen=True, kw_only=True)
class PromptedOptions:
    """What the options above say; plain data, as given."""

    cam: Path | None
    """``--cam``."""
    sam: Path | None
    """``--sam``."""
    image_labels: Path | None = None
    """``--image-labels``."""
    prompt: tuple[str, ...] = ()
    """Every ``--prompt``."""
    embedding_cache: float | None = None
    """``--embedding-cache``."""

    def __post_init__(self) -> None:
        if self.cam is not None and self.sam is None:
            raise UsageError("--cam BUNDLE goes with --sam BUNDLE: the classifier says where, the other what with it")
        if self.sam is None and (self.image_labels or self.prompt or self.embedding_cache):
            raise UsageError("--image-labels, --prompt and --embedding-cache go with --sam BUNDLE")
        if self.cam is None and (self.image_labels or self.embedding_cache):
            raise UsageError("--image-labels and --embedding-cache go with --cam BUNDLE and --sam BUNDLE")


def open_prompted(
    options: PromptedOptions,
    taxonomy: Path | None,
    provider: Provider,
    threads: int,
    batch: int,
    *,
    store: Path | None = None,
    precision: str | None = None,
    allow_unverified: bool = False,
    say: Callable[[str], None] | None = None,
) -> tuple[Any, Any]:
    """The predictor and the taxonomy of ``--cam`` and ``--sam``; ``say`` is told what runs where."""
    from ..inputs.image_labels import ImageLabels
    from ..predictors.prompted.class_masks import MaskSettings
    from ..predictors.prompted.embedding_cache import EmbeddingCache
    from ..predictors.prompted.predictor import PromptedPredictor
    from ..predictors.prompted.prompts import PromptSettings

    running: dict[str, Any] = {"provider": provider, "threads": threads, "precision": precision}
    running["allow_unverified"] = allow_unverified
    path, backend = _given(options.cam), open_backend(provider)
    cam, (cam_session,) = _open(path, ("model",), running, backend, say)
    sam, (encoder, decoder) = _open(_given(options.sam), ("encoder", "decoder"), running, backend, say)
    values = parse_prompts(options.prompt, (PromptSettings, MaskSettings), _VIEWS)
    cache = None
    if options.embedding_cache is not None and store is not None:
        cache = EmbeddingCache(
            store / "embeddings", encoder=encoder.artifact, max_bytes=int(options.embedding_cache * 1e9)
        )
    predictor = PromptedPredictor(
        cam,
        sam,
        cam_session,
        encoder,
        decoder,
        prompts=PromptSettings(**values["PromptSettings"]),
        masks=MaskSettings(**values["MaskSettings"]),
        labels=None if options.image_labels is None else ImageLabels.load(options.image_labels),
        cache=cache,
        batch=batch,
        backend=backend,
        **values["views"],
    )
    return predictor, load_taxonomy(path, taxonomy)


def open_everything(
    options: PromptedOptions,
    provider: Provider,
    threads: int,
    *,
    precision: str | None = None,
    allow_unverified: bool = False,
    say: Callable[[str], None] | None = None,
) -> Any:
    """What segments everything, for ``--sam`` alone."""
    from ..predictors.segment_everything import EverythingSettings, SegmentEverything

    running: dict[str, Any] = {"provider": provider, "threads": threads, "precision": precision}
    running["allow_unverified"] = allow_unverified
    backend = open_backend(provider)
    sam, (encoder, decoder) = _open(_given(options.sam), ("encoder", "decoder"), running, backend, say)
    values = parse_prompts(options.prompt, (EverythingSettings,), {})
    settings = EverythingSettings(**values["EverythingSettings"])
    return SegmentEverything(sam, encoder, decoder, settings=settings, backend=backend)


_VIEWS = {"scales": "tuple[float, ...]", "flip": "bool", "class_threshold": "float"}
"""Options of the predictor itself that ``--prompt`` sets, and their types."""


def parse_prompts(
    given: tuple[str, ...], settings: tuple[type, ...], views: dict[str, str]
) -> dict[str, dict[str, Any]]:
    """``NAME=VALUE`` texts → values by the settings class that has the field, and ``views`` for the others.

    Raises :class:`UsageError` naming what is known, or the type that was expected.
    """
    kinds = {name: ("views", kind) for name, kind in views.items()}
    for one in settings:
        kinds |= {field.name: (one.__name__, str(field.type)) for field in fields(one)}
    found: dict[str, dict[str, Any]] = {"views": {}, **{one.__name__: {} for one in settings}}
    for text in given:
        name, equals, value = text.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or name not in kinds:
            raise UsageError(f"--prompt is NAME=VALUE with one of the names {', '.join(kinds)}; got {text!r}")
        owner, kind = kinds[name]
        try:
            found[owner][name] = _parse(value.strip(), kind)
        except ValueError:
            raise UsageError(f"--prompt {name} takes {_READABLE.get(kind, 'a number')}, got {value!r}") from None
    return found


_READABLE = {
    "bool": "true or false",
    "tuple[float, ...]": "numbers separated by commas",
    "int": "a whole number",
    "int | None": "a whole number",
}


def settings_texts(made: dict[str, Any]) -> tuple[str, ...]:
    """``--prompt`` texts of the ``prompts`` that a store or calibration records."""
    return tuple(f"{name}={_text(value)}" for name, value in made.items() if value is not None)


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _parse(value: str, kind: str) -> Any:
    if kind == "bool":
        if value.lower() not in ("true", "false"):
            raise ValueError(value)
        return value.lower() == "true"
    if kind.startswith("tuple"):
        return tuple(float(part) for part in value.split(","))
    if kind in ("int", "int | None"):
        return int(value)
    if kind == "float":
        return float(value)
    return int(value) if value.isdecimal() else value


def _given(path: Path | None) -> Path:
    assert path is not None, "checked by the caller"
    return path


def _open(
    path: Path, roles: tuple[str, ...], running: dict[str, Any], backend: Any, say: Callable[[str], None] | None
) -> tuple[Any, list[Any]]:
    from ..model.bundle import Bundle
    from ..runtimes.open import open_session

    bundle = Bundle.load(path)
    bundle.verify()
    sessions = [open_session(bundle, role=role, **running) for role in roles]
    if say is not None:
        say(f"{bundle.path}: {sessions[0]}; {backend}")
    return bundle, sessions
