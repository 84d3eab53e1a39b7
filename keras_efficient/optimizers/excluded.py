import re

from keras_efficient.optimizers.names import path_of


def find_excluded(patterns, variables, record=None):
    """Return for each variable whether its path matches one of the patterns.

    Paths do not hold: a model that is loaded builds its layers outside of
    itself, and `"encoder/dense/kernel"` is then `"dense/kernel"`. What was
    excluded when the optimizer was built is therefore kept with its config,
    as `record_of` returns it, and holds as long as the variables may be those.

    Args:
        patterns: List of regular expressions.
        variables: List of variables.
        record: What `record_of` returned, or `None`. Defaults to `None`.

    Returns:
        List of booleans.
    """
    if record and record["variables"] == len(variables):
        paths = {int(i): path for i, path in record["paths"].items()}
        if all(
            is_end(path_of(variables[i]), path) for i, path in paths.items()
        ):
            return [i in paths for i in range(len(variables))]
    return [
        any(re.search(pattern, path_of(variable)) for pattern in patterns)
        for variable in variables
    ]


def record_of(variables, excluded):
    """Return which variables were excluded, for a config; `None` for none."""
    paths = {
        str(i): path_of(variable)
        for i, variable in enumerate(variables)
        if excluded[i]
    }
    return {"variables": len(variables), "paths": paths} if paths else None


def is_end(path, of):
    """Whether one path is the end of the other: a loaded model has less."""
    return of == path or of.endswith(f"/{path}") or path.endswith(f"/{of}")
