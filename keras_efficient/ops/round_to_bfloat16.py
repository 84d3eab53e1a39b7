from keras import ops


def round_to_bfloat16(x):
    """Round float32 to the nearest number that bfloat16 holds, ties to even.

    A cast to bfloat16 and back says the same, but XLA leaves such a pair out
    on GPU and TPU (openxla/xla#41605), and then a step has computed with other
    numbers than the state holds. Whole numbers are not left out.

    Args:
        x: float32 tensor of finite numbers.

    Returns:
        float32 tensor of the same shape.
    """
    bits = ops.view(x, "int32")
    is_odd = ops.bitwise_and(ops.right_shift(bits, 16), 1)
    bits = ops.bitwise_and(bits + 0x7FFF + is_odd, -0x10000)
    return ops.view(bits, "float32")
