"""The command-line options that say what labels, and the predictor they make."""

from __future__ import annotations

import typer

BUNDLE = typer.Argument(..., metavar="BUNDLE", help="Folder of the model bundle.")
TAXONOMY = typer.Option(None, "--taxonomy", metavar="FILE", help="Class mapping; the model's own classes if left out.")
PROVIDER = typer.Option("cpu", help="What runs the model; never replaced silently.")
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
OVERLAP = typer.Option(0, min=0, metavar="PIXELS", help="What neighboring tiles share.")
