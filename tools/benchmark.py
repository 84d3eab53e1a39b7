"""Measure what the library costs and saves on this machine.

`python tools/benchmark.py reversible` compares reversible training with plain
training. `--help` after a name tells its options.
"""

import argparse
import sys

from benchmarks import convergence
from benchmarks import end_to_end
from benchmarks import existing
from benchmarks import existing_peaks
from benchmarks import methods
from benchmarks import optimizers
from benchmarks import peers
from benchmarks import published
from benchmarks import reversible
from benchmarks import schedules
from benchmarks import shards
from benchmarks import small_layers
from benchmarks import steps
from benchmarks import training_methods
from benchmarks import vocabulary
from benchmarks import volumes

BENCHMARKS = {
    "convergence": convergence,
    "end_to_end": end_to_end,
    "existing": existing,
    "existing_peaks": existing_peaks,
    "methods": methods,
    "optimizers": optimizers,
    "peers": peers,
    "published": published,
    "reversible": reversible,
    "schedules": schedules,
    "shards": shards,
    "small_layers": small_layers,
    "steps": steps,
    "training_methods": training_methods,
    "vocabulary": vocabulary,
    "volumes": volumes,
}


def main():
    options = {"formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = argparse.ArgumentParser(description=__doc__, **options)
    names = parser.add_subparsers(dest="benchmark", required=True)
    for name, benchmark in BENCHMARKS.items():
        summary = benchmark.__doc__.partition("\n")[0]
        benchmark.add_arguments(
            names.add_parser(
                name, help=summary, description=benchmark.__doc__, **options
            )
        )
    options = parser.parse_args()
    return BENCHMARKS[options.benchmark].main(options)


if __name__ == "__main__":
    sys.exit(main())
