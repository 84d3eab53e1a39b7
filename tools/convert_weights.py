"""Convert published PyTorch weights to a file for `load_weights`.

`python tools/convert_weights.py revbifpn|revcol|revvit FILE.pth
OUT.weights.h5` reads a state dict of the authors' code of RevBiFPN, RevCol or
Rev-ViT (SlowFast), finds out the sizes of the network, builds it with
`keras_efficient.models` and saves its weights. It prints the call that loads
them. No code in the file is run (`tools/published/torch_file.py`). Keys that
are missing or left over, and tensors of other shapes, are named.

No weights have been published that a reversible language model of this library
could load: `models.hub.to_reversible` makes one of KerasHub's, and
`models.ReversibleCausalLM` starts from random values.
"""

import argparse
import re
import sys

import numpy as np
from published import rev_bifpn
from published import rev_col
from published import rev_vit
from published import torch_file

from keras_efficient import models

FAMILIES = {"revbifpn": rev_bifpn, "revcol": rev_col, "revvit": rev_vit}
CONTAINERS = "model", "model_state", "state_dict"
SHOWN = 8  # keys in an error


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("family", choices=FAMILIES)
    parser.add_argument("file", help="of `torch.save`")
    parser.add_argument("out", help="ends in .weights.h5")
    parser.add_argument(
        "--key",
        help="where in the file the state dict is, such as state_dict_ema; "
        f"otherwise the first of {', '.join(CONTAINERS)}, or the file itself",
    )
    parser.add_argument(
        "--num-heads",
        type=int,
        help="of a Rev-ViT, whose tensors do not tell; otherwise one for each "
        "64 units",
    )
    options = parser.parse_args(arguments)
    if not options.out.endswith(".weights.h5"):
        parser.error(f"OUT must end in .weights.h5. Received: {options.out}")
    try:
        state = load(options.file, options.key)
        model, call = convert(options.family, state, options.num_heads)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"error: {error}")
    model.save_weights(options.out)
    print(f"model = keras_efficient.models.{call}")
    print(f"model.load_weights({options.out!r})")


def load(path, key=None):
    """Return the state dict in a file, a dictionary of arrays."""
    found = torch_file.read(path)
    if not isinstance(found, dict):
        raise ValueError(f"'{path}' holds no state dict, but {type(found)}")
    if key is None:
        held = [k for k in CONTAINERS if isinstance(found.get(k), dict)]
        found = found[held[0]] if held else found
    elif isinstance(found.get(key), dict):
        found = found[key]
    else:
        raise ValueError(f"'{path}' has no {key}, but {list(found)[:SHOWN]}")
    return {
        str(k).removeprefix("module."): x
        for k, x in found.items()
        if isinstance(x, np.ndarray) and not _counts_batches(k)
    }


def convert(family, state, num_heads=None):
    """Build the network of a state dict.

    Args:
        family: A key of `FAMILIES`.
        state: Dictionary of arrays.
        num_heads: Integer or `None`, of a transformer.

    Returns:
        The model, its variables at the values of `state`, and the call that
        builds such a model, a string.

    Raises:
        ValueError: `state` is not that of such a network.
    """
    family = FAMILIES[family]
    try:
        config = family.arguments(state, num_heads)
    except (IndexError, KeyError) as error:
        raise ValueError(
            f"this is no state dict of {family.NAME}: {error} is missing. It "
            f"has {len(state)} tensors, such as {list(state)[:SHOWN]}"
        ) from error
    model = getattr(models, family.NAME)(**config)
    places = [*family.weights(model)]
    _check_keys(state, [key for _, key, _ in places], family)
    if len(places) != len(model.weights):
        raise RuntimeError("Some variables have no key.")
    for variable, key, turn in places:
        _fill(variable, key, state[key], turn)
    settings = "".join(f"    {name}={x!r},\n" for name, x in config.items())
    return model, f"{family.NAME}(\n{settings})"


def _check_keys(state, keys, family):
    unused = getattr(family, "UNUSED", "$^")
    left = [k for k in state if k not in keys and not re.fullmatch(unused, k)]
    missing = [k for k in keys if k not in state]
    for problem, found in (("are missing", missing), ("are unknown", left)):
        if found:
            rest = ", ..." if len(found) > SHOWN else ""
            raise ValueError(
                f"{len(found)} tensors of {family.NAME} {problem}: "
                f"{', '.join(found[:SHOWN])}{rest}"
            )


def _fill(variable, key, value, turn):
    shape = tuple(variable.shape)
    try:
        turned = turn(value)
    except ValueError:  # another number of axes
        turned = value
    if turned.shape != shape:
        raise ValueError(
            f"'{key}' has to fill a variable of shape {shape}. Received: "
            f"shape {value.shape}"
        )
    if not np.all(np.isfinite(turned)):
        raise ValueError(f"'{key}' holds NaN or infinity")
    variable.assign(np.array(turned, "float32"))


def _counts_batches(key):
    return str(key).endswith("num_batches_tracked")


if __name__ == "__main__":
    main()
