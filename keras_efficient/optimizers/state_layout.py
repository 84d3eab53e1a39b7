"""Where the state of a variable lies under `keras.distribution`, on JAX.

State is divided as its variable is. Mesh axes that divide the variable in a
place where they cannot divide the state go to the first axis of the state that
they divide. So do, with `zero`, those that do not divide the variable at all:
ZeRO-1. What no axis divides is on every device.
"""

import math

from keras_efficient import backend
from keras_efficient.ops.quantize_8bit import GROUP_SIZE
from keras_efficient.ops.quantize_8bit import is_along_last
from keras_efficient.ops.quantize_8bit import scale_shape


class Shards:
    """The blocks of a variable on devices, which step on what they have.

    Args:
        variable: `keras.Variable`.
        blocks: Shape of its blocks. Its axes are the first ones of the variable
            or, at the end, hold several of them.
        view: Shape of the variable in which it is divided as its blocks are.
        zero: Boolean, whether unused mesh axes divide it, too.
        parts: What has to divide by the parts along each axis of blocks.
            Defaults to `blocks`.
    """

    def __init__(self, variable, blocks, view, zero, parts=None):
        self.mesh, self.own = backend.shards.own_sharding(variable)
        self.shape, self.view = tuple(variable.shape), tuple(view)
        self.blocks = tuple(blocks)
        sizes = dict(self.mesh.shape)
        self.names = _divided(parts or blocks, self.own, sizes, zero)
        # Whether there is nothing that is left whole against what was asked.
        self.is_divided = any(self.names) or not (any(self.own) or zero)

    def layout(self, before=0):
        """Return the layout of state with so many axes before the blocks'."""
        names = [*[()] * before, *self.names]
        return backend.shards.sharding_of(self.mesh, names)

    def run(self, step, value, correction, gradient, state, befores, scalars):
        """Do a step on each shard.

        Args:
            step: Function of a list of value, correction, gradient and state
                and of a list of scalars. It returns the first without the
                gradient.
            value: Tensor, as is `gradient`.
            correction: Tensor or `None`.
            gradient: Tensor.
            state: List of tensors.
            befores: For each of the state, how many axes it has before those
                of blocks; `None` if it is not divided.
            scalars: List of scalar tensors.

        Returns:
            Value, correction or `None`, and list of the state.
        """
        tensors = [
            x if x is None else x.reshape(self.view)
            for x in (value, correction, gradient)
        ]
        names = [
            [] if before is None else [*[()] * before, *self.names]
            for before in befores
        ]
        value, correction, *state = backend.shards.on_shards(
            step,
            self.mesh,
            [*tensors, *state],
            [self.names, self.names, self.names, *names],
            [self.names, self.names, *names],
            scalars,
        )
        return self._back(value), self._back(correction), state

    def _back(self, x):
        if x is None:
            return None
        x = x.reshape(self.shape)
        return backend.shards.constrained(x, self.mesh, self.own)

    def places(self):
        """Return where the blocks of a shard are in all; within a step."""
        return backend.shards.places_on_shard(
            self.mesh, self.blocks, self.names
        )

    def entries(self):
        """Return where the entries of a shard are in all; within a step."""
        names = [*self.names, *[()] * (len(self.view) - len(self.names))]
        return backend.shards.places_on_shard(self.mesh, self.view, names)


def is_distributed(variable):
    """Return whether there is a layout for the state of a variable."""
    shards = backend.shards
    return bool(shards and shards.own_sharding(variable))


def state_layout(variable, shape, zero=False, places=()):
    """Return the layout of state of a variable.

    That is said, not left to Keras, which looks for the path of a variable
    without layout in the `LayoutMap`: there `".*kernel.*"`, meant for a matrix,
    matches its state of any rank, too.

    Args:
        variable: `keras.Variable`.
        shape: Shape of the state. That of the variable is divided as it is.
        zero: Boolean, whether unused mesh axes divide it, too.
        places: Axes of state of another shape that may be divided; `None` for
            state that is on every device, whatever its shape. Defaults to `()`.

    Returns:
        `jax.sharding.NamedSharding`, or `None` without a distribution.
    """
    if not is_distributed(variable):
        return None
    mesh, own = backend.shards.own_sharding(variable)
    sizes = dict(mesh.shape)
    if places is not None and tuple(shape) == tuple(variable.shape):
        return backend.shards.sharding_of(
            mesh, _divided(shape, own, sizes, zero)
        )
    shape = [n if i in (places or ()) else 1 for i, n in enumerate(shape)]
    return backend.shards.sharding_of(mesh, _divided(shape, own, sizes, zero))


def code_shards(variable, zero):
    """Return the `Shards` of groups of 32; `None` where these are not whole."""
    shape = tuple(variable.shape)
    if not math.prod(shape) or not is_distributed(variable):
        return None
    groups = parts = scale_shape(shape)
    if not is_along_last(shape):
        # Whole groups of the flattened tensor are in so many rows.
        rows = GROUP_SIZE // math.gcd(math.prod(shape[1:]), GROUP_SIZE)
        parts = (shape[0] // rows if shape[0] % rows == 0 else 1,)
    elif shape[-1] % GROUP_SIZE:  # the last group of a row is not full
        parts = (*groups[:-1], 1)
    shards = Shards(variable, groups, shape, zero, parts)
    return shards if shards.is_divided else None


def _divided(shape, own, sizes, zero):
    """Return which mesh axes divide each axis of a shape, a list of tuples.

    Args:
        shape: Tuple of integers.
        own: List of the names of mesh axes that divide each axis of the
            variable.
        sizes: Dict from the names of mesh axes to their sizes.
        zero: Boolean, whether those that are not in `own` divide it, too.
    """
    names = [() for _ in shape]

    def put(name, places):
        for i in places:
            parts = math.prod(sizes[n] for n in names[i]) * sizes[name]
            if shape[i] and shape[i] % parts == 0:
                names[i] += (name,)
                return True
        return False

    left = [
        name
        for i, axes in enumerate(own)
        for name in axes
        if not put(name, range(len(shape))[i : i + 1])
    ]
    if zero:
        used = {name for axes in own for name in axes}
        left += [name for name in sizes if name not in used]
    for name in left:
        put(name, range(len(shape)))
    return names
