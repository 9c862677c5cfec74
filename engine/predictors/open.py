"""Open the predictor that a bundle and options describe: semantic, prompted, or segment-everything.

Usage::

    predictor, taxonomy = open_predictor(Path("segformer-b0"), options=ModelOptions(provider="cpu", batch=8))
    score_map = predictor.predict(image)

Importing this module is cheap: models and runtimes are imported when a predictor is opened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ...checks import check_count
from ...errors import UsageError
from ..model.storage import fetched, shown

if TYPE_CHECKING:
    from ..model.bundle import Bundle
    from ..model.taxonomy import Taxonomy
    from ..runtimes.base import Session
    from ..runtimes.open import Provider
    from .prompted.given_predictor import GivenPredictor
    from .prompted.given_prompts import GivenPrompts
    from .prompted.predictor import PromptedPredictor
    from .score_files import ScoreFiles
    from .segment_everything import SegmentEverything
    from .semantic import SemanticPredictor
    from .texts import TextPredictor

Say = Callable[[str], None]
"""Receives one line per model, with the file and device that it runs on."""


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """How models run; the defaults run on the CPU, one image per core."""

    provider: Provider = "cpu"
    """Runtime and device."""
    precision: str | None = None
    """Precision of the file or engine to run; the bundle's first if None."""
    threads: int = 1
    """Threads per model call; with 1, several images run in parallel, one per core."""
    batch: int = 1
    """Images per model call."""
    tile: int | None = None
    """Side of square tiles, in image pixels, for images that are larger; None: no tiles. Semantic models only."""
    overlap: int = 0
    """Overlap of neighboring tiles, in image pixels."""
    bit_depth: int | None = None
    """Number of bits in use in images of more than 8 bits, e.g. 12 of 16; None: all bits of their type."""
    allow_unverified: bool = False
    """Run conversions and engines without a passed gate verdict."""
    text: tuple[str, ...] = ()
    """Class names, for a bundle that takes them when it labels."""

    def __post_init__(self) -> None:
        check_count("threads", self.threads, least=1)
        check_count("batch", self.batch, least=1)
        if self.tile is not None or self.overlap:
            from .tiling import check_tiles

            check_tiles(self.tile, self.overlap)
        if self.bit_depth is not None:
            check_count("bit depth", self.bit_depth, least=9, most=32)


@dataclass(frozen=True, kw_only=True)
class PromptedOptions:
    """Models and settings of labeling with prompts, or of segmenting everything."""

    sam: Path
    """Bundle of the promptable model."""
    cam: Path | None = None
    """Bundle of the classifier with activation maps; None: prompts come from a file, or everything is segmented."""
    boxes: Path | None = None
    """File of boxes; see :mod:`.prompted.given_prompts`."""
    points: Path | None = None
    """File of points."""
    masks: Path | None = None
    """Label store, or label file or folder, with coarse masks to refine."""
    detector: Path | None = None
    """Bundle of a detector, whose boxes are prompts."""
    image_labels: Path | None = None
    """File with the classes of each image; None: the classifier decides."""
    prompt: tuple[str, ...] = ()
    """Settings as ``NAME=VALUE``."""
    embedding_cache: float | None = None
    """Limit in gigabytes of the embeddings kept in the store; None: they are not kept."""

    @property
    def sources(self) -> dict[str, Path]:
        """The given sources of prompts, by the name of their option."""
        sources = {
            "--cam": self.cam,
            "--detector": self.detector,
            "--boxes": self.boxes,
            "--points": self.points,
            "--coarse-masks": self.masks,
        }
        return {name: path for name, path in sources.items() if path is not None}

    def __post_init__(self) -> None:
        if len(self.sources) > 1:
            raise UsageError(f"prompts have one source; give one of {', '.join(self.sources)}")
        if self.cam is None and (self.image_labels or self.embedding_cache):
            raise UsageError("--image-labels and --embedding-cache need --cam BUNDLE together with --sam BUNDLE")


def open_predictor(
    bundle: Path, taxonomy: Path | None = None, *, options: ModelOptions | None = None, say: Say | None = None
) -> tuple[SemanticPredictor | TextPredictor | ScoreFiles, Taxonomy]:
    """Open a semantic bundle, one that takes class names, or one whose scores come from files.

    The class mapping is that of ``taxonomy``; without it the classes are the model's own.
    """
    from ..backends.open import open_backend
    from .score_files import RECORD, ScoreFiles
    from .semantic import SemanticPredictor

    options, bundle = options or ModelOptions(), fetched(bundle)
    classes = load_taxonomy(bundle, taxonomy, options.text)
    if options.text:
        return _open_text(bundle, options, say), classes
    if (bundle / RECORD).is_file():
        if options.tile is not None or options.provider != "cpu":
            raise UsageError(f"{shown(bundle)} reads scores from files; leave --tile and --provider out")
        return ScoreFiles.open(bundle), classes
    model, (session,) = _open(bundle, ("model",), options, say)
    backend = open_backend(options.provider, bit_depth=options.bit_depth, bands=model.input.bands)
    predictor = SemanticPredictor(
        model, session, tile=options.tile, overlap=options.overlap, batch=options.batch, backend=backend
    )
    return predictor, classes


