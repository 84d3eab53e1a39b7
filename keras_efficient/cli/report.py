import json

import keras
from rich.console import Console

from keras_efficient.utils import memory_report


def report(options):
    """Print where the memory of a saved model goes."""
    console = Console(stderr=True)
    with console.status(f"Loading {options.model} ..."):
        model = keras.saving.load_model(options.model)
    with console.status("Measuring ..."):
        found = memory_report(
            model, options.batch_size, budget=options.budget, verbose=0
        )
    if options.json:
        print(json.dumps(found.as_dict(), indent=1))
    else:
        Console().print(found)
    if options.plot:
        found.plot(options.plot)
    largest = [usage.largest_batch for usage in found.usage.values()]
    return int(options.budget is not None and not any(largest))
