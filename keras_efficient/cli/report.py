import importlib
import json
import sys
from pathlib import Path

import keras
from keras import ops
from rich.console import Console

from keras_efficient.conversion.arguments import as_bytes
from keras_efficient.utils import memory_report


def report(options):
    """Print where the memory of a saved model goes."""
    if options.plan and not options.budget:
        raise ValueError("A plan is made for a budget: add --budget 8GiB, say.")
    # As `python` does: modules beside the user, not beside this command.
    sys.path.insert(0, "")
    for module in options.modules:
        importlib.import_module(module)
    console = Console(stderr=True)
    with console.status(f"Loading {options.model} ..."):
        model = load(options.model)
    batch = batch_of(
        model, options.batch_size, options.sequence_length, options.shape
    )
    with console.status("Measuring ..."):
        found = memory_report(model, batch, budget=options.budget, verbose=0)
    if options.json:
        print(json.dumps(found.as_dict(), indent=1))
    elif options.plan:
        print("\n".join(found.plan.lines))
    else:
        Console().print(found)
    if options.plot:
        found.plot(options.plot)
    if options.plan:
        return int(not found.plan.fits)
    largest = [usage.largest_batch for usage in found.usage.values()]
    return int(options.budget is not None and not any(largest))


def load(path):
    """Load a model, in the safe mode of Keras.

    Legacy files (`.h5`) may be compiled with what Keras 3 does not find; the
    model is loaded without that, and has no optimizer.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"There is no file {path}")
    try:
        return keras.saving.load_model(path)
    except Exception as error:
        if Path(path).suffix not in (".h5", ".hdf5"):
            raise ValueError(_why_not_loaded(path, error)) from error
    try:
        model = keras.saving.load_model(path, compile=False)
    except Exception as error:
        raise ValueError(_why_not_loaded(path, error)) from error
    print(f"note: {path} was loaded without its optimizer", file=sys.stderr)
    return model


def _why_not_loaded(path, error):
    text = str(error) or type(error).__name__
    if "Could not locate" in text or "not registered" in text.lower():
        text += " Name the module that defines it: --import MODULE."
    elif "not found" in text.lower():
        text = "it is neither a .keras file nor a legacy .h5 file"
    return f"{path} cannot be loaded as a model: {text}"


def batch_of(model, batch_size, sequence_length=None, shapes=()):
    """Return a batch of zeros.

    Args:
        model: A Keras model.
        batch_size: Integer.
        sequence_length: Integer, in the place of axes of unknown size.
        shapes: For each input its shape without the batch, in the order of
            `model.inputs`. Needed where the model does not know them.
    """
    specs = getattr(model, "inputs", None) or []
    if shapes and specs and len(shapes) != len(specs):
        raise ValueError(
            f"The model has {len(specs)} inputs. Give --shape as often, in "
            f"their order. Received: {len(shapes)} shapes"
        )
    if not specs:
        if len(shapes) != 1:
            raise ValueError(
                f"Model '{model.name}' does not know its inputs. Give the "
                "shape of an example: --shape 224,224,3"
            )
        return ops.zeros((batch_size, *shapes[0]))
    found = []
    for i, spec in enumerate(specs):
        shape = shapes[i] if shapes else spec.shape[1:]
        shape = [sequence_length if n is None else n for n in shape]
        if None in shape:
            raise ValueError(
                f"Input '{spec.name}' has shape {tuple(spec.shape)}. Give "
                "--sequence-length 512, say, for what is unknown, or its whole "
                "shape without the batch: --shape 224,224,3"
            )
        found.append(ops.zeros((batch_size, *shape), spec.dtype))
    try:
        structure = model.input
    except AttributeError:  # a Sequential
        structure = specs[0]
    return keras.tree.pack_sequence_as(structure, found)


def gib(text):
    """Return how many GiB "8GiB" or "500MB" are."""
    if text.strip().replace(".", "", 1).isdigit():
        raise ValueError(f"{text} of what? Write {text}GiB or {text}MiB, say")
    try:
        return as_bytes(text) / 2**30
    except ValueError:
        raise ValueError(
            f"{text!r} is not a number of bytes such as 8GiB or 500MiB"
        ) from None
