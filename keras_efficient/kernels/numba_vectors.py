"""Runs of 32 entries in instructions of their own.

LLVM makes vectors of long loops. One over 32 entries it unrolls instead, or
finds too short for the vectors it has chosen.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np import arrayobj

LENGTH = 32
_FLOATS, _INTS, _BYTES = (
    ir.VectorType(item, LENGTH)
    for item in (ir.FloatType(), ir.IntType(32), ir.IntType(8))
)


@intrinsic
def unpack(typingctx, codes, i, work, upper, lower, low, unit, fused):
    """Decode 32 bytes from `codes[i]` on to two runs of float32.

    `low + unit * step`, of the steps in the upper four bits to `work[upper]`,
    in the lower ones to `work[lower]`; with one rounding if `fused`.
    """

    def codegen(context, builder, signature, args):
        def pointer(array, at, vector):
            return _pointer(
                context, builder, signature, args, array, at, vector
            )

        both = builder.load(pointer(0, 1, _BYTES), align=1)
        both = builder.zext(both, _INTS)
        first = builder.lshr(both, ir.Constant(_INTS, [4] * LENGTH))
        second = builder.and_(both, ir.Constant(_INTS, [15] * LENGTH))
        low, unit = (_splat(builder, x) for x in args[5:7])
        fma = _function(builder, "llvm.fma", _FLOATS, 3 * [_FLOATS])
        for steps, at in ((first, 3), (second, 4)):
            steps = builder.sitofp(steps, _FLOATS)
            twice = builder.fadd(low, builder.fmul(steps, unit))
            once = builder.call(fma, [steps, unit, low])
            x = builder.select(args[7], once, twice)
            builder.store(x, pointer(2, at, _FLOATS), align=4)
        return context.get_dummy_value()

    signature = types.void(
        *(codes, types.int64, work, types.int64, types.int64),
        *(types.float32, types.float32, types.boolean),
    )
    return signature, codegen


@intrinsic
def pack(typingctx, work, upper, lower, codes, i):
    """Write 32 bytes from `codes[i]` on, of two runs of steps up to 15."""

    def codegen(context, builder, signature, args):
        def pointer(array, at, vector):
            return _pointer(
                context, builder, signature, args, array, at, vector
            )

        first, second = (
            builder.load(pointer(0, at, _FLOATS), align=4) for at in (1, 2)
        )
        sixteen = ir.Constant(_FLOATS, [16.0] * LENGTH)
        both = builder.fadd(builder.fmul(first, sixteen), second)
        both = builder.trunc(builder.fptosi(both, _INTS), _BYTES)
        builder.store(both, pointer(3, 4, _BYTES), align=1)
        return context.get_dummy_value()

    signature = types.void(work, types.int64, types.int64, codes, types.int64)
    return signature, codegen


@intrinsic
def least(typingctx, work, at):
    """Return the least of 32 float32."""
    return _reduce("fmin", work)


@intrinsic
def greatest(typingctx, work, at):
    """Return the greatest of 32 float32."""
    return _reduce("fmax", work)


@intrinsic
def fill(typingctx, work, at, value):
    """Write a float32 to 32 places."""

    def codegen(context, builder, signature, args):
        pointer = _pointer(context, builder, signature, args, 0, 1, _FLOATS)
        builder.store(_splat(builder, args[2]), pointer, align=4)
        return context.get_dummy_value()

    return types.void(work, types.int64, types.float32), codegen


def _reduce(name, work):
    def codegen(context, builder, signature, args):
        pointer = _pointer(context, builder, signature, args, 0, 1, _FLOATS)
        vector = builder.load(pointer, align=4)
        full_name = f"llvm.vector.reduce.{name}"
        reduce = _function(builder, full_name, _FLOATS.element, [_FLOATS])
        return builder.call(reduce, [vector], fastmath=("nnan", "nsz"))

    return types.float32(work, types.int64), codegen


def _function(builder, name, result, parameters):
    return cgutils.get_or_insert_function(
        builder.module,
        ir.FunctionType(result, parameters),
        f"{name}.v{LENGTH}f32",
    )


def _pointer(context, builder, signature, args, array, at, vector):
    array_type = signature.args[array]
    made = arrayobj.make_array(array_type)(context, builder, args[array])
    pointer = builder.gep(made.data, [args[at]])
    return builder.bitcast(pointer, vector.as_pointer())


def _splat(builder, value):
    undefined = ir.Constant(_FLOATS, ir.Undefined)
    vector = builder.insert_element(undefined, value, ir.IntType(32)(0))
    zeros = ir.Constant(_INTS, [0] * LENGTH)
    return builder.shuffle_vector(vector, undefined, zeros)
