"""Small ONNX models with an obvious answer: the class is the strongest color channel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
from onnx import TensorProto, helper, numpy_helper

from maskmill.engine.model.bundle import OBJECT_KINDS, Bundle, OutputSpec, TextSpec
from maskmill.engine.model.input_spec import InputSpec, SampleType
from maskmill.export.adopt.boxes import detector_from_onnx
from maskmill.export.adopt.classifier import cam_from_onnx
from maskmill.export.adopt.preprocessing import with_bands
from maskmill.export.adopt.promptable import promptable_from_onnx
from maskmill.export.adopt.semantic import bundle_from_onnx
from maskmill.export.staging import model_file

COLORS = ("red", "green", "blue")


def color_graph(
    *,
    size: tuple[int | str, int | str] = (16, 24),
    layout: str = "NCHW",
    batch: int | str = "N",
    gain: float = 10.0,
    stride: int = 1,
    final: str | None = None,
    through: Sequence[tuple[str, float]] = (),
) -> onnx.ModelProto:
    """Image in [0, 1] → logits ``gain * (r, g, b)``, optionally average-pooled by ``stride``.

    ``through`` are operators with a number that the logits go through, nodes named after operator and backend:
    ``Mul0``.
    """
    nodes, height, width = [], *size
    shape = [batch, 3, height, width] if layout == "NCHW" else [batch, height, width, 3]
    name = "image"
    if layout == "NHWC":
        nodes.append(helper.make_node("Transpose", [name], ["planes"], perm=[0, 3, 1, 2]))
        name = "planes"
    if stride > 1:
        nodes.append(
            helper.make_node("AveragePool", [name], ["small"], kernel_shape=[stride] * 2, strides=[stride] * 2)
        )
        name = "small"
    nodes.append(helper.make_node("Conv", [name, "weight"], ["logits"]))
    name = "logits"
    constants = []
    for index, (operator, number) in enumerate(through):
        constants.append(numpy_helper.from_array(np.float32(number), f"number{index}"))
        nodes.append(
            helper.make_node(operator, [name, f"number{index}"], [f"through{index}"], name=f"{operator}{index}")
        )
        name = f"through{index}"
    if final is not None:
        nodes.append(helper.make_node(final, [name], ["activated"], **({"axis": 1} if final == "Softmax" else {})))
        name = "activated"
    if layout == "NHWC":
        nodes.append(helper.make_node("Transpose", [name], ["scores"], perm=[0, 2, 3, 1]))
    else:
        nodes.append(helper.make_node("Identity", [name], ["scores"]))
    weight = numpy_helper.from_array((np.eye(3) * gain).astype(np.float32).reshape(3, 3, 1, 1), "weight")
    graph = helper.make_graph(
        nodes,
        "colors",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, None)],
        [weight, *constants],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return onnx.shape_inference.infer_shapes(model)


def color_bundle(
    folder: Path, *, classes: Sequence[str] = COLORS, background: str | None = None, **options: Any
) -> Bundle:
    """A bundle of :func:`color_graph` in ``folder / "bundle"``."""
    keys = ("size", "layout", "batch", "gain", "stride", "final", "through")
    graph = {key: options.pop(key) for key in keys if key in options}
    path = folder / "colors.onnx"
    onnx.save(color_graph(**graph), path)
    return bundle_from_onnx(
        path,
        folder / options.pop("name", "bundle"),
        classes=classes,
        background=background,
        layout=graph.get("layout", "NCHW"),
        **options,
    )


def band_bundle(
    folder: Path,
    *,
    bands: Sequence[int] = (5, 1, 4, 2),
    sample_type: SampleType = "uint16",
    scale: float = 1 / 10_000,
    size: tuple[int, int] = (16, 24),
    layout: str = "NCHW",
    **options: Any,
) -> Bundle:
    """A bundle in ``folder / "bundle"`` whose class i is the strongest of its bands, by their order."""
    number = len(bands)
    shape = ["N", number, *size] if layout == "NCHW" else ["N", *size, number]
    turn = "Transpose <perm = [0, 3, 1, 2]>" if layout == "NHWC" else "Identity"
    model = _parsed(f"""
        bands (float[{", ".join(map(str, shape))}] image) => (float[N, {number}, {size[0]}, {size[1]}] scores)
        {{ planes = {turn} (image)  scores = Conv (planes, weight) }}
    """)
    weight = (np.eye(number) * 10).astype(np.float32).reshape(number, number, 1, 1)
    model.graph.initializer.append(numpy_helper.from_array(weight, "weight"))
    path = folder / "bands.onnx"
    onnx.save(model, path)
    fields = with_bands({"scale": scale, **options}, bands, sample_type)
    names = [f"band {band}" for band in bands]
    return bundle_from_onnx(path, folder / "bundle", classes=names, layout=layout, **fields)  # type: ignore[arg-type]


def color_image(label: np.ndarray, *, strength: int = 255) -> np.ndarray:
    """The photo (H, W, 3) uint8 that :func:`color_graph` labels as ``label`` (H, W), values 0 to 2."""
    return (np.eye(3)[label] * strength).astype(np.uint8)


def color_encoder_graph(
    *, size: tuple[int, int] = (32, 48), stride: int = 2, batch: int | str = "N"
) -> onnx.ModelProto:
    """Image in [0, 1] → its colors averaged over ``stride`` pixels, as the embedding of :func:`color_decoder_graph`."""
    height, width = size
    return _parsed(f"""
        encoder (float[{batch}, 3, {height}, {width}] image)
            => (float[{batch}, 3, {height // stride}, {width // stride}] embedding)
        {{ embedding = AveragePool <kernel_shape = [{stride}, {stride}], strides = [{stride}, {stride}]> (image) }}
    """)


def color_decoder_graph(
    *,
    size: tuple[int, int] = (32, 48),
    stride: int = 2,
    signature: str = "batched",
    thresholds: Sequence[float] = (0.1, 0.5, 4.0),
    scores: Sequence[float] = (0.2, 0.9, 0.5),
) -> onnx.ModelProto:
    """Points → the pixels of their colors, and only those inside the box where there is one.

    Mask m holds what differs by less than ``thresholds[m]``, summed over the channels: with 4, everything. A point on
    black gives nothing. Logits are clipped to ±20; ``scores`` are the model's scores of its masks.
    """
    rows, columns, num = size[0] // stride, size[1] // stride, len(thresholds)
    if signature == "batched":
        batch, names, outputs, more_inputs, more_outputs, upscaled = (
            "N", ("embedding", "points", "labels"), ("masks", "scores"), "", "", ""
        )  # fmt: skip
    else:
        batch, names = "1", ("image_embeddings", "point_coords", "point_labels")
        outputs = ("low_res_masks", "iou_predictions")
        more_inputs = f", float[1, 1, {rows}, {columns}] mask_input, float[1] has_mask_input, float[2] orig_im_size"
        more_outputs = ", float[A, B, C, D] masks"
        upscaled = "masks = Identity (low_res_masks)"
    embedding, points, labels = names
    listed = ", ".join(map(str, thresholds)), ", ".join(map(str, scores))
    centers_x = ", ".join(str((column + 0.5) * stride) for _ in range(rows) for column in range(columns))
    centers_y = ", ".join(str((row + 0.5) * stride) for row in range(rows) for _ in range(columns))
    return _parsed(f"""
        decoder (float[{batch}, 3, {rows}, {columns}] {embedding}, float[{batch}, P, 2] {points},
                 float[{batch}, P] {labels}{more_inputs})
            => (float[{batch}, {num}, {rows}, {columns}] {outputs[0]}, float[{batch}, {num}] {outputs[1]}{more_outputs})
        <float[2] half_size = {{{size[1] / 2}, {size[0] / 2}}}, float one = {{1.0}}, float two = {{2.0}},
         float three = {{3.0}}, float zero = {{0.0}}, float far = {{1000.0}}, float low = {{-1e6}},
         float high = {{1e6}},
         float dark = {{0.1}}, float gain = {{10.0}}, float bottom = {{-20.0}}, float top = {{20.0}},
         int64[1] axis1 = {{1}}, int64[1] axis2 = {{2}}, int64[1] x_index = {{0}}, int64[1] y_index = {{1}},
         int64[4] flat_shape = {{0, 3, 1, {rows * columns}}}, int64[4] mask_shape = {{0, {num}, {rows}, {columns}}},
         float[1,{num},1] thresholds = {{{listed[0]}}}, float[1,{num}] constant_scores = {{{listed[1]}}},
         float[1,{rows * columns}] px = {{{centers_x}}}, float[1,{rows * columns}] py = {{{centers_y}}}>
        {{
            halves = Div ({points}, half_size)
            flat_grid = Sub (halves, one)
            grid = Unsqueeze (flat_grid, axis2)
            color = GridSample <mode = "nearest", padding_mode = "border"> ({embedding}, grid)
            pixels = Reshape ({embedding}, flat_shape)
            difference = Sub (pixels, color)
            absolute = Abs (difference)
            distance = ReduceSum <keepdims = 0> (absolute, axis1)
            brightness = ReduceSum <keepdims = 0> (color, axis1)
            is_dark = Less (brightness, dark)
            dark_penalty = Where (is_dark, far, zero)
            is_on = Equal ({labels}, one)
            off_penalty = Where (is_on, zero, far)
            off_penalty3 = Unsqueeze (off_penalty, axis2)
            with_dark = Add (distance, dark_penalty)
            penalized = Add (with_dark, off_penalty3)
            of_points = ReduceMin <axes = [1], keepdims = 0> (penalized)
            on_number = Where (is_on, one, zero)
            any_on = ReduceMax <axes = [1], keepdims = 1> (on_number)
            has_on = Greater (any_on, zero)
            nearest = Where (has_on, of_points, zero)
            x3 = Gather <axis = 2> ({points}, x_index)
            y3 = Gather <axis = 2> ({points}, y_index)
            x = Squeeze (x3, axis2)
            y = Squeeze (y3, axis2)
            is_start = Equal ({labels}, two)
            is_end = Equal ({labels}, three)
            xs = Where (is_start, x, low)
            ys = Where (is_start, y, low)
            xe = Where (is_end, x, high)
            ye = Where (is_end, y, high)
            left = ReduceMax <axes = [1], keepdims = 1> (xs)
            above = ReduceMax <axes = [1], keepdims = 1> (ys)
            right = ReduceMin <axes = [1], keepdims = 1> (xe)
            below = ReduceMin <axes = [1], keepdims = 1> (ye)
            before_x = Less (px, left)
            before_y = Less (py, above)
            after_x = Greater (px, right)
            after_y = Greater (py, below)
            out_x = Or (before_x, after_x)
            out_y = Or (before_y, after_y)
            outside = Or (out_x, out_y)
            box_penalty = Where (outside, far, zero)
            total = Add (nearest, box_penalty)
            total3 = Unsqueeze (total, axis1)
            margin = Sub (thresholds, total3)
            scaled = Mul (margin, gain)
            clipped = Clip (scaled, bottom, top)
            {outputs[0]} = Reshape (clipped, mask_shape)
            nothing = Mul (any_on, zero)
            {outputs[1]} = Add (constant_scores, nothing)
            {upscaled}
        }}
    """)


def sam_bundle(
    folder: Path, *, size: tuple[int, int] = (32, 48), stride: int = 2, name: str = "sam", **decoder: Any
) -> Bundle:
    """A promptable bundle of the two graphs above in ``folder / name``; images keep their aspect ratio."""
    paths = {role: folder / f"{name}-{role}.onnx" for role in ("encoder", "decoder")}
    onnx.save(color_encoder_graph(size=size, stride=stride), paths["encoder"])
    onnx.save(color_decoder_graph(size=size, stride=stride, **decoder), paths["decoder"])
    plain = {"scale": 1 / 255, "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "pad_value": 0.0}
    return promptable_from_onnx(paths["encoder"], paths["decoder"], folder / name, resize_filter="area", **plain)


def color_cam_graph(
    *, size: tuple[int | str, int | str] = (16, 24), stride: int = 2, logits_only: bool = False, final: str = ""
) -> onnx.ModelProto:
    """Image in [0, 1] → maps of red, green and blue, ``3 * channel - 1`` averaged over ``stride`` pixels.

    The logits are the maps' mean; the features are the averaged channels. With ``logits_only`` it is an ordinary
    classifier: a mean and a linear layer, and ``final`` behind them.
    """
    pool = f"features = AveragePool <kernel_shape = [{stride}, {stride}], strides = [{stride}, {stride}]> (image)"
    height, width = size
    if logits_only:
        last = f"logits = {final} (sums)" if final else "logits = Identity (sums)"
        return _parsed(f"""
            classifier (float[N, 3, {height}, {width}] image) => (float[N, 3] logits)
            <float[3, 3] weight = {{3.0, 0.0, 0.0, 0.0, 3.0, 0.0, 0.0, 0.0, 3.0}}, float[3] bias = {{-1.0, -1.0, -1.0}}>
            {{
                {pool}
                mean = GlobalAveragePool (features)
                flat = Flatten (mean)
                sums = Gemm <transB = 1> (flat, weight, bias)
                {last}
            }}
        """)
    return _parsed(f"""
        classifier (float[N, 3, {height}, {width}] image)
            => (float[N, 3, h, w] cam, float[N, 3] logits, float[N, 3, h, w] features)
        <float three = {{3.0}}, float one = {{1.0}}>
        {{
            {pool}
            tripled = Mul (features, three)
            cam = Sub (tripled, one)
            mean = GlobalAveragePool (cam)
            logits = Flatten (mean)
        }}
    """)


def cam_bundle(
    folder: Path, *, classes: Sequence[str] = COLORS, name: str = "cam", size: tuple[int, int] = (16, 24), **graph: Any
) -> Bundle:
    """A cam bundle of :func:`color_cam_graph` in ``folder / name``: sigmoid probabilities, a free input size."""
    path = folder / f"{name}.onnx"
    onnx.save(color_cam_graph(size=("H", "W"), **graph), path)
    return cam_from_onnx(path, folder / name, classes=classes, size=size, activation="sigmoid", resize_filter="area")


def _parsed(text: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {" ".join(text.split())}')


MOODS = ("endless", "shape", "batch", "empty", "nan", "memory", "fails")
"""Faults of :func:`moody_graph` on a white image."""


def moody_graph(mood: str) -> onnx.ModelProto:
    """Image in [0, 1] → logits ``10 * (r, g, b)``, except for a white image, on which it misbehaves."""
    bad = {
        "endless": """
            trips = Constant <value = int64 {4611686018427387904}> ()
            going = Constant <value = bool {1}> ()
            result = Loop (trips, going, good) <body = step (int64 number, bool before, float[N, 3, h, w] old) =>
                (bool after, float[N, 3, h, w] new) { after = Identity (before)  new = Add (old, old) }>""",
        "shape": """
            brightest = ReduceMax <axes = [1, 2, 3], keepdims = 0> (image)
            one = Cast <to = 7> (brightest)
            two = Add (one, one)
            dims = Concat <axis = 0> (one, two, one, one)
            zero = Constant <value = float {0}> ()
            result = Expand (zero, dims)""",
        "batch": "result = Concat <axis = 0> (good, good)",
        "empty": """
            none = Constant <value = int64[4] {0, 3, 16, 24}> ()
            zero = Constant <value = float {0}> ()
            result = Expand (zero, none)""",
        "nan": "result = Div (Zeros, Zeros)",
        "memory": """
            many = Constant <value = int64[4] {1, 3, 4194304, 4194304}> ()
            zero = Constant <value = float {0}> ()
            result = Expand (zero, many)""",
        "fails": """
            brightest = ReduceMax <axes = [1, 2, 3], keepdims = 0> (image)
            one = Cast <to = 7> (brightest)
            dims = Concat <axis = 0> (one, one, one, one)
            result = Reshape (good, dims)""",
    }[mood].replace("Zeros", "dark")
    return onnx.parser.parse_model(
        f"""
        <ir_version: 8, opset_import: ["" : 17]>
        colors (float[N, 3, 16, 24] image) => (float[N, 3, h, w] scores) {{
            gain = Constant <value = float {{10}}> ()
            good = Mul (image, gain)
            dark = Sub (image, image)
            lowest = ReduceMin <keepdims = 0> (image)
            limit = Constant <value = float {{0.99}}> ()
            white = Greater (lowest, limit)
            scores = If (white) <
                then_branch = bad () => (float[a, b, c, d] result) {{ {bad} }},
                else_branch = fine () => (float[N, 3, h, w] same) {{ same = Identity (good) }}>
        }}"""
    )


def object_bundle(
    folder: Path,
    masks: np.ndarray,
    *,
    scores: Sequence[float],
    indices: Sequence[int],
    classes: Sequence[str] = COLORS,
    background: str | None = None,
) -> Bundle:
    """:func:`color_graph` that also gives the same objects for every image: masks (K, h, w) bool, scores, classes."""
    size = (int(masks.shape[1]), int(masks.shape[2]))
    bundle = color_bundle(folder, size=size, classes=classes, background=background)
    path = bundle.model_path()
    model = onnx.load(path)
    values = {
        "object_scores": np.asarray(scores, np.float32),
        "object_classes": np.asarray(indices, np.float32),
        "object_masks": np.where(masks, 6, -6).astype(np.float32),
    }
    nodes = [helper.make_node("Shape", ["image"], ["batch"], start=0, end=1)]
    for name, array in values.items():
        model.graph.initializer.append(numpy_helper.from_array(array[None], f"{name}_one"))
        model.graph.initializer.append(numpy_helper.from_array(np.array(array.shape, np.int64), f"{name}_rest"))
        nodes.append(helper.make_node("Concat", ["batch", f"{name}_rest"], [f"{name}_shape"], axis=0))
        nodes.append(helper.make_node("Expand", [f"{name}_one", f"{name}_shape"], [name]))
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", *array.shape]))
    model.graph.node.extend(nodes)
    path.write_bytes(model.SerializeToString())
    outputs = (*bundle.outputs, *(OutputSpec(name=name, kind=name, activation="none") for name in OBJECT_KINDS))
    changed = replace(bundle, files=(model_file(path, role="model"),), outputs=outputs)
    changed.save()
    return changed


def detector_graph(
    boxes: Sequence[tuple[float, float, float, float]],
    *,
    size: tuple[int, int] = (32, 48),
    outputs: str = "detr",
    coefficients: int = 0,
) -> onnx.ModelProto:
    """Image in [0, 1] → ``boxes`` (x0, y0, x1, y1) in pixels, with scores for how red and how green they are inside.

    ``outputs`` is the layout: ``detr``, ``yolo``, ``yolo-rows``, ``yolov5`` or ``yolo-nms``.
    """
    corners = np.array(boxes, np.float32)
    inside = np.zeros((len(boxes), *size), np.float32)
    for row, (x0, y0, x1, y1) in enumerate(corners.astype(int)):
        inside[row, y0:y1, x0:x1] = 1 / ((y1 - y0) * (x1 - x0))
    centers = np.concatenate([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], axis=1)
    pixels = np.float32([size[1], size[0], size[1], size[0]])
    places = {"detr": centers / pixels, "yolo-nms": corners}.get(outputs, centers)
    constants: dict[str, np.ndarray] = {
        "inside": inside.reshape(len(boxes), -1).T.copy(),
        "flat": np.array([0, 3, -1]),
        # red - green, green - red
        "contrast": np.float32([[1, -1], [-1, 1], [0, 0]]),
        "places": places[None],
        "low": np.float32(0.01),
        "high": np.float32(0.99),
        "one": np.float32(1),
        "zero": np.float32([0]),
        "axis": np.array([2]),
        "more": np.zeros((1, len(boxes), coefficients), np.float32),
    }
    steps: list[tuple[str, list[str], str, dict[str, Any]]] = [
        ("Reshape", ["image", "flat"], "planes", {}),
        ("MatMul", ["planes", "inside"], "colors", {}),
        ("Transpose", ["colors"], "rows", {"perm": [0, 2, 1]}),
        ("MatMul", ["rows", "contrast"], "raw", {}),
        ("Clip", ["raw", "low", "high"], "scores", {}),
        ("ReduceMax", ["scores"], "best", {"axes": [2], "keepdims": 1}),
        ("Mul", ["best", "zero"], "nothing", {}),
        ("Add", ["nothing", "places"], "boxes", {}),
    ]
    last = {
        "detr": [
            ("Sub", ["one", "scores"], "rest", {}),
            ("Div", ["scores", "rest"], "odds", {}),
            ("Log", ["odds"], "logits", {}),
        ],
        "yolo": [
            ("Add", ["nothing", "more"], "extra", {}),
            ("Concat", ["boxes", "scores", "extra"], "list", {"axis": 2}),
            ("Transpose", ["list"], "output0", {"perm": [0, 2, 1]}),
        ],
        "yolo-rows": [("Concat", ["boxes", "scores"], "output0", {"axis": 2})],
        "yolov5": [
            ("Exp", ["nothing"], "sure", {}),
            ("Concat", ["boxes", "sure", "scores"], "output0", {"axis": 2}),
        ],
        "yolo-nms": [
            ("ArgMax", ["scores"], "index", {"axis": 2, "keepdims": 1}),
            ("Cast", ["index"], "class", {"to": TensorProto.FLOAT}),
            ("Concat", ["boxes", "best", "class"], "output0", {"axis": 2}),
        ],
    }[outputs]
    if coefficients:
        last.append(("AveragePool", ["image"], "pooled", {"kernel_shape": [2, 2], "strides": [2, 2]}))
        last.append(("Slice", ["pooled", "first", "width", "channels"], "output1", {}))
        constants |= {"first": np.array([0]), "width": np.array([coefficients]), "channels": np.array([1])}
    nodes = [helper.make_node(op, fed, [name], **values) for op, fed, name, values in [*steps, *last]]
    num, width = len(boxes), {"yolov5": 7, "yolo-nms": 6}.get(outputs, 6 + coefficients)
    shapes = {
        "detr": {"boxes": [num, 4], "logits": [num, 2]},
        "yolo": {"output0": [width, num]},
    }.get(outputs, {"output0": [num, width]})
    if coefficients:
        shapes["output1"] = [coefficients, size[0] // 2, size[1] // 2]
    graph = helper.make_graph(
        nodes,
        "detector",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, *size])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", *shape]) for name, shape in shapes.items()],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def detector_bundle(
    folder: Path, boxes: Sequence[tuple[float, float, float, float]], *, name: str = "detector", **options: Any
) -> Bundle:
    """A bundle of :func:`detector_graph` in ``folder / name``."""
    path, plain = folder / f"{name}.onnx", {"resize": "stretch", "mean": (0.0,) * 3, "std": (1.0,) * 3}
    onnx.save(detector_graph(boxes, **options), path)
    # six values per box are a score and a class, or two classes
    stated = "yolo-nms" if options.get("outputs") == "yolo-nms" else None
    return detector_from_onnx(path, folder / name, classes=("red", "green"), boxes=stated, **plain)


def text_bundle(folder: Path, *, size: tuple[int, int] = (16, 24), objects: int = 0, name: str = "text") -> Bundle:
    """A bundle that takes class names in ``folder / name``: a pixel's score for a color is that color's strength.

    Its words are red, green, blue, dark, person and car, of which the last three have no strength anywhere. With
    ``objects``, the classes with the strongest pixels are objects, that many per call of the decoder.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers

    path = folder / name
    path.mkdir()
    words = ["[PAD]", "[UNK]", "red", "green", "blue", "dark", "person", "car"]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    tokenizer.save(str(path / "tokenizer.json"))
    height, width = size[0] // 2, size[1] // 2
    onnx.save(color_encoder_graph(size=size), path / "encoder.onnx")
    table = "0,0,0, 0,0,0, 1,0,0, 0,1,0, 0,0,1, 0,0,0, 0,0,0, 0,0,0".replace(",", ".0,") + ".0"
    encoder = _parsed(f"""
        text (int64[C, 6] input_ids, int64[C, 6] attention_mask) => (float[C, 6, 3] text_features)
        <float[8, 3] table = {{{table}}}, int64[1] last = {{2}}>
        {{ words = Gather (table, input_ids)
           real = Cast <to = 1> (attention_mask)
           column = Unsqueeze (real, last)
           text_features = Mul (words, column) }}
    """)
    onnx.save(encoder, path / "text.onnx")
    outputs, steps = "", ""
    if objects:
        outputs = (
            f", float[N, K] object_scores, float[N, K] object_classes, float[N, K, {height}, {width}] object_masks"
        )
        steps = """
            best = ReduceMax <axes = [2, 3], keepdims = 0> (scores)
            classes = Shape <start = 1, end = 2> (best)
            limit = Min (classes, objects)
            object_scores, places = TopK <axis = 1> (best, limit)
            object_classes = Cast <to = 1> (places)
            rows = Unsqueeze (places, last)
            chosen = GatherND <batch_dims = 1> (scores, rows)
            centered = Sub (chosen, half)
            object_masks = Mul (centered, gain)"""
    decoder = _parsed(f"""
        decoder (float[N, 3, {height}, {width}] embedding, float[C, T, 3] texts, bool[C, T] present)
            => (float[N, C, {height}, {width}] scores{outputs})
        <int64[1] last = {{2}}, int64[1] first = {{1}}, int64[3] flat = {{0, 3, -1}},
         int64[4] shape = {{0, -1, {height}, {width}}}, int64[1] objects = {{{max(objects, 1)}}}, float half = {{0.5}},
         float gain = {{20.0}}>
        {{ real = Cast <to = 1> (present)
           column = Unsqueeze (real, last)
           words = Mul (texts, column)
           colors = ReduceSum <keepdims = 0> (words, first)
           planes = Reshape (embedding, flat)
           products = MatMul (colors, planes)
           scores = Reshape (products, shape) {steps} }}
    """)
    onnx.save(decoder, path / "decoder.onnx")
    roles: dict[Any, str] = {role: f"{role}.onnx" for role in ("encoder", "decoder", "text")}
    roles["tokenizer"] = "tokenizer.json"
    bundle = Bundle(
        path=path,
        task="text",
        files=tuple(model_file(path / file, role=role) for role, file in roles.items()),
        input=InputSpec(name="image", height=size[0], width=size[1]),
        outputs=(
            OutputSpec(name="embedding", kind="embedding", activation="none"),
            OutputSpec(name="text_features", kind="text_features", activation="none"),
            OutputSpec(name="scores", activation="none"),
            *(OutputSpec(name=kind, kind=kind, activation="none") for kind in (OBJECT_KINDS if objects else ())),
        ),
        text=TextSpec(max_tokens=6),
    )
    bundle.save()
    return Bundle.load(path)
