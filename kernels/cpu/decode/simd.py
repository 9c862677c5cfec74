"""Sixteen float32 lanes as a Numba type, for loops that keep many running values in registers.

LLVM vectorizes a loop over pixels only by carrying every running value through memory, which costs more than the
arithmetic. Here a loop over classes holds them as vectors: one instruction each with AVX-512, two or four elsewhere.
Every operation is the IEEE one, so a lane's result depends on its own inputs alone.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model

LANES = 16


_INT = ir.IntType(32)
_WIDE = ir.IntType(64)
_FLOATS = ir.VectorType(ir.FloatType(), LANES)
_INTS = ir.VectorType(_INT, LANES)
_WIDES = ir.VectorType(_WIDE, LANES)
_BOOLS = ir.VectorType(ir.IntType(1), LANES)


def _intrinsic(function: Callable[..., Any]) -> Callable[..., Any]:
    """Declare Numba's ``intrinsic`` for type checkers: the result is called without the first parameter."""
    return intrinsic(function)


class Vector(types.Type):
    """Sixteen float32."""


class Mask(types.Type):
    """Sixteen booleans."""


class Ints(types.Type):
    """Sixteen int32."""


vector: Vector = Vector("float32x16")
mask: Mask = Mask("boolx16")
ints: Ints = Ints("int32x16")

for _type, _lanes in ((Vector, _FLOATS), (Mask, _BOOLS), (Ints, _INTS)):

    @register_model(_type)
    class _Model(models.PrimitiveModel):
        def __init__(self, dmm, fe_type, lanes=_lanes) -> None:
            super().__init__(dmm, fe_type, lanes)


def _every_lane(value: int, kind=_INTS) -> ir.Constant:
    return ir.Constant(kind, [value] * LANES)


def _splat(builder, scalar, kind):
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), scalar, _INT(0))
    return builder.shuffle_vector(first, ir.Constant(kind, ir.Undefined), _every_lane(0))


def _call(builder, name: str, kind, *arguments):
    signature = ir.FunctionType(kind, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, signature, name), arguments)


def _pointer(context, builder, array_type, array, offset, kind):
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [offset]), kind.as_pointer())


def _lanes_of(array_type):
    """Return the LLVM type of sixteen of the array's elements."""
    return _FLOATS if array_type.dtype == types.float32 else ir.VectorType(ir.IntType(array_type.dtype.bitwidth), LANES)


def _suffix(lanes) -> str:
    """Return the suffix of LLVM's function names for these lanes."""
    return f"v{LANES}f32" if lanes == _FLOATS else f"v{LANES}i{lanes.element.width}"


def _inside(builder, count):
    """Return the mask of the first ``count`` lanes."""
    return builder.icmp_signed("<", ir.Constant(_WIDES, list(range(LANES))), _splat(builder, count, _WIDES))


def _read(context, builder, array_type, array, offset, count=None):
    """Read the first ``count`` of sixteen elements of the array's type; the others are zeros, without a read."""
    lanes, align = _lanes_of(array_type), array_type.dtype.bitwidth // 8
    pointer = _pointer(context, builder, array_type, array, offset, lanes)
    if count is None:
        return builder.load(pointer, align=align)
    zeros = ir.Constant(lanes, [0] * LANES)
    name = f"llvm.masked.load.{_suffix(lanes)}.p0"
    return _call(builder, name, lanes, pointer, _INT(align), _inside(builder, count), zeros)


def _widen(builder, value, is_bfloat16):
    """Convert float16 or bfloat16 bits to float32 in integer arithmetic: some processors have no instruction."""
    bits = builder.zext(value, _INTS)
    brain = builder.shl(bits, _every_lane(16))
    magnitude = builder.shl(builder.and_(bits, _every_lane(0x7FFF)), _every_lane(13))
    # The product rebiases the exponent and normalizes subnormal halves; infinities and NaN keep a full exponent.
    product = builder.fmul(builder.bitcast(magnitude, _FLOATS), ir.Constant(_FLOATS, [2.0**112] * LANES))
    exponent = builder.and_(bits, _every_lane(0x7C00))
    special = builder.icmp_unsigned("==", exponent, _every_lane(0x7C00))
    finite = builder.bitcast(product, _INTS)
    half = builder.select(special, builder.or_(magnitude, _every_lane(0x7F800000)), finite)
    half = builder.or_(half, builder.shl(builder.and_(bits, _every_lane(0x8000)), _every_lane(16)))
    return builder.bitcast(builder.select(_splat(builder, is_bfloat16, _BOOLS), brain, half), _FLOATS)


@_intrinsic
def load(typingctx, array, offset):
    """Load sixteen consecutive elements of a float32 array."""

    def emit(context, builder, signature, arguments):
        return _read(context, builder, signature.args[0], *arguments)

    return vector(array, types.intp), emit


