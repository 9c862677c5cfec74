"""Color tables: label maps that store a color instead of an index per pixel.

::

    table = named_table("cityscapes")
    indices = table.encode(pixels, "a/1.png")       # (H, W, 3) uint8 RGB → (H, W) label indices
    table.names[7]                                  # "road"

The named tables are those of the data sets: ``voc`` (labels 0 to 20, 255 for the white border), ``cityscapes``
(labelIds 0 to 33), ``ade20k`` (labels 1 to 150, 0 for the rest) and ``camvid`` (the 32 classes of label_colors.txt).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ...errors import TaxonomyError

Color = tuple[int, int, int]
TableName = Literal["voc", "cityscapes", "ade20k", "camvid"]
TABLE_NAMES: tuple[str, ...] = get_args(TableName)
"""Tables that :func:`named_table` knows."""


@dataclass(frozen=True, kw_only=True)
class ColorTable:
    """A mapping from colors to label indices."""

    name: str
    """Name of a data set's table; empty for a table that a taxonomy file lists."""
    colors: tuple[Color, ...]
    """RGB colors, each channel in [0, 255]."""
    indices: tuple[int, ...]
    """Label index of each color, 0 to 65535."""
    names: Mapping[int, str]
    """Class name of each label index; empty for a table that a taxonomy file lists."""

    def __post_init__(self) -> None:
        if len(self.colors) != len(self.indices) or not self.colors:
            raise TaxonomyError(f"a color table needs one label per color, got {len(self.colors)} colors")

    @cached_property
    def _lookup(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Packed colors (N,), ascending, and their label indices (N,); -1 marks a color that two classes share."""
        table: dict[int, int] = {}
        for (red, green, blue), index in zip(self.colors, self.indices, strict=True):
            code = red << 16 | green << 8 | blue
            table[code] = -1 if code in table and self.name == "ade20k" else table.get(code, index)
        codes = np.array(sorted(table), np.int32)
        return codes, np.array([table[code] for code in codes.tolist()], np.int32)

    def encode(self, pixels: NDArray[np.uint8], file: str) -> NDArray[Any]:
        """Return the label index of every pixel (H, W), uint8 or uint16, of an (H, W, 3) uint8 RGB map.

        Raises :class:`TaxonomyError` for a color that is not in the table, naming ``file``, the most frequent such
        color and the number of its pixels.
        """
        codes, indices = self._lookup
        wide = pixels.astype(np.int32)
        packed = wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]
        places = np.minimum(np.searchsorted(codes, packed), len(codes) - 1)
        labels = indices[places]
        faults = (codes[places] != packed) | (labels < 0)
        if faults.any():
            values, counts = np.unique(packed[faults], return_counts=True)
            code, number = int(values[counts.argmax()]), int(counts.max())
            color = f"{code >> 16}, {code >> 8 & 255}, {code & 255}"
            if code in codes:
                shared = [name for index, name in self.names.items() if self._color_of(index) == code]
                raise TaxonomyError(f"{file}: the color {color} ({number:,} pixels) stands for {' and '.join(shared)}")
            more_colors = f" and {len(values) - 1} more colors" if len(values) > 1 else ""
            raise TaxonomyError(
                f"{file} holds the color {color} on {number:,} pixels{more_colors}, which {self} does not list; add it "
                "to [colors] in the taxonomy (lossy files and smoothed edges also make new colors)"
            )
        return labels.astype(np.uint8 if indices.max(initial=0) <= 255 else np.uint16)

    def _color_of(self, index: int) -> int:
        red, green, blue = self.colors[self.indices.index(index)]
        return red << 16 | green << 8 | blue

    def __str__(self) -> str:
        return f"the color table {self.name!r}" if self.name else "the color table of the taxonomy"

    def to_json(self) -> str | list[list[int]]:
        """Return plain data: the name of a data set's table, else rows of red, green, blue, label index."""
        if self.name:
            return self.name
        return [[*color, index] for color, index in zip(self.colors, self.indices, strict=True)]

    @classmethod
    def from_json(cls, raw: str | Sequence[Sequence[int]]) -> ColorTable:
        """Return the table of :meth:`to_json`'s data."""
        if isinstance(raw, str):
            return named_table(raw)
        colors = tuple((row[0], row[1], row[2]) for row in raw)
        return cls(name="", colors=colors, indices=tuple(row[3] for row in raw), names={})


def parse_color(text: str) -> Color:
    """Parse a color written as ``"128, 0, 0"``, ``"128 0 0"`` or ``"#800000"``; raises :class:`TaxonomyError`."""
    try:
        if text.startswith("#"):
            channels = list(bytes.fromhex(text[1:]))
        else:
            channels = [int(part) for part in text.replace(",", " ").split()]
        red, green, blue = channels
    except ValueError:
        red = -1
        green = blue = 0
    if not all(0 <= channel <= 255 for channel in (red, green, blue)):
        raise TaxonomyError(f'a color is written "128, 0, 0" or "#800000", got {text!r}')
    return red, green, blue


@cache
def named_table(name: str) -> ColorTable:
    """Return the color table of a data set, one of :data:`TABLE_NAMES`; raises :class:`TaxonomyError`."""
    if name not in TABLE_NAMES:
        raise TaxonomyError(f"the named color tables are {', '.join(TABLE_NAMES)}; got {name!r}")
    if name == "voc":
        rows = [(_voc_color(index), index, label) for index, label in enumerate(_VOC.split())]
        rows.append(((224, 224, 192), 255, "void"))
    else:
        text, first = {"cityscapes": (_CITYSCAPES, 0), "ade20k": (_ADE20K, 1), "camvid": (_CAMVID, 0)}[name]
        entries = [entry.split(maxsplit=1) for entry in " ".join(text.split()).split(", ")]
        rows = [(parse_color(f"#{code}"), index, label) for index, (code, label) in enumerate(entries, first)]
        if name == "ade20k":
            rows.insert(0, ((0, 0, 0), 0, "unlabeled"))
    return ColorTable(
        name=name,
        colors=tuple(color for color, _, _ in rows),
        indices=tuple(index for _, index, _ in rows),
        names={index: label for _, index, label in rows},
    )


def _voc_color(index: int) -> Color:
    """Return the color of a VOC label: every three bits of the index set a bit of red, green and blue."""
    channels = [0, 0, 0]
    for shift in range(8):
        for channel in range(3):
            channels[channel] |= (index >> (3 * shift + channel) & 1) << (7 - shift)
    return channels[0], channels[1], channels[2]


_VOC = """
    background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person
    pottedplant sheep sofa train tvmonitor
"""

_CITYSCAPES = """
    000000 unlabeled, 000000 ego vehicle, 000000 rectification border, 000000 out of roi, 000000 static, 6f4a00
    dynamic, 510051 ground, 804080 road, f423e8 sidewalk, faaaa0 parking, e6968c rail track, 464646 building,
    66669c wall, be9999 fence, b4a5b4 guard rail, 966464 bridge, 96785a tunnel, 999999 pole, 999999 polegroup,
    faaa1e traffic light, dcdc00 traffic sign, 6b8e23 vegetation, 98fb98 terrain, 4682b4 sky, dc143c person,
    ff0000 rider, 00008e car, 000046 truck, 003c64 bus, 00005a caravan, 00006e trailer, 005064 train, 0000e6
    motorcycle, 770b20 bicycle
"""

_CAMVID = """
    408040 Animal, c00080 Archway, 0080c0 Bicyclist, 008040 Bridge, 800000 Building, 400080 Car, 4000c0
    CartLuggagePram, c08040 Child, c0c080 Column_Pole, 404080 Fence, 8000c0 LaneMkgsDriv, c00040
    LaneMkgsNonDriv, 808040 Misc_Text, c000c0 MotorcycleScooter, 804040 OtherMoving, 40c080 ParkingBlock, 404000
    Pedestrian, 804080 Road, 8080c0 RoadShoulder, 0000c0 Sidewalk, c08080 SignSymbol, 808080 Sky, 4080c0
    SUVPickupTruck, 000040 TrafficCone, 004040 TrafficLight, c04080 Train, 808000 Tree, c080c0 Truck_Bus, 400040
    Tunnel, c0c000 VegetationMisc, 000000 Void, 40c000 Wall
"""

_ADE20K = """
    787878 wall, b47878 building, 06e6e6 sky, 503232 floor, 04c803 tree, 787850 ceiling, 8c8c8c road, cc05ff
    bed, e6e6e6 windowpane, 04fa07 grass, e005ff cabinet, ebff07 sidewalk, 96053d person, 787846 earth, 08ff33
    door, ff0652 table, 8fff8c mountain, ccff04 plant, ff3307 curtain, cc4603 chair, 0066c8 car, 3de6fa water,
    ff0633 painting, 0b66ff sofa, ff0747 shelf, ff09e0 house, 0907e6 sea, dcdcdc mirror, ff095c rug, 7009ff
    field, 08ffd6 armchair, 07ffe0 seat, ffb806 fence, 0aff47 desk, ff290a rock, 07ffff wardrobe, e0ff08 lamp,
    6608ff bathtub, ff3d06 railing, ffc207 cushion, ff7a08 base, 00ff14 box, ff0829 column, ff0599 signboard,
    0633ff chest of drawers, eb0cff counter, a09614 sand, 00a3ff sink, 8c8c8c skyscraper, fa0a0f fireplace,
    14ff00 refrigerator, 1fff00 grandstand, ff1f00 path, ffe000 stairs, 99ff00 runway, 0000ff case, ff4700 pool
    table, 00ebff pillow, 00adff screen door, 1f00ff stairway, 0bc8c8 river, ff5200 bridge, 00fff5 bookcase,
    003dff blind, 00ff70 coffee table, 00ff85 toilet, ff0000 flower, ffa300 book, ff6600 hill, c2ff00 bench,
    008fff countertop, 33ff00 stove, 0052ff palm, 00ff29 kitchen island, 00ffad computer, 0a00ff swivel chair,
    adff00 boat, 00ff99 bar, ff5c00 arcade machine, ff00ff hovel, ff00f5 bus, ff0066 towel, ffad00 light, ff0014
    truck, ffb8b8 tower, 001fff chandelier, 00ff3d awning, 0047ff streetlight, ff00cc booth, 00ffc2 television
    receiver, 00ff52 airplane, 000aff dirt track, 0070ff apparel, 3300ff pole, 00c2ff land, 007aff bannister,
    00ffa3 escalator, ff9900 ottoman, 00ff0a bottle, ff7000 buffet, 8fff00 poster, 5200ff stage, a3ff00 van,
    ffeb00 ship, 08b8aa fountain, 8500ff conveyer belt, 00ff5c canopy, b800ff washer, ff001f plaything, 00b8ff
    swimming pool, 00d6ff stool, ff0070 barrel, 5cff00 basket, 00e0ff waterfall, 70e0ff tent, 46b8a0 bag, a300ff
    minibike, 9900ff cradle, 47ff00 oven, ff00a3 ball, ffcc00 food, ff008f step, 00ffeb tank, 85ff00 trade name,
    ff00eb microwave, f500ff pot, ff007a animal, fff500 bicycle, 0abed4 lake, d6ff00 dishwasher, 00ccff screen,
    1400ff blanket, ffff00 sculpture, 0099ff hood, 0029ff sconce, 00ffcc vase, 2900ff traffic light, 29ff00
    tray, ad00ff ashcan, 00f5ff fan, 4700ff pier, 7a00ff crt screen, 00ffb8 plate, 005cff monitor, b8ff00
    bulletin board, 0085ff shower, ffd600 radiator, 19c2c2 glass, 66ff00 clock, 5c00ff flag
"""
