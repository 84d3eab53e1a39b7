"""Train the model of `guides/one_billion_parameters.py` on a GPU with 8 GiB.

`python -m benchmarks.billion_worker cuda --size 1B result.json`. What may be
taken is set before the model is built: more is an error. On JAX that is a
fraction of the card in an environment variable, so the process starts again.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

from benchmarks.process import ROOT

GIB = 2**30
FRACTION = "XLA_PYTHON_CLIENT_MEM_FRACTION"


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("device", choices=("cuda", "cpu"))
    parser.add_argument("--size", default="1B", help="of the guide")
    parser.add_argument("--length", type=int, default=512, help="tokens")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--limit", type=float, default=8.0, help="GiB")
    parser.add_argument("output", type=Path)
    return parser.parse_args()


def allow(backend, limit):
    """Let this process take so many bytes of the card, and no more."""
    if backend == "torch":
        import torch

        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(limit / total)
    elif backend == "jax" and FRACTION not in os.environ:
        query = ["--query-gpu=memory.total", "--format=csv,noheader,nounits"]
        found = subprocess.check_output(["nvidia-smi", *query], text=True)
        os.environ[FRACTION] = str(limit / (float(found.split()[0]) * 2**20))
        module = [sys.executable, "-m", "benchmarks.billion_worker"]
        os.execv(sys.executable, [*module, *sys.argv[1:]])


def peak_of_card(backend):
    if backend == "torch":
        import torch

        return torch.cuda.max_memory_reserved()
    import jax

    return jax.local_devices()[0].memory_stats()["peak_bytes_in_use"]


def guide():
    path = ROOT / "guides" / "one_billion_parameters.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main():
    options = parse_arguments()
    if importlib.util.find_spec("keras_hub") is None:
        found = {"not installed": "keras_hub"}
        options.output.write_text(json.dumps(found))
        return
    backend = os.environ["KERAS_BACKEND"]
    if options.device == "cuda":
        allow(backend, options.limit * GIB)
    # The limit of the guide is one of the operating system's memory.
    asked = {**vars(options), "limit": 0, "batch_size": 1, "part": 1.0}
    asked |= {"learning_rate": 1e-3, "preset": None, "files": False}
    found = guide().measure("efficient", SimpleNamespace(**asked))
    if options.device == "cuda":
        found["peak"] = peak_of_card(backend)
    # The first step compiles.
    seconds = statistics.median(found["seconds"][1:])
    found.update(
        size=options.size,
        limit=options.limit * GIB,
        tokens_a_second=options.length / seconds,
    )
    options.output.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
