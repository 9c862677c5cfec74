"""Options of the model: its runtime, its precision, and how images reach it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, ClassVar

import typer

from ....errors import UsageError
from ...model.bundle import Bundle
from ...predictors.open import ModelOptions
from ...predictors.texts import parse_texts
from ...report.terminal import say
from ...runtimes.open import Provider, ProviderChoice
from ...runtimes.tuned import read_choice, resolve
from .groups import OptionGroup

ProviderOption = Annotated[
    Provider,
    typer.Option(
        "--provider",
        metavar="RUNTIME",
        help="Runtime of the model: cpu, cuda, tensorrt, engine or openvino. There is no silent fallback.",
    ),
]
ProviderOrAutoOption = Annotated[
    ProviderChoice,
    typer.Option(
        "--provider",
        metavar="RUNTIME",
        help="Runtime of the model: cpu, cuda, tensorrt, engine or openvino, without silent fallback; or auto, the "
        "choice of maskmill tune for this machine.",
    ),
]
PrecisionOption = Annotated[
    str | None,
    typer.Option(
        "--precision", metavar="NAME", help="Precision of the bundle's file or engine to run.", show_default="the first"
    ),
]
UnverifiedOption = Annotated[
    bool,
    typer.Option("--allow-unverified", help="Run a converted file or an engine without a passing gate verdict."),
]
ThreadsOption = Annotated[
    int,
    typer.Option(
        "--threads",
        min=1,
        metavar="N",
        help="Threads per model call; with 1, several images run in parallel, one per core.",
    ),
]
BatchOption = Annotated[
    int,
    typer.Option(
        "--batch", min=1, metavar="N", help="Images per model call; a TensorRT engine uses its own batch size."
    ),
]
TileOption = Annotated[
    int | None,
    typer.Option(
        "--tile", min=16, metavar="PIXELS", help="Cut larger images into square tiles of this side.", show_default="off"
    ),
]
OverlapOption = Annotated[
    int, typer.Option("--overlap", min=0, metavar="PIXELS", help="Overlap of neighboring tiles (with --tile).")
]
TextOption = Annotated[
    str | None,
    typer.Option(
        "--text",
        metavar="NAMES",
        help="Class names, separated by commas, for a model that takes text.",
        show_default=False,
    ),
]


@dataclass(frozen=True, kw_only=True)
class RuntimeGroup(OptionGroup):
    """Runtime and precision of models."""

    panel: ClassVar[str] = "Model"
    provider: ProviderOption = "cpu"
    precision: PrecisionOption = None
    allow_unverified: UnverifiedOption = False
    threads: ThreadsOption = 1

    def options(self, *, bit_depth: int | None = None) -> ModelOptions:
        """Return how models run."""
        return ModelOptions(
            provider=self.provider,
            precision=self.precision,
            threads=self.threads,
            bit_depth=bit_depth,
            allow_unverified=self.allow_unverified,
        )


@dataclass(frozen=True, kw_only=True)
class PromptedModelGroup(RuntimeGroup):
    """Runtime and precision of a promptable model and the source of its prompts."""

    batch: BatchOption = 1

    def options(self, *, bit_depth: int | None = None) -> ModelOptions:
        """Return how the models run."""
        return replace(super().options(bit_depth=bit_depth), batch=self.batch)


@dataclass(frozen=True, kw_only=True)
class ModelGroup(OptionGroup):
    """Runtime and precision of a model of class scores, and how images reach it."""

    panel: ClassVar[str] = "Model"
    text: TextOption = None
    provider: ProviderOrAutoOption = "cpu"
    precision: PrecisionOption = None
    allow_unverified: UnverifiedOption = False
    threads: ThreadsOption = 1
    batch: BatchOption = 1
    tile: TileOption = None
    overlap: OverlapOption = 0

    @property
    def names(self) -> tuple[str, ...]:
        """Class names for a model that takes them."""
        return () if self.text is None else parse_texts(self.text)

    def options(self, bundle: Path | None, *, bit_depth: int | None = None, quiet: bool = False) -> ModelOptions:
        """Return how the model runs; for ``--provider auto`` as ``maskmill tune`` chose, which is printed.

        ``bundle`` is None if the model is not one of class scores.
        """
        if self.provider != "auto":
            provider, precision = self.provider, self.precision
        elif bundle is None:
            raise UsageError("--provider auto reads what maskmill tune chose for BUNDLE; name the runtime for --sam")
        else:
            model = Bundle.load(bundle)
            provider, precision = resolve(model, "auto", self.precision)
            if not quiet:
                choice = read_choice(model)
                say(
                    f"tuned for this machine: {choice.provider} in {choice.precision}, {choice.ratio:.2f}x the original"
                )
        return ModelOptions(
            provider=provider,
            precision=precision,
            threads=self.threads,
            batch=self.batch,
            tile=self.tile,
            overlap=self.overlap,
            bit_depth=bit_depth,
            allow_unverified=self.allow_unverified,
            text=self.names,
        )