def _open_text(bundle: Path, options: ModelOptions, say: Say | None) -> TextPredictor:
    from ..backends.open import open_backend
    from .texts import TextPredictor, encode_texts

    if options.tile is not None:
        raise UsageError("--tile does not apply to --text; leave it out")
    model, (encoder, text, decoder) = _open(bundle, ("encoder", "text", "decoder"), options, say)
    backend = open_backend(options.provider, bit_depth=options.bit_depth)
    texts = encode_texts(model, text, options.text)
    return TextPredictor(model, encoder, decoder, texts, batch=options.batch, backend=backend)


def open_prompted(
    prompted: PromptedOptions,
    taxonomy: Path | None = None,
    *,
    options: ModelOptions | None = None,
    store: Path | None = None,
    say: Say | None = None,
) -> tuple[PromptedPredictor | GivenPredictor, Taxonomy]:
    """Open a promptable model with the source of its prompts: a classifier, a detector, a file, or coarse masks.

    Embeddings are kept in the folder ``store`` if ``prompted`` says so.
    """
    from ..backends.open import open_backend
    from ..inputs.image_labels import ImageLabels
    from .prompted.class_masks import MaskSettings
    from .prompted.embedding_cache import EmbeddingCache
    from .prompted.predictor import PromptedPredictor
    from .prompted.prompts import PromptSettings
    from .prompted.setting_texts import parse_settings

    options = options or ModelOptions()
    if not prompted.sources:
        raise UsageError(
            "prompts need a source: --cam BUNDLE, --detector BUNDLE, --boxes FILE, --points FILE or "
            "--coarse-masks STORE"
        )
    if prompted.cam is None:
        return _open_given(prompted, taxonomy, options, say)
    if options.tile is not None:
        raise UsageError("--tile does not apply to --cam and --sam; leave it out")
    cam, (cam_session,) = _open(prompted.cam, ("model",), options, say)
    sam, (encoder, decoder) = _open(prompted.sam, ("encoder", "decoder"), options, say)
    values = parse_settings(prompted.prompt, (PromptSettings, MaskSettings), _VIEWS)
    cache = None
    if prompted.embedding_cache is not None and store is not None:
        cache = EmbeddingCache(
            store / "embeddings", encoder=encoder.artifact, max_bytes=int(prompted.embedding_cache * 1e9)
        )
    predictor = PromptedPredictor(
        cam,
        sam,
        cam_session,
        encoder,
        decoder,
        prompts=PromptSettings(**values["PromptSettings"]),
        masks=MaskSettings(**values["MaskSettings"]),
        labels=None if prompted.image_labels is None else ImageLabels.load(prompted.image_labels),
        cache=cache,
        batch=options.batch,
        backend=open_backend(options.provider, bit_depth=options.bit_depth),
        **values["views"],
    )
    return predictor, load_taxonomy(prompted.cam, taxonomy)


def _open_given(
    prompted: PromptedOptions, taxonomy: Path | None, options: ModelOptions, say: Say | None
) -> tuple[GivenPredictor, Taxonomy]:
    from ..backends.open import open_backend
    from ..model.bundle import Bundle
    from ..model.taxonomy import Taxonomy
    from .prompted.boxes import BoxDetector, BoxSettings, check_detector
    from .prompted.given_predictor import GivenPredictor
    from .prompted.setting_texts import parse_settings

    if options.tile is not None:
        raise UsageError("--tile does not apply to --sam; leave it out")
    if prompted.prompt and prompted.detector is None:
        raise UsageError("--set applies to prompts from --cam or --detector; leave it out")
    backend = open_backend(options.provider, bit_depth=options.bit_depth)
    if prompted.detector is None:
        prompts = given_prompts(prompted)
    else:
        settings = parse_settings(prompted.prompt, (BoxSettings,), {})["BoxSettings"]
        check_detector(Bundle.load(prompted.detector))
        bundle, (session,) = _open(prompted.detector, ("model",), options, say)
        prompts = BoxDetector(bundle, session, settings=BoxSettings(**settings), batch=options.batch, backend=backend)
    sam, (encoder, decoder) = _open(prompted.sam, ("encoder", "decoder"), options, say)
    predictor = GivenPredictor(sam, encoder, decoder, prompts, batch=options.batch, backend=backend)
    model = predictor.bundle
    return predictor, Taxonomy.load(taxonomy, model) if taxonomy else Taxonomy.of_model(model)


def given_prompts(prompted: PromptedOptions) -> GivenPrompts:
    """Open the boxes, points or coarse masks of ``prompted``."""
    from .prompted.given_prompts import boxes_of, masks_of, points_of

    if prompted.boxes is not None:
        return boxes_of(prompted.boxes)
    if prompted.points is not None:
        return points_of(prompted.points)
    assert prompted.masks is not None, "the caller checks the source"
    return masks_of(prompted.masks)


