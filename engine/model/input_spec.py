"""Describe how an image becomes a model's input: size, resizing, normalization, and the bands of files that have many.

Only the standard library is used; see :mod:`.bundle`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ...checks import check_choice
from ...errors import UsageError

MAX_SIDE = 32_768
"""Largest height or width of an input, in pixels."""
MAX_FACTOR = 1e9
"""Largest magnitude of a scale, mean, standard deviation or padding value; beyond it inputs would overflow."""
MAX_BANDS = 64
"""Most bands of a file that feed a model."""
MAX_BAND_NUMBER = 65_535
"""Largest number of a band: TIFF counts its samples in 16 bits."""

Layout = Literal["NCHW", "NHWC"]
Resize = Literal["stretch", "longest-side"]
ResizeFilter = Literal["nearest", "bilinear", "bicubic", "lanczos", "area"]
Channels = Literal["RGB", "BGR"]
SampleType = Literal["uint8", "uint16", "int16", "float32"]


@dataclass(frozen=True, kw_only=True)
class BandSpec:
    """Bands of an image file that feed a model in place of red, green and blue."""

    numbers: tuple[int, ...]
    """Bands of the file in the order of the model's channels, counted from 1."""
    sample_type: SampleType = "uint8"
    """Number type of the file's samples; files of another type are rejected."""
    display: tuple[int, int, int]
    """Bands that pictures show as red, green and blue; all of them feed the model."""
    display_range: tuple[float, float] = (0.0, 255.0)
    """Sample values that pictures show as black and as white."""

    def __post_init__(self) -> None:
        check_choice("sample_type", self.sample_type, SampleType)
        if not 1 <= len(self.numbers) <= MAX_BANDS or len(set(self.numbers)) != len(self.numbers):
            raise UsageError(f"bands must be 1 to {MAX_BANDS} different numbers, got {list(self.numbers)!r:.200}")
        if not all(1 <= number <= MAX_BAND_NUMBER for number in self.numbers):
            raise UsageError(f"bands are counted from 1 to {MAX_BAND_NUMBER:,}, got {list(self.numbers)!r:.200}")
        if not set(self.display) <= set(self.numbers):
            raise UsageError(
                f"pictures show three of the model's bands {list(self.numbers)!r:.200}, got {list(self.display)!r}"
            )
        low, high = self.display_range
        if not -MAX_FACTOR <= low < high <= MAX_FACTOR:
            raise UsageError(f"the display range must be two finite numbers, low before high, got {low:g} and {high:g}")

    def to_json(self) -> dict[str, Any]:
        """Convert to plain data; :func:`maskmill.engine.model.schema.read_value` reads it."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @property
    def display_channels(self) -> tuple[int, int, int]:
        """Channels of the model's input, from 0, that pictures show as red, green and blue."""
        red, green, blue = (self.numbers.index(number) for number in self.display)
        return red, green, blue


def default_display(numbers: Sequence[int]) -> tuple[int, int, int]:
    """Return the first three bands; the last one is repeated if there are fewer."""
    red, green, blue = (numbers[min(index, len(numbers) - 1)] for index in range(3))
    return red, green, blue


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """How an image becomes the model's input: x = (sample * scale - mean) / std.

    The image is HWC uint8 RGB, [0, 255]; with ``bands`` it is HWC with one channel per band, in their sample type.
    """

    name: str
    """Name of the graph's input tensor."""
    layout: Layout = "NCHW"
    """Order of the input's axes."""
    height: int
    """Rows of the input, in pixels."""
    width: int
    """Columns of the input, in pixels."""
    resize: Resize = "stretch"
    """``stretch`` fills the input; ``longest-side`` keeps the aspect ratio and pads at the right and the bottom."""
    resize_filter: ResizeFilter = "bilinear"
    """Interpolation filter of the resize, as Pillow defines it."""
    antialias: bool = True
    """Widen the filter when shrinking (Pillow's and torchvision's antialias)."""
    channels: Channels = "RGB"
    """Order of the color channels; ``RGB`` with ``bands``, which have an order of their own."""
    bands: BandSpec | None = None
    """Bands of a file that feed the model; None: red, green and blue of a photo."""
    scale: float = 1.0 / 255.0
    """Factor applied to a sample first."""
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    """Subtracted after scaling, one value per channel in the order of ``channels`` or ``bands``."""
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    """Divisor after subtracting, one value per channel."""
    pad_value: float | tuple[float, ...] = 0.0
    """Sample value of padded pixels, before scaling: one per channel, or one for all.

    SAM pads with zeros after normalizing, so its values are the mean of each channel.
    """
    dynamic: bool = False
    """True if the graph accepts other heights and widths; ``height`` and ``width`` are the ones in use."""
    multiple: int = 1
    """Height and width of a dynamic input must be multiples of this, in pixels."""

    def __post_init__(self) -> None:
        for name, choices in (
            ("layout", Layout), ("resize", Resize), ("resize_filter", ResizeFilter), ("channels", Channels)
        ):  # fmt: skip
            check_choice(name, getattr(self, name), choices)
        if not (1 <= self.height <= MAX_SIDE and 1 <= self.width <= MAX_SIDE):
            raise UsageError(
                f"the input size must be at least 1x1 and at most {MAX_SIDE}x{MAX_SIDE}, got {self.height}x{self.width}"
            )
        if self.multiple < 1 or self.height % self.multiple or self.width % self.multiple:
            raise UsageError(
                f"the input size must be a multiple of {self.multiple} pixels, got {self.height}x{self.width}"
            )
        if self.bands is not None and self.channels != "RGB":
            raise UsageError("bands have an order of their own; leave the channel order out")
        number = self.num_channels
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) != number or not all(abs(value) <= MAX_FACTOR for value in values):
                raise UsageError(
                    f"{name} must be {number} finite numbers, one per channel, at most {MAX_FACTOR:g}, got {values!r}"
                )
        if min(self.std) < 1 / MAX_FACTOR:
            raise UsageError(f"std must be positive in every channel, at least {1 / MAX_FACTOR:g}, got {self.std!r}")
        if not 1 / MAX_FACTOR <= abs(self.scale) <= MAX_FACTOR:
            raise UsageError(f"scale must be a finite number other than 0, at most {MAX_FACTOR:g}, got {self.scale!r}")
        padding = self.pad_value if isinstance(self.pad_value, tuple) else (self.pad_value,) * number
        if len(padding) != number or not all(abs(value) <= MAX_FACTOR for value in padding):
            raise UsageError(f"the pad value must be one finite number or {number}, got {self.pad_value!r}")
        if not self.antialias and self.resize_filter in ("area", "lanczos"):
            raise UsageError(
                f"the {self.resize_filter} filter always averages; choose bilinear or bicubic with --no-antialias"
            )

    @property
    def num_channels(self) -> int:
        """Number of the input's channels."""
        return 3 if self.bands is None else len(self.bands.numbers)
