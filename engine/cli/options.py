"""The command-line options that say what labels, and the predictor they make."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Any

import typer


class Provider(StrEnum):
    """What runs the model."""

    cpu = "cpu"
    cuda = "cuda"
    tensorrt = "tensorrt"
    engine = "engine"
    openvino = "openvino"


ON_GPU = (Provider.cuda, Provider.tensorrt, Provider.engine)
"""Providers that run on an NVIDIA GPU."""

BUNDLE = typer.Argument(..., metavar="BUNDLE", help="Folder of the model bundle.")
TAXONOMY = typer.Option(None, "--taxonomy", metavar="FILE", help="Class mapping; the model's own classes if left out.")
PROVIDER = typer.Option(Provider.cpu, help="What runs the model; never replaced silently.")
PRECISION = typer.Option(
    None, metavar="PRECISION", help="Which of the bundle's files or engines.  [default: its first]"
)
UNVERIFIED = typer.Option(
    False, "--allow-unverified", help="Run a conversion or engine that the gate did not pass, or never saw."
)
THREADS = typer.Option(1, min=1, help="Threads of one model call; 1 runs one image a processor.")
BATCH = typer.Option(1, min=1, help="Images in one model call.")
DEVICES = typer.Option(
    None, metavar="N,N", help="Label on these GPUs, one process each, as in 0,1.  [default: the first, in this process]"
)
TILE = typer.Option(None, min=16, metavar="PIXELS", help="Cut larger images into square tiles of this side.")
OVERLAP = typer.Option(0, min=0, metavar="PIXELS", help="What neighbouring tiles share.")


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
    say: bool = True,
) -> tuple[Any, Any]:
    """The predictor and the taxonomy that the options ask for; ``say`` prints what runs where."""
    from ..model.bundle import Bundle
    from ..predictors.semantic import SemanticPredictor
    from ..runtimes.onnx_runtime import open_session

    model = Bundle.load(bundle)
    model.verify()
    classes = load_taxonomy(bundle, taxonomy)
    session = open_session(
        model, provider=provider.value, threads=threads, precision=precision, allow_unverified=allow_unverified
    )
    place = place_of(provider)
    if say:
        typer.echo(f"{model.path}: {session}; {place}")
    return SemanticPredictor(model, session, tile=tile, overlap=overlap, batch=batch, place=place), classes


def load_taxonomy(bundle: Path, taxonomy: Path | None) -> Any:
    """The class mapping of ``taxonomy``, or of the model itself where None."""
    from ..model.bundle import Bundle
    from ..predictors.prompted.activation_maps import scored_bundle
    from ..model.taxonomy import Taxonomy

    model = scored_bundle(Bundle.load(bundle))
    return Taxonomy.load(taxonomy, model) if taxonomy else Taxonomy.of_model(model)


def place_of(provider: Provider) -> Any:
    """Where images and scores of a model that ``provider`` runs lie: beside it. CuPy must be there for a GPU."""
    from ..backends.cuda import Device
    from ..backends.base import HOST

    return Device() if provider in ON_GPU else HOST