@_intrinsic
def load_scores(typingctx, array, offset, is_bfloat16):
    """Load sixteen consecutive elements of a float32 array, or of the bits of float16 or bfloat16."""

    def emit(context, builder, signature, arguments):
        value = _read(context, builder, signature.args[0], *arguments[:2])
        return value if value.type == _FLOATS else _widen(builder, value, arguments[2])

    return vector(array, types.intp, types.boolean), emit


@_intrinsic
def load_first_scores(typingctx, array, offset, count, is_bfloat16):
    """Load the first ``count`` elements as :func:`load_scores`; the other lanes are zeros, without a read."""

    def emit(context, builder, signature, arguments):
        value = _read(context, builder, signature.args[0], *arguments[:3])
        return value if value.type == _FLOATS else _widen(builder, value, arguments[3])

    return vector(array, types.intp, types.intp, types.boolean), emit


@_intrinsic
def load_ints(typingctx, array, offset):
    """Load sixteen consecutive elements of an int32 array."""

    def emit(context, builder, signature, arguments):
        return _read(context, builder, signature.args[0], *arguments)

    return ints(array, types.intp), emit


@_intrinsic
def as_ints(typingctx, value):
    """Convert the lanes to integers."""
    return ints(vector), lambda context, builder, signature, arguments: builder.fptosi(arguments[0], _INTS)


@_intrinsic
def in_every_lane(typingctx, condition):
    """Return True if the condition holds in all sixteen lanes."""

    def emit(context, builder, signature, arguments):
        bits = builder.bitcast(arguments[0], ir.IntType(LANES))
        return builder.icmp_unsigned("==", bits, ir.Constant(bits.type, -1))

    return types.boolean(mask), emit


@_intrinsic
def permute(typingctx, value, index):
    """Permute the lanes: lane i of the result is lane ``index[i]`` (0 to 15) of ``value``."""

    def emit(context, builder, signature, arguments):
        value, index = arguments
        features = context.codegen().magic_tuple()[2].split(",")
        # LLVM has no generic form; it turns the extractions below into a store and sixteen loads.
        if "+avx512f" in features:
            return _call(builder, "llvm.x86.avx512.permvar.sf.512", _FLOATS, value, index)
        if "+avx2" in features:
            return _permute_halves(builder, value, index)
        result = ir.Constant(_FLOATS, ir.Undefined)
        for lane in range(LANES):
            element = builder.extract_element(value, builder.extract_element(index, _INT(lane)))
            result = builder.insert_element(result, element, _INT(lane))
        return result

    return vector(vector, ints), emit


def _permute_halves(builder, value, index):
    """Permute in halves of eight: the instruction reads the lowest three bits of an index."""

    def half(lanes, first):
        indices = ir.Constant(ir.VectorType(_INT, 8), list(range(first, first + 8)))
        return builder.shuffle_vector(lanes, ir.Constant(lanes.type, ir.Undefined), indices)

    eight = ir.VectorType(ir.FloatType(), 8)
    halves = []
    for first in (0, 8):
        at = half(index, first)
        low, high = (_call(builder, "llvm.x86.avx2.permps", eight, half(value, part), at) for part in (0, 8))
        upper = builder.icmp_signed(">", at, ir.Constant(at.type, [7] * 8))
        halves.append(builder.select(upper, high, low))
    return builder.shuffle_vector(*halves, ir.Constant(_INTS, list(range(LANES))))


@_intrinsic
def gather_scores(typingctx, array, start, index, is_bfloat16):
    """Gather sixteen elements, each at ``start`` plus its index, of an array as in :func:`load_scores`."""

    def emit(context, builder, signature, arguments):
        array, start, index, is_bfloat16 = arguments
        lanes, align = _lanes_of(signature.args[0]), signature.args[0].dtype.bitwidth // 8
        data = context.make_array(signature.args[0])(context, builder, array).data
        first = _splat(builder, builder.ptrtoint(builder.gep(data, [start]), _WIDE), _WIDES)
        distance = builder.mul(builder.sext(index, _WIDES), _every_lane(align, _WIDES))
        pointers = builder.inttoptr(builder.add(first, distance), ir.VectorType(data.type, LANES))
        zeros = ir.Constant(lanes, [0] * LANES)
        name = f"llvm.masked.gather.{_suffix(lanes)}.v{LANES}p0"
        value = _call(builder, name, lanes, pointers, _INT(align), _every_lane(1, _BOOLS), zeros)
        return value if lanes == _FLOATS else _widen(builder, value, is_bfloat16)

    return vector(array, types.intp, ints, types.boolean), emit


@_intrinsic
def look_up(typingctx, array, index):
    """Gather sixteen elements of a float32 array at the integers in the lanes of ``index``."""

    def emit(context, builder, signature, arguments):
        array, index = arguments
        data = context.make_array(signature.args[0])(context, builder, array).data
        index = builder.fptosi(index, _INTS)
        elements = ir.Constant(_FLOATS, ir.Undefined)
        for lane in range(LANES):
            at = builder.sext(builder.extract_element(index, _INT(lane)), _WIDE)
            elements = builder.insert_element(elements, builder.load(builder.gep(data, [at])), _INT(lane))
        return elements

    return vector(array, vector), emit


