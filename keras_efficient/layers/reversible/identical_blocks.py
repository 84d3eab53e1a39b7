"""Whether blocks differ in values only, so that one can stand for all."""

import keras


def check_identical(blocks):
    """Raise a `ValueError` unless one block can stand for all in a loop."""
    try:
        blueprints = [
            _without_names(keras.saving.serialize_keras_object(block))
            for block in blocks
        ]
    except NotImplementedError as error:
        raise ValueError(
            "`scan=True` compares the blocks by their configurations, and a "
            "layer among them has none. Define its `get_config`, or use "
            "`scan=False`."
        ) from error
    state = [
        id(v) for block in blocks for v in block.variables if not v.trainable
    ]
    if any(other != blueprints[0] for other in blueprints):
        problem = "differ in configuration or shapes"
    elif len(set(state)) < len(state):
        problem = "share a layer with state (Dropout, BatchNormalization)"
    else:
        return
    raise ValueError(
        "`scan=True` compiles the first block for all of them, so they must "
        f"be identical but for their values. Received blocks that {problem}: "
        f"{[block.name for block in blocks]}. Use `scan=False`."
    )


def _without_names(config):
    """Leave out of a serialized layer what tells it from its copies."""
    places = {}
    _number_names(config, places)
    return _replace_names(config, places)


def _number_names(config, places):
    if isinstance(config, dict):
        if isinstance(config.get("name"), str):
            places.setdefault(config["name"], f"name_{len(places)}")
        config = list(config.values())
    if isinstance(config, (list, tuple)):
        for value in config:
            _number_names(value, places)


def _replace_names(config, places):
    if isinstance(config, dict):
        return {
            key: _replace_names(value, places)
            for key, value in config.items()
            if key not in ("seed", "shared_object_id")
        }
    if isinstance(config, (list, tuple)):
        return [_replace_names(value, places) for value in config]
    # A functional model refers to its layers by name.
    return places.get(config, config) if isinstance(config, str) else config
