"""Variables that are divided among devices, and steps on their shards."""

import math

import jax
import jax.numpy as jnp
import keras
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec


def own_sharding(variable):
    """Return the mesh of a variable, and the names of mesh axes by axis.

    Returns:
        Pair of a `jax.sharding.Mesh` and a list with a tuple of names for each
        axis; `None` without `keras.distribution`.
    """
    distribution = keras.distribution.distribution()
    if distribution is None:
        return None
    layout = distribution.get_variable_layout(variable)
    sharding = getattr(layout, "backend_layout", layout)
    if not isinstance(sharding, NamedSharding):
        return None
    names = [_as_tuple(name) for name in sharding.spec]
    names += [() for _ in range(len(variable.shape) - len(names))]
    return sharding.mesh, names


def _as_tuple(name):
    if name is None:
        return ()
    return (name,) if isinstance(name, str) else tuple(name)


def sharding_of(mesh, names):
    """Return the sharding of a tensor, by the names of mesh axes by axis."""
    return NamedSharding(mesh, _spec(names))


def _spec(names):
    return PartitionSpec(*[tuple(name) or None for name in names])


def on_shards(step, mesh, tensors, names, results, scalars):
    """Return `step(tensors, scalars)`, done by each device on its shards.

    Args:
        step: Function that returns a list of tensors. All may be `None`.
        mesh: `jax.sharding.Mesh`.
        tensors: List of tensors.
        names: For each of them the names of mesh axes, by axis.
        results: The same for what is returned.
        scalars: List of tensors that each device has whole.
    """
    return jax.shard_map(
        step,
        mesh=mesh,
        in_specs=([_spec(name) for name in names], PartitionSpec()),
        out_specs=[_spec(name) for name in results],
        check_vma=False,  # of what comes out of a kernel
    )(tensors, scalars)


def places_on_shard(mesh, shape, names):
    """Return where the entries of a shard are in the whole, flattened tensor.

    For within `on_shards`.

    Args:
        mesh: `jax.sharding.Mesh`.
        shape: Shape of the whole tensor.
        names: Names of mesh axes, by axis.

    Returns:
        int32 tensor of the shape of the shard.
    """
    places = jnp.zeros((), "int32")
    for size, axes in zip(shape, names):
        local = size // math.prod(mesh.shape[name] for name in axes)
        first = jax.lax.axis_index(tuple(axes)) * local if axes else 0
        places = places[..., None] * size + first + jnp.arange(local)
    return places.astype("int32")


def constrained(x, mesh, names):
    """Return a tensor that is laid out so."""
    return jax.lax.with_sharding_constraint(x, sharding_of(mesh, names))


def whole(variable):
    """Return all of a variable, as an array. All processes must ask for it."""
    x = variable.value
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        from jax.experimental.multihost_utils import process_allgather

        x = process_allgather(x, tiled=True)
    return keras.ops.convert_to_numpy(x)
