"""What `check_gpu.py` runs: processes, the most telling ones first."""

import shlex
import sys
from collections.abc import Callable
from typing import NamedTuple

from benchmarks import gpu_rows
from benchmarks.optimizers_bounds import FUSED
from benchmarks.process import ROOT

BACKENDS = ("torch", "jax", "tensorflow")
ROWS = {
    "optimizers": gpu_rows.of_optimizers,
    "published": gpu_rows.of_published,
    "reversible": gpu_rows.of_reversible,
}
ALWAYS = {
    "optimizers": "--workload matrices --steps 5 --only MicroAdam "
    f"--only Adam8bit --only '{FUSED}' --only 'torchao AdamW8bit' "
    "--only 'bitsandbytes AdamW8bit'",
    "published": "",
    "reversible": "--deeper 4 --steps 7",
}
# Backend, seconds to expect, arguments of `benchmark.py`.
CUDA = (
    ("torch", 20, "optimizers --size 100 --dtype bfloat16"),
    ("torch", 45, "published --network gpt2-124m"),
    ("torch", 30, "reversible --kind transformer --scale 8"),
    ("torch", 30, "optimizers --size 1000 --dtype bfloat16"),
    ("jax", 25, "optimizers --size 100 --dtype float32"),
    ("torch", 90, "published --network gpt2-774m"),
    ("torch", 30, "optimizers --size 1000 --dtype float32"),
    ("torch", 30, "reversible --kind conv --scale 8"),
    ("torch", 30, "published --network revcol-tiny"),
    ("jax", 40, "reversible --kind transformer --scale 8 --depth 8"),
    ("jax", 35, "optimizers --size 1000 --dtype bfloat16"),
    ("torch", 20, "optimizers --size 100 --dtype float32"),
    ("jax", 25, "optimizers --size 100 --dtype bfloat16"),
    ("jax", 35, "optimizers --size 1000 --dtype float32"),
    ("jax", 40, "reversible --kind conv --scale 8 --depth 8"),
    ("jax", 90, "published --network gpt2-124m"),
)
TWO = "--contender 'plain, AdamW' --contender 'reversible, MicroAdam'"
CPU = tuple(
    (backend, 5, words)
    for words in (
        "optimizers --size 0.2 --dtype float32",
        "reversible --kind transformer --scale 0.1 --depth 2",
        f"published --network gpt2-trial --network revcol-trial "
        f"--batch-size 2 --steps 2 {TWO}",
    )
    for backend in ("torch", "jax")
)


class Task(NamedTuple):
    """A process, and how to read what it found.

    Attributes:
        name: String, for the table.
        backend: String.
        command: List of strings; the name of a JSON file to write comes last.
        seconds: Expected on an H100. With less left it is not begun.
        rows: Function from what is in the file, and the device, to rows.
            `None`: exit code 0 is all.
        alone: Boolean. Whether nothing may run beside it, for its times.
    """

    name: str
    backend: str
    command: list
    seconds: int
    rows: Callable | None = None
    alone: bool = True


def tasks(device):
    """Return the list of tasks for "cuda" or "cpu"."""
    found = kernel_scripts() if device == "cuda" else []
    found += [checks(backend, device) for backend in BACKENDS]
    found.append(billion("torch", device, 45))
    for backend, seconds, words in CUDA if device == "cuda" else CPU:
        found.append(benchmark(backend, device, seconds, words))
    found.append(billion("jax", device, 140))  # two minutes of which compile
    return found


def kernel_scripts():
    """The CUDA tests of the Triton kernels: scripts that pytest starts too."""
    return [
        Task(
            name=f"{script.relative_to(ROOT)} cuda",
            backend="torch",
            command=[sys.executable, str(script), "cuda"],
            seconds=60,
            alone=False,
        )
        for script in sorted((ROOT / "tests" / "kernels").rglob("*_run.py"))
        if "cuda" in script.read_text()
    ]


def checks(backend, device):
    module = "benchmarks.gpu_checks"
    return Task(
        name=module,
        backend=backend,
        command=[sys.executable, "-m", module, device],
        seconds=60 if device == "cuda" else 10,
        rows=gpu_rows.of_checks,
        alone=False,
    )


def billion(backend, device, seconds):
    """All weights of a model of a billion, with 8 GiB of the card."""
    module = "benchmarks.billion_worker"
    command = [sys.executable, "-m", module, device]
    if device == "cpu":
        command += ["--size", "3M", "--length", "16", "--steps", "4"]
    return Task(
        name=module,
        backend=backend,
        command=command,
        seconds=seconds if device == "cuda" else 20,
        rows=gpu_rows.of_billion,
    )


def benchmark(backend, device, seconds, words):
    name = words.partition(" ")[0]
    command = [sys.executable, str(ROOT / "tools" / "benchmark.py")]
    command += shlex.split(f"{words} {ALWAYS[name]}")
    command += ["--backend", backend, "--device", device, "--output"]
    return Task(words, backend, command, seconds, rows=ROWS[name])