@_intrinsic
def store(typingctx, array, offset, value):
    """Write sixteen consecutive elements of a float32 array."""

    def emit(context, builder, signature, arguments):
        array, offset, value = arguments
        builder.store(value, _pointer(context, builder, signature.args[0], array, offset, _FLOATS), align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), emit


@_intrinsic
def store_first(typingctx, array, offset, count, value):
    """Write ``count`` consecutive elements of a float32 or unsigned array, at most sixteen."""

    def emit(context, builder, signature, arguments):
        array, offset, count, value = arguments
        lanes, align = _lanes_of(signature.args[0]), signature.args[0].dtype.bitwidth // 8
        if lanes != _FLOATS:
            value = builder.trunc(builder.fptosi(value, _INTS), lanes)
        pointer = _pointer(context, builder, signature.args[0], array, offset, lanes)
        with builder.if_else(builder.icmp_signed(">=", count, count.type(LANES))) as (full, part):
            with full:
                builder.store(value, pointer, align=align)
            with part:
                name = f"llvm.masked.store.{_suffix(lanes)}.p0"
                _call(builder, name, ir.VoidType(), value, pointer, _INT(align), _inside(builder, count))
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, vector), emit


@_intrinsic
def transpose(typingctx, target, target_offset, target_stride, source, source_offset, source_stride, is_bfloat16):
    """Transpose 16 x 16 elements of an array as in :func:`load_scores` into a float32 array.

    The strides are the distances between rows.
    """

    def emit(context, builder, signature, arguments):
        target, target_offset, target_stride, source, source_offset, source_stride, is_bfloat16 = arguments

        def row(start, stride, index):
            return builder.add(start, builder.mul(stride, stride.type(index)))

        rows = []
        for index in range(LANES):
            at = row(source_offset, source_stride, index)
            value = _read(context, builder, signature.args[3], source, at)
            rows.append(value if value.type == _FLOATS else _widen(builder, value, is_bfloat16))
        for step in (1, 2, 4, 8):
            upper = [LANES + (lane ^ step) if lane & step else lane for lane in range(LANES)]
            lower = [LANES + lane if lane & step else lane | step for lane in range(LANES)]
            for first in range(LANES):
                if not first & step:
                    pair = rows[first], rows[first | step]
                    rows[first] = builder.shuffle_vector(*pair, ir.Constant(_INTS, upper))
                    rows[first | step] = builder.shuffle_vector(*pair, ir.Constant(_INTS, lower))
        for index, value in enumerate(rows):
            offset = row(target_offset, target_stride, index)
            builder.store(value, _pointer(context, builder, signature.args[0], target, offset, _FLOATS), align=4)
        return context.get_dummy_value()

    return types.void(target, types.intp, types.intp, source, types.intp, types.intp, types.boolean), emit


@_intrinsic
def splat(typingctx, scalar):
    """Copy a float32 to every lane."""
    return vector(types.float32), lambda context, builder, signature, arguments: _splat(builder, *arguments, _FLOATS)


@_intrinsic
def fma(typingctx, a, b, c):
    """Return a * b + c, rounded once."""

    def emit(context, builder, signature, arguments):
        return _call(builder, f"llvm.fma.v{LANES}f32", _FLOATS, *arguments)

    return vector(vector, vector, vector), emit


@_intrinsic
def where(typingctx, condition, yes, no):
    """Select ``yes`` in the lanes in which the condition holds, ``no`` in the others."""
    return vector(mask, vector, vector), lambda context, builder, signature, arguments: builder.select(*arguments)


@_intrinsic
def add_exponent(typingctx, value, power):
    """Return ``value`` * 2^n for normal results; ``power`` = 1.5 * 2^23 + n holds the integer n in its low bits."""

    def emit(context, builder, signature, arguments):
        value, power = (builder.bitcast(argument, _INTS) for argument in arguments)
        return builder.bitcast(builder.add(value, builder.shl(power, _every_lane(23))), _FLOATS)

    return vector(vector, vector), emit


def _define(operation, emit, result) -> None:
    @_intrinsic
    def of_vectors(typingctx, a, b):
        return result(vector, vector), lambda context, builder, signature, arguments: emit(builder, *arguments)

    @overload(operation)
    def _operation(a, b):
        if isinstance(a, Vector) and isinstance(b, Vector):
            return lambda a, b: of_vectors(a, b)
        return None


_define(operator.add, lambda builder, a, b: builder.fadd(a, b), vector)
_define(operator.sub, lambda builder, a, b: builder.fsub(a, b), vector)
_define(operator.mul, lambda builder, a, b: builder.fmul(a, b), vector)
_define(operator.truediv, lambda builder, a, b: builder.fdiv(a, b), vector)
_define(operator.eq, lambda builder, a, b: builder.fcmp_ordered("==", a, b), mask)
_define(operator.gt, lambda builder, a, b: builder.fcmp_ordered(">", a, b), mask)
_define(operator.le, lambda builder, a, b: builder.fcmp_ordered("<=", a, b), mask)
