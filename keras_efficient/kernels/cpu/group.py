"""What Numba lacks: bits of numbers, half precision, groups of 32 as vectors.

Loops over 32 entries are unrolled by LLVM before it could turn them into
vectors, so that whole groups are read and written by instructions of their
own.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.extending import overload
from numba.np import arrayobj

from keras_efficient.kernels.cpu.jit import jit

GROUP_SIZE = 32
_FLOAT, _INT = ir.FloatType(), ir.IntType(32)
_FLOATS = ir.VectorType(_FLOAT, GROUP_SIZE)
_INTS = ir.VectorType(_INT, GROUP_SIZE)


@intrinsic
def to_bits(typingctx, x):
    """Read the bits of a float32 as int32."""

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], _INT)

    return types.int32(types.float32), codegen


@intrinsic
def from_bits(typingctx, x):
    """Read the bits of an int32 as float32."""

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], _FLOAT)

    return types.float32(types.int32), codegen


@intrinsic
def fused_multiply_add(typingctx, x, y, z):
    """Compute `x * y + z` with one rounding."""

    def codegen(context, builder, signature, args):
        return builder.fma(*args)

    signature = types.float32(types.float32, types.float32, types.float32)
    return signature, codegen


@intrinsic
def fill_group(typingctx, array, group, value):
    """Set the 32 entries of a group of a float32 array."""

    def codegen(context, builder, signature, args):
        undefined = ir.Constant(_FLOATS, ir.Undefined)
        vector = builder.insert_element(undefined, args[2], _INT(0))
        zeros = ir.Constant(_INTS, [0] * GROUP_SIZE)
        vector = builder.shuffle_vector(vector, undefined, zeros)
        pointer = _pointer(context, builder, signature, args, _FLOATS)
        builder.store(vector, pointer, align=4)
        return context.get_dummy_value()

    return types.void(array, types.int64, types.float32), codegen


@intrinsic
def largest_of_group(typingctx, array, group):
    """Return the largest absolute value of a group of a float32 array."""

    def codegen(context, builder, signature, args):
        pointer = _pointer(context, builder, signature, args, _INTS)
        vector = builder.load(pointer, align=4)
        # Without the sign, bits are in the order of the numbers.
        mask = ir.Constant(_INTS, [0x7FFFFFFF] * GROUP_SIZE)
        largest = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(_INT, [_INTS]),
            f"llvm.vector.reduce.smax.v{GROUP_SIZE}i32",
        )
        bits = builder.call(largest, [builder.and_(vector, mask)])
        return builder.bitcast(bits, _FLOAT)

    return types.float32(array, types.int64), codegen


def _pointer(context, builder, signature, args, vector):
    array = arrayobj.make_array(signature.args[0])(context, builder, args[0])
    data = builder.bitcast(array.data, vector.as_pointer())
    return builder.gep(data, [args[1]])


def to_float32(x):
    """Decode a float32, or a bfloat16 given by its bits as uint16."""


@overload(to_float32)
def _to_float32(x):
    if x == types.uint16:
        return lambda x: from_bits(np.int32(x) << 16)
    return lambda x: x


@jit
def decode_float16(bits):
    """Decode a float16 that is finite and not negative."""
    bits = np.int32(bits)
    # Not by one multiplication: XLA's threads read subnormals as 0.
    normal = from_bits(np.int32((bits << 13) + (112 << 23)))
    subnormal = np.float32(bits) * np.float32(2.0**-24)
    return subnormal if bits < 1024 else normal


@jit
def round_to_float16(x, noise):
    """Round a float32 in [0, 65504] down to float16, after adding noise.

    Args:
        x: float32.
        noise: int32, of which 2^24 are the step to the next float16.

    Returns:
        The bits of the float16, as uint16.
    """
    # Their exponents differ by 112.
    normal = ((to_bits(x) + (noise >> 11)) >> 13) - (112 << 10)
    part = np.float32(noise) * np.float32(2.0**-24)
    subnormal = np.int32(np.floor(x * np.float32(2.0**24) + part))
    # What is chosen is decided here: a large x has no subnormal in int32.
    return np.uint16(subnormal if x < np.float32(2.0**-14) else normal)


@jit
def mix(x):
    """Hash a uint32, as `keras_efficient.ops.uniform_noise` does."""
    x = np.uint32(x ^ (x >> np.uint32(16))) * np.uint32(2246822507)
    x = np.uint32(x)
    x = np.uint32(x ^ (x >> np.uint32(13))) * np.uint32(3266489909)
    x = np.uint32(x)
    return np.uint32(x ^ (x >> np.uint32(16)))
