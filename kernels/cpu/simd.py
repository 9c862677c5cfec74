"""Sixteen float32 lanes as a Numba type, for loops that keep many running values in registers.

LLVM vectorizes a loop over pixels only by carrying every running value through memory, which costs more than the
arithmetic. Here a loop over classes holds them as vectors: one instruction each with AVX-512, two or four elsewhere.
Every operation is the IEEE one, so a lane's result depends on its own inputs alone.

Numba's disk cache looks at the file of the compiled function only: after a change here, remove ``__pycache__``.
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


_FLOAT = ir.FloatType()
_INT = ir.IntType(32)
_FLOATS = ir.VectorType(_FLOAT, LANES)
_INTS = ir.VectorType(_INT, LANES)
_BOOLS = ir.VectorType(ir.IntType(1), LANES)


def _intrinsic(function: Callable[..., Any]) -> Callable[..., Any]:
    """Numba's, for type checkers: what it decorates is called without the first parameter."""
    return intrinsic(function)


class Vector(types.Type):
    """Sixteen float32."""

    def __init__(self) -> None:
        super().__init__(name="float32x16")


class Mask(types.Type):
    """Sixteen booleans."""

    def __init__(self) -> None:
        super().__init__(name="boolx16")


vector, mask = Vector(), Mask()


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type) -> None:
        super().__init__(dmm, fe_type, _FLOATS)


@register_model(Mask)
class _MaskModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type) -> None:
        super().__init__(dmm, fe_type, _BOOLS)


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


def _read(context, builder, array_type, array, offset, count=None):
    """Sixteen elements of the array's own type; past ``count`` zeros, whose memory is not touched."""
    width = array_type.dtype.bitwidth
    lanes = _FLOATS if array_type.dtype == types.float32 else ir.VectorType(ir.IntType(width), LANES)
    pointer = _pointer(context, builder, array_type, array, offset, lanes)
    if count is None:
        return builder.load(pointer, align=width // 8)
    indices = ir.VectorType(ir.IntType(64), LANES)
    inside = builder.icmp_signed("<", ir.Constant(indices, list(range(LANES))), _splat(builder, count, indices))
    zeros = ir.Constant(lanes, [0] * LANES)
    name = f"llvm.masked.load.v{LANES}{'f32' if lanes is _FLOATS else 'i16'}.p0"
    return _call(builder, name, lanes, pointer, _INT(width // 8), inside, zeros)


def _widen(builder, value, is_bfloat16):
    """float32 of the bits of float16 or bfloat16, in integer arithmetic: not every processor has an instruction."""
    bits = builder.zext(value, _INTS)
    brain = builder.shl(bits, _every_lane(16))
    magnitude = builder.shl(builder.and_(bits, _every_lane(0x7FFF)), _every_lane(13))
    # The product rebiases the exponent and normalizes subnormal halves; infinities and NaN keep a full exponent.
    scaled = builder.fmul(builder.bitcast(magnitude, _FLOATS), ir.Constant(_FLOATS, [2.0**112] * LANES))
    exponent = builder.and_(bits, _every_lane(0x7C00))
    special = builder.icmp_unsigned("==", exponent, _every_lane(0x7C00))
    finite = builder.bitcast(scaled, _INTS)
    half = builder.select(special, builder.or_(magnitude, _every_lane(0x7F800000)), finite)
    half = builder.or_(half, builder.shl(builder.and_(bits, _every_lane(0x8000)), _every_lane(16)))
    return builder.bitcast(builder.select(_splat(builder, is_bfloat16, _BOOLS), brain, half), _FLOATS)


@_intrinsic
def load(typingctx, array, offset):
    """Sixteen consecutive elements of a float32 array."""

    def emit(context, builder, signature, arguments):
        return _read(context, builder, signature.args[0], *arguments)

    return vector(array, types.intp), emit


@_intrinsic
def load_scores(typingctx, array, offset, is_bfloat16):
    """Sixteen consecutive elements of a float32 array, or of the bits of float16 or bfloat16."""

    def emit(context, builder, signature, arguments):
        value = _read(context, builder, signature.args[0], *arguments[:2])
        return value if value.type == _FLOATS else _widen(builder, value, arguments[2])

    return vector(array, types.intp, types.boolean), emit


@_intrinsic
def load_first_scores(typingctx, array, offset, count, is_bfloat16):
    """As :func:`load_scores`, zeros from the ``count``-th on, whose memory is not touched."""

    def emit(context, builder, signature, arguments):
        value = _read(context, builder, signature.args[0], *arguments[:3])
        return value if value.type == _FLOATS else _widen(builder, value, arguments[3])

    return vector(array, types.intp, types.intp, types.boolean), emit


@_intrinsic
def store(typingctx, array, offset, value):
    """Write sixteen consecutive elements of a float32 array."""

    def emit(context, builder, signature, arguments):
        array, offset, value = arguments
        builder.store(value, _pointer(context, builder, signature.args[0], array, offset, _FLOATS), align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), emit


@_intrinsic
def transpose(typingctx, target, target_offset, target_stride, source, source_offset, source_stride):
    """Transpose 16 x 16 elements between two float32 arrays, the strides being those from row to row."""

    def emit(context, builder, signature, arguments):
        target, target_offset, target_stride, source, source_offset, source_stride = arguments

        def row(start, stride, index):
            return builder.add(start, builder.mul(stride, stride.type(index)))

        rows = [
            _read(context, builder, signature.args[3], source, row(source_offset, source_stride, index))
            for index in range(LANES)
        ]
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

    return types.void(target, types.intp, types.intp, source, types.intp, types.intp), emit


@_intrinsic
def splat(typingctx, scalar):
    """The same float32 in every lane."""
    return vector(types.float32), lambda context, builder, signature, arguments: _splat(builder, *arguments, _FLOATS)


@_intrinsic
def fma(typingctx, a, b, c):
    """Return a * b + c, rounded once."""

    def emit(context, builder, signature, arguments):
        return _call(builder, f"llvm.fma.v{LANES}f32", _FLOATS, *arguments)

    return vector(vector, vector, vector), emit


@_intrinsic
def where(typingctx, condition, yes, no):
    """``yes`` in the lanes where the condition holds, ``no`` in the others."""
    return vector(mask, vector, vector), lambda context, builder, signature, arguments: builder.select(*arguments)


@_intrinsic
def add_exponent(typingctx, value, power):
    """``value`` * 2^n, for normal results; n is the integer that the lowest bits of ``power`` = 1.5 * 2^23 + n hold."""

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