def check_prompts(prompted: PromptedOptions, uris: Iterable[str]) -> list[str]:
    """Return warnings about images without prompts; see :meth:`.prompted.given_prompts.GivenPrompts.check`."""
    by_model = prompted.cam is not None or prompted.detector is not None
    return [] if by_model else given_prompts(prompted).check(uris)


def prompted_taxonomy(prompted: PromptedOptions, taxonomy: Path | None = None) -> Taxonomy:
    """Load the class mapping of :func:`open_prompted` without opening a model."""
    from ..model.taxonomy import Taxonomy

    if prompted.cam is not None:
        return load_taxonomy(prompted.cam, taxonomy)
    model = prompted_model(prompted)
    return Taxonomy.load(taxonomy, model) if taxonomy else Taxonomy.of_model(model)


def prompted_model(prompted: PromptedOptions) -> Bundle:
    """Return the promptable bundle with the classes that its source of prompts names, without opening a model.

    Raises :class:`UsageError` if the bundle is not promptable.
    """
    from ..model.bundle import Bundle
    from .prompted.given_predictor import prompted_bundle

    sam, detector = Bundle.load(prompted.sam), prompted.detector
    if sam.task != "promptable":
        raise UsageError(
            f"{prompted.sam} has the task {sam.task}; {', '.join(prompted.sources)} gives prompts for a promptable "
            "model only, leave it out"
        )
    classes = given_prompts(prompted).classes if detector is None else Bundle.load(detector).classes
    return prompted_bundle(sam, classes)


def open_everything(
    prompted: PromptedOptions, *, options: ModelOptions | None = None, say: Say | None = None
) -> SegmentEverything:
    """Open a promptable model that segments everything, without classes."""
    from ..backends.open import open_backend
    from .prompted.setting_texts import parse_settings
    from .segment_everything import EverythingSettings, SegmentEverything

    options = options or ModelOptions()
    if options.tile is not None:
        raise UsageError("--tile does not apply to --sam; leave it out")
    sam, (encoder, decoder) = _open(prompted.sam, ("encoder", "decoder"), options, say)
    values = parse_settings(prompted.prompt, (EverythingSettings,), {})
    settings = EverythingSettings(**values["EverythingSettings"])
    return SegmentEverything(
        sam, encoder, decoder, settings=settings, backend=open_backend(options.provider, bit_depth=options.bit_depth)
    )


def bundle_conditions(bundle: Path) -> Callable[[str], str]:
    """Return the function from a uri to the condition of its labels that :func:`open_predictor` would give."""
    from .score_files import RECORD, ScoreFiles

    bundle = fetched(bundle)
    return ScoreFiles.open(bundle).condition if (bundle / RECORD).is_file() else lambda uri: ""


def prompted_conditions(prompted: PromptedOptions) -> Callable[[str], str]:
    """Return the function from a uri to the condition of its labels that :func:`open_prompted` would give."""
    if prompted.detector is not None:
        return lambda uri: ""
    if prompted.cam is None:
        return given_prompts(prompted).condition
    image_labels = prompted.image_labels
    from ..inputs.image_labels import ImageLabels
    from .prompted.predictor import labels_condition

    return partial(labels_condition, None if image_labels is None else ImageLabels.load(image_labels))


def load_taxonomy(bundle: Path, taxonomy: Path | None = None, text: Sequence[str] = ()) -> Taxonomy:
    """Load the class mapping ``taxonomy`` for a bundle, or make one of the model's classes, or those of ``text``."""
    from ..model.bundle import Bundle
    from ..model.taxonomy import Taxonomy
    from .prompted.activation_maps import scored_bundle
    from .texts import text_bundle

    model = Bundle.load(bundle)
    model = text_bundle(model, text) if text or model.task == "text" else scored_bundle(model)
    return Taxonomy.load(taxonomy, model) if taxonomy else Taxonomy.of_model(model)


_VIEWS = {"scales": "tuple[float, ...]", "flip": "bool", "class_threshold": "float"}
"""Options of the prompted predictor itself that ``prompt`` sets, and their types."""


def _open(path: Path, roles: Sequence[str], options: ModelOptions, say: Say | None) -> tuple[Bundle, list[Session]]:
    from ..backends.open import open_backend
    from ..model.bundle import Bundle
    from ..runtimes.open import open_session

    bundle = Bundle.load(path)
    if "encoder" in roles and "text" not in roles and bundle.task != "promptable":
        raise UsageError(
            f"{bundle.location} is a {bundle.task} bundle; --sam needs a promptable one, such as Segment Anything"
        )
    bundle.verify()
    sessions = [
        open_session(
            bundle,
            role=role,
            provider=options.provider,
            threads=options.threads,
            precision=options.precision,
            allow_unverified=options.allow_unverified,
        )
        for role in roles
    ]
    if say is not None:
        say(f"{bundle.location}: {sessions[0]}; {open_backend(options.provider)}")
    return bundle, sessions
