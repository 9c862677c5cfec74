"""The command that serves the live page of a label store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ....errors import UsageError
from ...model.storage import location_of
from ...report.terminal import say
from ..options.common import StoresArgument
from ..options.urls import reads_urls


@reads_urls
def serve(
    stores: StoresArgument,
    calibration: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            parser=location_of,
            help="Calibration of the labels; adds coverage per class, risk and drift.",
            show_default=False,
        ),
    ] = None,
    review: Annotated[
        bool, typer.Option("--review", help="Allow corrections in the page; they are saved as reviews in the store.")
    ] = False,
    reviewer: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Name of the person who corrects (--review).", show_default="the user's name"
        ),
    ] = None,
    host: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS",
            help="Address to listen on. If other machines can reach it, the page needs the token that is printed; the "
            "connection has no TLS.",
        ),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, metavar="N", help="Port to listen on.")] = 8000,
) -> None:
    """Show a whole store in the browser, even while it is being labeled, and correct labels by hand.

    The page lists every image, filtered by class, share of labeled pixels and doubt, and follows a run in progress. It
    is read-only unless --review is given. With several stores, a correction is saved in each store that holds the
    image.
    """
    import getpass

    from ...calibration.calibration import Calibration
    from ...labeling.certificate import check_same
    from ...report.server.app import serve as run
    from ...report.server.live_store import LiveStore
    from ...store.several.joined import open_stores

    if reviewer is not None and not review:
        raise UsageError("--reviewer applies to --review only; add it or leave it out")
    loaded_calibration = None if calibration is None else Calibration.load(calibration)
    if loaded_calibration is not None:
        check_same(open_stores(stores).run, loaded_calibration)
    name = (reviewer or getpass.getuser()) if review else None
    run(LiveStore(stores, loaded_calibration), host=host, port=port, reviewer=name, say=say)
