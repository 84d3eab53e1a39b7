"""Runs of 32 entries in instructions of their own.

LLVM makes vectors of long loops. One over 32 entries it unrolls instead, or
finds too short for the vectors it has chosen. Runs are of float32 and begin
anywhere in an array.
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
_FOUR = ir.VectorType(ir.FloatType(), 4)
_FOURS = ir.VectorType(ir.FloatType(), 4 * LENGTH)
_ZERO, _ONE, _TWO = ir.FloatType()(0.0), ir.FloatType()(1.0), ir.IntType(64)(2)
_float, _int, _bool = types.float32, types.int64, types.boolean


@intrinsic
def unpack(typingctx, codes, i, work, upper, lower, low, unit, fused):
    """Decode 32 bytes from `codes[i]` on to two runs, `low + step * unit`.

    The steps in the upper four bits go to `work[upper]` and on, those in the
    lower ones to `work[lower]`. One rounding instead of two if `fused`.
    """

    def codegen(context, builder, signature, args):
        run = Run(context, builder, signature, args)
        both = builder.zext(run.load(0, 1, _BYTES), _INTS)
        first = builder.lshr(both, _all(4))
        second = builder.and_(both, _all(15))
        unit, low = run.splat(6), run.splat(5)
        for steps, at in ((first, 3), (second, 4)):
            steps = builder.sitofp(steps, _FLOATS)
            run.store(2, at, run.multiply_add(steps, unit, low, args[7]))

    floats = _float, _float, _bool
    signature = types.void(codes, _int, work, _int, _int, *floats)
    return signature, _without_result(codegen)


@intrinsic
def pack(
    typingctx, work, upper, lower, codes, i, factor, low, scale, beyond, fused
):
    """Encode two runs to 32 bytes from `codes[i]` on.

    The steps are `scale * (factor * x - low)` plus noise, which stands
    `beyond` places after x, rounded down.
    """

    def codegen(context, builder, signature, args):
        run = Run(context, builder, signature, args)
        factor, low, scale = map(run.splat, (5, 6, 7))
        zero, last = (ir.Constant(_FLOATS, [x] * LENGTH) for x in (0.0, 15.0))
        steps = []
        for at in (1, 2):
            x = builder.fmul(factor, run.load(0, at))
            x = builder.fsub(x, low)
            noise = run.load_beyond(0, at, args[8])
            x = run.multiply_add(x, scale, noise, args[9])
            x = builder.select(builder.fcmp_ordered(">", x, zero), x, zero)
            x = builder.select(builder.fcmp_ordered("<", x, last), x, last)
            steps.append(builder.fptosi(x, _INTS))
        both = builder.or_(builder.shl(steps[0], _all(4)), steps[1])
        run.store(3, 4, builder.trunc(both, _BYTES))

    floats = _float, _float, _float, _int, _bool
    signature = types.void(work, _int, _int, codes, _int, *floats)
    return signature, _without_result(codegen)


@intrinsic
def noise(typingctx, work, at, start):
    """Write uniform noise, the hash of the uint32 `start` and those after."""

    def codegen(context, builder, signature, args):
        run = Run(context, builder, signature, args)
        x = run.splat(2, _INTS)
        x = builder.add(x, ir.Constant(_INTS, list(range(LENGTH))))
        for bits, factor in ((16, 2246822507), (13, 3266489909), (16, 1)):
            x = builder.xor(x, builder.lshr(x, _all(bits)))
            x = builder.mul(x, _all(factor))
        x = builder.sitofp(builder.lshr(x, _all(8)), _FLOATS)
        unit = ir.Constant(_FLOATS, [2.0**-24] * LENGTH)
        run.store(0, 1, builder.fmul(x, unit))

    signature = types.void(work, _int, types.uint32)
    return signature, _without_result(codegen)


@intrinsic
def add_to_window(typingctx, window, entry, x, w_1, w_2):
    """Add (w_1 x, w_2 x^2, w_2, 0) to the four numbers of an entry."""

    def codegen(context, builder, signature, args):
        run = Run(context, builder, signature, args)
        _, _, x, w_1, w_2 = args
        numbers = _four(builder, (w_1, w_2, w_2, _ZERO))
        for factors in ((x, x, _ONE, _ONE), (_ONE, x, _ONE, _ONE)):
            numbers = builder.fmul(numbers, _four(builder, factors))
        at = run.pointer(0, builder.shl(args[1], _TWO), _FOUR)
        sums = builder.fadd(builder.load(at, align=4), numbers)
        builder.store(sums, at, align=4)

    signature = types.void(window, _int, _float, _float, _float)
    return signature, _without_result(codegen)


@intrinsic
def take_from_window(typingctx, window, entry, taken, place):
    """Move the four numbers of an entry, and return the first one."""

    def codegen(context, builder, signature, args):
        run = Run(context, builder, signature, args)
        at = run.pointer(0, builder.shl(args[1], _TWO), _FOUR)
        numbers = builder.load(at, align=4)
        builder.store(ir.Constant(_FOUR, [0.0] * 4), at, align=4)
        to = run.pointer(2, builder.shl(args[3], _TWO), _FOUR)
        builder.store(numbers, to, align=4)
        return builder.extract_element(numbers, ir.IntType(32)(0))

    return types.float32(window, _int, taken, _int), codegen


@intrinsic
def adam_of_window(
    typingctx, taken, place, work, at, c_1, c_2, total, v_hat, epsilon
):
    """Write Adam's update of 32 entries that `take_from_window` moved.

    `free = max(total - held, 0)` is the weight of rows that hold no value.
    """

    def codegen(context, builder, signature, args):
        run = Run(context, builder, signature, args)
        numbers = run.pointer(0, builder.shl(args[1], _TWO), _FOURS)
        numbers = builder.load(numbers, align=4)
        z_1, z_2, held = (
            builder.shuffle_vector(
                numbers,
                ir.Constant(_FOURS, ir.Undefined),
                ir.Constant(_INTS, list(range(i, 4 * LENGTH, 4))),
            )
            for i in range(3)
        )
        c_1, c_2, total, v_hat, epsilon = map(run.splat, range(4, 9))
        zero = ir.Constant(_FLOATS, [0.0] * LENGTH)
        free = builder.fsub(total, held)
        # An entry that all rows hold leaves a rounding error.
        is_positive = builder.fcmp_ordered(">", free, zero)
        free = builder.select(is_positive, free, zero)
        z_2 = builder.fadd(z_2, builder.fmul(free, v_hat))
        root = run.call("llvm.sqrt", builder.fmul(z_2, c_2))
        u = builder.fmul(z_1, c_1)
        run.store(2, 3, builder.fdiv(u, builder.fadd(root, epsilon)))

    floats = (_float,) * 5
    signature = types.void(taken, _int, work, _int, *floats)
    return signature, _without_result(codegen)


def _four(builder, numbers):
    four = ir.Constant(_FOUR, ir.Undefined)
    for i, number in enumerate(numbers):
        four = builder.insert_element(four, number, ir.IntType(32)(i))
    return four


@intrinsic
def least(typingctx, work, first, second):
    """Return the least entry of two runs without NaN."""
    return _reduce(work, "<", "fmin")


@intrinsic
def greatest(typingctx, work, first, second):
    """Return the greatest entry of two runs without NaN."""
    return _reduce(work, ">", "fmax")


def _reduce(work, comparison, name):
    def codegen(context, builder, signature, args):
        run = Run(context, builder, signature, args)
        x, y = run.load(0, 1), run.load(0, 2)
        x = builder.select(builder.fcmp_ordered(comparison, x, y), x, y)
        return run.call(
            f"llvm.vector.reduce.{name}",
            x,
            result=_FLOATS.element,
            fastmath=("nnan",),
        )

    return _float(work, _int, _int), codegen


class Run:
    """Builds instructions on runs of the arrays among `args`."""

    def __init__(self, context, builder, signature, args):
        self.context, self.builder = context, builder
        self.types, self.args = signature.args, args

    def pointer(self, array, at, vector):
        made = arrayobj.make_array(self.types[array])
        made = made(self.context, self.builder, self.args[array])
        pointer = self.builder.gep(made.data, [at])
        return self.builder.bitcast(pointer, vector.as_pointer())

    def load(self, array, at, vector=_FLOATS):
        pointer = self.pointer(array, self.args[at], vector)
        return self.builder.load(pointer, align=1 if vector is _BYTES else 4)

    def load_beyond(self, array, at, distance):
        at = self.builder.add(self.args[at], distance)
        return self.builder.load(self.pointer(array, at, _FLOATS), align=4)

    def store(self, array, at, value):
        pointer = self.pointer(array, self.args[at], value.type)
        align = 1 if value.type is _BYTES else 4
        self.builder.store(value, pointer, align=align)

    def splat(self, index, vector=_FLOATS):
        undefined = ir.Constant(vector, ir.Undefined)
        first = ir.IntType(32)(0)
        x = self.builder.insert_element(undefined, self.args[index], first)
        return self.builder.shuffle_vector(x, undefined, _all(0))

    def multiply_add(self, x, y, z, fused):
        builder = self.builder
        once = self.call("llvm.fma", x, y, z)
        return builder.select(fused, once, builder.fadd(builder.fmul(x, y), z))

    def call(self, name, *args, result=_FLOATS, fastmath=()):
        function = cgutils.get_or_insert_function(
            self.builder.module,
            ir.FunctionType(result, [x.type for x in args]),
            f"{name}.v{LENGTH}f32",
        )
        return self.builder.call(function, args, fastmath=fastmath)


def _all(number):
    return ir.Constant(_INTS, [number] * LENGTH)


def _without_result(codegen):
    def with_dummy(context, builder, signature, args):
        codegen(context, builder, signature, args)
        return context.get_dummy_value()

    return with_dummy
