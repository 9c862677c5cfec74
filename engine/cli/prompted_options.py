"""The command-line options of labelling from image-level classes, and the predictors they make."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import typer

from ...errors import UsageError
from .options import Provider, load_taxonomy, place_of

CAM = typer.Option(None, "--cam", metavar="BUNDLE", help="Classifier with activation maps; goes with --sam.")
SAM = typer.Option(
    None, "--sam", metavar="BUNDLE", help="Promptable model; without --cam everything is segmented, without classes."
)
IMAGE_LABELS = typer.Option(
    None,
    metavar="FILE",
    help="Classes that each image shows: CSV, JSON lines, COCO.  [default: as the classifier says]",
)
PROMPT = typer.Option(
    None,
    "--prompt",
    metavar="NAME=VALUE",
    help="How to prompt, repeatable: mode, peaks, tau, min_distance, max_peaks, box_threshold, pick, keep, scales, "
    "flip, class_threshold; of --sam alone side, min_score, min_stability, max_overlap, min_area.",
)
EMBEDDING_CACHE = typer.Option(
    None, min=0.001, metavar="GIGABYTES", help="Keep the encoder's results in the store, at most so much of them."
)


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


def split_paths(paths: list[str], options: PromptedOptions) -> tuple[Path | None, str]:
    """The bundle and the source among the arguments; no bundle where ``--sam`` names the models."""
    if options.sam is None:
        if len(paths) != 2:
            raise UsageError(
                f"expected a model bundle and a source, or --sam BUNDLE and a source; got {' '.join(paths)}"
            )
        return Path(paths[0]), paths[1]
    if len(paths) != 1:
        raise UsageError(f"with --sam BUNDLE only the source is expected; got {' '.join(paths)}")
    return None, paths[0]


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
    say: bool = True,
) -> tuple[Any, Any]:
    """The predictor and the taxonomy of ``--cam`` and ``--sam``; ``say`` prints what runs where."""
    from ..predictors.prompted.embedding_cache import EmbeddingCache
    from ..inputs.image_labels import ImageLabels
    from ..predictors.prompted.class_masks import MaskSettings
    from ..predictors.prompted.predictor import PromptedPredictor
    from ..predictors.prompted.prompts import PromptSettings

    running: dict[str, Any] = {"provider": str(provider), "threads": threads, "precision": precision}
    running["allow_unverified"] = allow_unverified
    path, place = _given(options.cam), place_of(provider)
    cam, (cam_session,) = _open(path, ("model",), running, place, say)
    sam, (encoder, decoder) = _open(_given(options.sam), ("encoder", "decoder"), running, place, say)
    values = parse_prompts(options.prompt, (PromptSettings, MaskSettings), _VIEWS)
    cache = None
    if options.embedding_cache is not None and store is not None:
        cache = EmbeddingCache(
            store / "embeddings", encoder=encoder.artefact, max_bytes=int(options.embedding_cache * 1e9)
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
        place=place,
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
    say: bool = True,
) -> Any:
    """What segments everything, for ``--sam`` alone."""
    from ..predictors.segment_everything import EverythingSettings, SegmentEverything

    running: dict[str, Any] = {"provider": str(provider), "threads": threads, "precision": precision}
    running["allow_unverified"] = allow_unverified
    place = place_of(provider)
    sam, (encoder, decoder) = _open(_given(options.sam), ("encoder", "decoder"), running, place, say)
    values = parse_prompts(options.prompt, (EverythingSettings,), {})
    settings = EverythingSettings(**values["EverythingSettings"])
    return SegmentEverything(sam, encoder, decoder, settings=settings, place=place)


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


def _open(path: Path, roles: tuple[str, ...], running: dict[str, Any], place: Any, say: bool) -> tuple[Any, list[Any]]:
    from ..model.bundle import Bundle
    from ..runtimes.onnx_runtime import open_session

    bundle = Bundle.load(path)
    bundle.verify()
    sessions = [open_session(bundle, role=role, **running) for role in roles]
    if say:
        typer.echo(f"{bundle.path}: {sessions[0]}; {place}")
    return bundle, sessions
