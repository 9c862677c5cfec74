"""The command that labels one image with a student."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ...engine.cli.options import OverlapOption, TileOption, reads_urls
from ...engine.report.terminal import say
from ...errors import UsageError
from .options import AllowCodeOption, DeviceOption


@reads_urls
def predict_image(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of the training run.")],
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="Photo to label.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="PNG", help="Overlay to write.")],
    tile: TileOption = None,
    overlap: OverlapOption = 0,
    device: DeviceOption = None,
    allow_code: AllowCodeOption = False,
) -> None:
    """Label one photo with a student, and draw the labels over it."""
    from ...engine.inputs.images import decode_image
    from ...engine.report.overlay import overlay as draw_overlay
    from ...engine.report.overlay import save_picture
    from ..processes import resolve_device
    from ..students.models import load_run
    from ..students.prediction import label_image

    student = load_run(run, allow_code=allow_code)
    torch_device = resolve_device(device)
    try:
        photo = decode_image(image.read_bytes())
    except OSError as error:
        raise UsageError(f"cannot read {image}: {error}") from error
    label = label_image(
        student.module.to(torch_device), photo, student.run, device=torch_device, tile=tile, overlap=overlap
    )
    save_picture(draw_overlay(photo, label, student.classes, background=student.background), output)
    say(f"wrote {output}")
