"""Run ruff, then the tests once for each backend.

`python tools/test.py` runs everything. `--quick` runs a subset, in minutes: the
tests with the marker `quick`, which make and call each public object once, and
look at one gradient, one measure of memory, runs that are taken up again, and
one kernel of each kind. `--backend jax` (may be repeated) chooses backends.
Further arguments go to pytest: `-m "not slow"` leaves out what takes more than
20 seconds, `tests/layers` runs one folder.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

BACKENDS = ("jax", "tensorflow", "torch")
# TensorFlow keeps what it has compiled, 10 GB in the end: parts of the tests
# run in processes of their own.
FOLDERS = ["tests/layers", "tests/conversion", "tests/models"]
PARTS = {
    "tensorflow": [
        FOLDERS[:1],
        FOLDERS[1:],
        [f"--ignore={folder}" for folder in FOLDERS],
    ]
}
ROOT = Path(__file__).resolve().parent.parent


def run(command, **environment):
    start = time.perf_counter()
    code = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env={**os.environ, **environment},
    ).returncode
    return code, time.perf_counter() - start


def run_tests(backend, arguments, cache):
    return run(
        ["pytest", "-q", *arguments],
        KERAS_BACKEND=backend,
        TF_CPP_MIN_LOG_LEVEL="3",
        # Threads that wait for each other spin; with as many processes as
        # cores they cost ten times what they do.
        OMP_NUM_THREADS="1",
        OMP_WAIT_POLICY="passive",
        # What one process has compiled serves all, also JAX's that the tests
        # of other backends start.
        JAX_COMPILATION_CACHE_DIR=cache,
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
        JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES="-1",
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--backend", choices=BACKENDS, action="append")
    parser.add_argument("--quick", action="store_true")
    options, pytest_arguments = parser.parse_known_args()

    results = {}
    if not pytest_arguments:
        results["ruff check"] = run(["ruff", "check", "."])
        results["ruff format"] = run(["ruff", "format", "--check", "."])
    # One process a core; each gets one thread's worth of work at a time.
    workers = ["-n", str(os.cpu_count()), "--dist", "worksteal"]
    if options.quick:
        pytest_arguments += ["-m", "quick"]
    with tempfile.TemporaryDirectory() as cache:
        for backend in options.backend or BACKENDS:
            print(f"\n===== {backend} =====", flush=True)
            parts = [[]] if pytest_arguments else PARTS.get(backend, [[]])
            runs = [
                run_tests(backend, [*workers, *pytest_arguments, *part], cache)
                for part in parts
            ]
            codes, seconds = zip(*runs)
            results[backend] = max(codes), sum(seconds)

    table = Table("", "result", "seconds")
    for name, (code, seconds) in results.items():
        passed = "passed" if code == 0 else f"FAILED (exit code {code})"
        table.add_row(name, passed, f"{seconds:.0f}")
    Console().print(table)
    return any(code for code, _ in results.values())


if __name__ == "__main__":
    sys.exit(main())
