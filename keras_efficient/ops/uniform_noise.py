import math

from keras import ops


def uniform_noise(shape, step, seed):
    """Hash (step, seed, position) to float32 numbers in [0, 1).

    A counter instead of a generator: the same numbers on every backend and
    device, and again after a restart, without state. The mixing is the
    finalizer of MurmurHash3, in int32 arithmetic that wraps around.
    """
    places = ops.arange(math.prod(shape), dtype="int32")
    return ops.reshape(noise_at(places, step, seed), shape)


def noise_at(places, step, seed):
    """Return `uniform_noise` at some positions, an int32 tensor."""
    x = hashes(places, step, seed)
    return ops.cast(_shift(x, 8), "float32") * 2.0**-24


def hashes(places, step, seed):
    """Hash (step, seed, position) to int32 numbers, one for each position."""
    return _mix(places + _mix(step + _mix(ops.cast(seed, "int32"))))


def uniform_noises(sizes, step):
    """Return `uniform_noise((size,), step, seed)` of each, one after another.

    Args:
        sizes: Dict from seeds to sizes, both integers. A range may take the
            place of a size, the positions of a shard in its whole tensor; or,
            if there is one seed, an int32 tensor of them.
        step: int32 tensor.

    Returns:
        float32 tensor of shape `(sum(sizes.values()),)`.
    """
    if len(sizes) == 1:
        ((seed, size),) = sizes.items()
        if isinstance(size, range):
            size = size.start + ops.arange(len(size), dtype="int32")
        if not isinstance(size, int):
            return noise_at(ops.reshape(size, (-1,)), step, seed)
        return uniform_noise((size,), step, seed)
    seeds, ranges = list(sizes), [_as_range(x) for x in sizes.values()]
    sizes = [len(x) for x in ranges]
    starts = [sum(sizes[:i]) - x.start for i, x in enumerate(ranges)]
    keys = _mix(step + _mix(ops.convert_to_tensor(seeds, "int32")))
    keys = keys - ops.convert_to_tensor(starts, "int32")
    keys = ops.repeat(keys, ops.convert_to_tensor(sizes, "int32"))
    x = _mix(ops.arange(sum(sizes), dtype="int32") + keys)
    return ops.cast(_shift(x, 8), "float32") * 2.0**-24


def _as_range(x):
    return range(x) if isinstance(x, int) else x


def _mix(x):
    x = ops.bitwise_xor(x, _shift(x, 16)) * -2048144789
    x = ops.bitwise_xor(x, _shift(x, 13)) * -1028477387
    return ops.bitwise_xor(x, _shift(x, 16))


def _shift(x, bits):
    """Shift right without copies of the sign bit."""
    return ops.bitwise_and(ops.right_shift(x, bits), (1 << (32 - bits)) - 1)
