"""The command that labels one image with a student."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ...engine.cli.options.common import replacement
from ...engine.cli.options.model import OverlapOption, TileOption
from ...engine.cli.options.urls import reads_urls
from ...engine.report.terminal import say
from ...errors import UsageError
from .options import AllowCodeOption, DeviceOption


@reads_urls
def predict_image(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of the training run.")],
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="Photo, or file of bands, to label.")],
    output: Annotated[
        Path,
        typer.Option(
            "-o", "--output", metavar="FILE", help="Overlay (.png) to write, or labels with coordinates (.tif)."
        ),
    ],
    tile: TileOption = None,
    overlap: OverlapOption = 0,
    device: DeviceOption = None,
    allow_code: AllowCodeOption = False,
) -> None:
    """Label one image with a student, and write an overlay, or a label map with the coordinates of a GeoTIFF."""
    from ...engine.formats.base import LabelClasses
    from ...engine.formats.geotiff.writer import write_label_map
    from ...engine.inputs.images import decode_input
    from ...engine.inputs.rasters.bands import display_of
    from ...engine.reading.access import current_access
    from ...engine.reading.geotiff import has_tiff_ending
    from ...engine.reading.local import read_local
    from ...engine.report.overlay import overlay as draw_overlay
    from ...engine.report.overlay import save_picture
    from ..processes import resolve_device
    from ..students.models import load_run
    from ..students.prediction import label_image

    note = replacement(output)
    as_tiff = has_tiff_ending(output.name)
    if as_tiff and not has_tiff_ending(image.name):
        raise UsageError(f"{image} is not a GeoTIFF file, so its labels have no coordinates; write -o FILE.png")
    student = load_run(run, allow_code=allow_code)
    torch_device, bands = resolve_device(device), student.input.bands
    try:
        photo = decode_input(read_local(str(image), current_access().max_bytes), bands, bit_depth=student.run.bit_depth)
    except OSError as error:
        raise UsageError(f"cannot read {image}: {error}") from error
    label = label_image(
        student.module.to(torch_device), photo, student.run, device=torch_device, tile=tile, overlap=overlap
    )
    if as_tiff:
        classes = LabelClasses(names=student.classes, background=student.background)
        write_label_map(output, image, label, classes)
    else:
        picture = photo if bands is None else display_of(photo, bands)
        save_picture(draw_overlay(picture, label, student.classes, background=student.background), output)
    say(f"wrote {output}{note}")
