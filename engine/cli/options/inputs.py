"""Options that select the images that a command reads, and how they are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import typer

from ...reading.geotiff import Windows, cut_of
from .groups import OptionGroup

SOURCE_HELP = "a folder, list, glob, URL, WebDataset tar, Parquet, Lance or saved data set"
SourceArgument = Annotated[str, typer.Argument(metavar="SOURCE", help=f"Images to label: {SOURCE_HELP}.")]
EndingOption = Annotated[
    str | None,
    typer.Option(
        "--image-ending",
        metavar="ENDING",
        help="Use only files with this ending in folders and archives, such as jpg.",
        show_default="every image ending",
    ),
]
BitDepthOption = Annotated[
    int | None,
    typer.Option(
        "--bit-depth",
        min=9,
        max=32,
        metavar="BITS",
        help="Bits per sample that images with more than 8 bits really use, such as 12.",
        show_default="all bits of their type",
    ),
]
WindowsOption = Annotated[
    int | None,
    typer.Option(
        "--windows",
        min=16,
        metavar="PIXELS",
        help="Read larger GeoTIFF files in square windows with this side. Statistics count all windows of a file as "
        "one image.",
        show_default="off",
    ),
]
WindowOverlapOption = Annotated[
    int,
    typer.Option("--window-overlap", min=0, metavar="PIXELS", help="Overlap of neighboring windows (with --windows)."),
]


@dataclass(frozen=True, kw_only=True)
class ImageGroup(OptionGroup):
    """Files of a source that are images, and their decoding."""

    panel: ClassVar[str] = "Images"
    image_ending: EndingOption = None
    bit_depth: BitDepthOption = None


@dataclass(frozen=True, kw_only=True)
class WindowGroup(OptionGroup):
    """Windows of large rasters."""

    panel: ClassVar[str] = "Images"
    windows: WindowsOption = None
    window_overlap: WindowOverlapOption = 0

    @property
    def cut(self) -> Windows | None:
        """Windows to read; None: whole images."""
        return cut_of(self.windows, self.window_overlap)
