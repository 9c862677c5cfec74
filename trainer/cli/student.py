"""The command that labels one image with a student."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ...engine.cli.options import OverlapOption, TileOption, reads_urls
from ...engine.report.terminal import say
from .options import AllowCodeOption, DeviceOption


@reads_urls
def predict_image(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of the training run.")],
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="Photo to label.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="PNG", help="Overlay to write.")],
    tile: TileOption = None,
    overlap: OverlapOption = 0,
    device: DeviceOption = None,
    allow_code: AllowCodeOption = False,
) -> None:
    """Label one photo with a student, and draw the labels over it."""
    from ...engine.report.overlay import overlay as draw_overlay
    from ...engine.report.overlay import save_picture
    from ...engine.report.preview import read_photo
    from ..processes import resolve_device
    from ..students.models import load_run
    from ..students.prediction import label_image

    student = load_run(run, allow_code=allow_code)
    torch_device = resolve_device(device)
    photo = read_photo(image)
    label = label_image(
        student.module.to(torch_device), photo, student.run, device=torch_device, tile=tile, overlap=overlap
    )
    save_picture(draw_overlay(photo, label, student.classes, background=student.background), output)
    say(f"wrote {output}")
