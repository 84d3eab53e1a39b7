"""Nested lists, tuples and dictionaries of tensors.

`keras.tree` does the same, in more time than the engine has: it would call it
a dozen times for each sub-layer and step (`guides/benchmarks.md`).
"""


def flatten(structure):
    """List the leaves; `None` is one."""
    leaves = []
    _flatten(structure, leaves)
    return leaves


def _flatten(structure, leaves):
    if isinstance(structure, dict):
        structure = structure.values()
    elif not isinstance(structure, (list, tuple)):
        leaves.append(structure)
        return
    for part in structure:
        _flatten(part, leaves)


def pack(structure, leaves):
    """Put `leaves` in the place of those of `structure`."""
    leaves = iter(leaves)
    return map_structure(lambda _: next(leaves), structure)


def map_structure(fn, structure, *others):
    """Apply `fn` leaf by leaf to structures of one shape."""
    if isinstance(structure, dict):
        return {
            key: map_structure(fn, structure[key], *[x[key] for x in others])
            for key in structure
        }
    if isinstance(structure, (list, tuple)):
        parts = [map_structure(fn, *x) for x in zip(structure, *others)]
        if isinstance(structure, list):
            return parts
        if hasattr(structure, "_fields"):  # a named tuple
            return type(structure)(*parts)
        return tuple(parts)
    return fn(structure, *others)


def skeleton(structure):
    """The nesting of `structure` alone: it keeps no tensor alive."""
    return map_structure(lambda _: 0, structure)
