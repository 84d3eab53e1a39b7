"""Groups of variables, named by the layers that they are of."""

import keras

from keras_efficient.optimizers.excluded import is_end
from keras_efficient.optimizers.names import path_of


def layer_names(argument, entries):
    """Return a list of names of layers, for a config.

    Args:
        argument: String, the name of the argument that they are given as.
        entries: A string or a `keras.layers.Layer`, or a list of them.
    """
    if isinstance(entries, (str, keras.layers.Layer)):
        entries = [entries]
    names = [
        (entry.path or entry.name)
        if isinstance(entry, keras.layers.Layer)
        else entry
        for entry in entries
    ]
    if not names or not all(isinstance(x, str) and x for x in names):
        raise ValueError(
            f"`{argument}` must have names of layers, or layers. "
            f"Received: {entries}"
        )
    return names


def find_groups(argument, groups, variables, record=None):
    """Return for each variable the index of its group, `None` for none.

    A name stands for what it is a part of the path of, in whole steps:
    `"block_1"` is in `"model/block_1/dense/kernel"`, and not in
    `"model/block_10/dense/kernel"`. Paths do not hold when a model is loaded,
    hence the record (see `find_excluded`).

    Args:
        argument: String, the name of the argument that the groups are.
        groups: List of lists of strings.
        variables: List of variables.
        record: What `groups_record` returned, or `None`.

    Raises:
        ValueError: a variable is in two groups, or a group has none.
    """
    if record and _holds(record, variables):
        places = {int(i): place for i, (place, _) in record["paths"].items()}
        return [places.get(i) for i in range(len(variables))]
    found = []
    for variable in variables:
        path = path_of(variable)
        places = [
            place
            for place, names in enumerate(groups)
            if any(f"/{name.strip('/')}/" in f"/{path}/" for name in names)
        ]
        if len(places) > 1:
            raise ValueError(
                f"`{argument}` must not overlap. Received: '{path}' is in "
                f"{[groups[place] for place in places]}. Give longer paths."
            )
        found.append(places[0] if places else None)
    for place, names in enumerate(groups):
        if place not in found:
            paths = [path_of(variable) for variable in variables]
            raise ValueError(
                f"`{argument}` must name layers with trainable variables. "
                f"Received: {names}, of which there is none among the paths "
                f"{paths[:8]}{' and so on' if len(paths) > 8 else ''}."
            )
    return found


def groups_record(variables, found):
    """Return what `find_groups` found, for a config."""
    paths = {
        str(i): [place, path_of(variable)]
        for i, (variable, place) in enumerate(zip(variables, found))
        if place is not None
    }
    return {"variables": len(variables), "paths": paths}


def _holds(record, variables):
    return record["variables"] == len(variables) and all(
        is_end(path_of(variables[int(i)]), path)
        for i, (_, path) in record["paths"].items()
    )
