"""Show all that a GPU is to show, unattended: PASS or FAIL a row.

`python tools/check_gpu.py` takes at most 8 minutes of one card (`--minutes`).
It checks kernels, gradients and random numbers, then measures optimizers,
reversible runs, GPT-2 and RevCol, the most telling first. Each task is a
process of its own, which may crash or run out of memory alone. At the end one
table tells what must hold, what was found, and the verdict:

- PASS: it holds, or it ran where nothing is bounded;
- FAIL: it does not, or it crashed; the reason follows;
- SKIPPED: not tried, and why: no time left, a package that is not installed.

The JSON file (`--output`, written after each task) has the rows, the names of
the card and versions, and all that the benchmarks found, round by round. The
exit code is 0 if nothing failed and something passed. `--device cpu` runs tiny
sizes, to test this script.

It needs one of PyTorch (with Triton) and JAX, or both, each built for CUDA;
TensorFlow is asked too where it is. pytest is not needed. On a machine that
has these and no network, bring the wheels of keras and of what it needs:
absl-py, h5py, ml-dtypes, namex, numpy, optree, packaging and rich. Beside
PyTorch and JAX most of them are likely to be there, and three are enough:

    pip download --no-deps --only-binary=:all: -d wheels keras namex optree
    pip install --no-index --no-deps --target site wheels/*.whl
    PYTHONPATH=site python tools/check_gpu.py

(Add `--python-version` and `--platform` to the first line where the machines
differ; run it where there is a network, the others where the GPU is.) The model
of a billion parameters is KerasHub's: it asks for keras-hub, kagglehub,
kagglesdk, grain, array-record and portpicker, too.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks import gpu_rows
from benchmarks.gpu_tasks import BACKENDS
from benchmarks.gpu_tasks import tasks
from benchmarks.process import environment
from benchmarks.process import read_json
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

PACKAGES = (
    "keras",
    "numpy",
    "torch",
    "triton",
    "jax",
    "tensorflow",
    "numba",
    "torchao",
    "bitsandbytes",
)
VERDICTS = ("PASS", "FAIL", "SKIPPED")
# Networks are compared in float32, which GPUs would round to TF32.
EXACT = {
    "NVIDIA_TF32_OVERRIDE": "0",
    "JAX_DEFAULT_MATMUL_PRECISION": "highest",
}


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    help = "to take at most; defaults to 8"
    parser.add_argument("--minutes", type=float, default=8.0, help=help)
    help = "may be repeated; defaults to all"
    parser.add_argument(
        "--backend", choices=BACKENDS, action="append", help=help
    )
    help = "run only tasks whose name has these words; may be repeated"
    parser.add_argument("--task", action="append", help=help)
    help = "JSON file to write; defaults to check_gpu.json"
    parser.add_argument("--output", default="check_gpu.json", help=help)
    return parser.parse_args()


class Check:
    """The tasks of one call, its deadline, and what was found so far."""

    def __init__(self, options):
        self.options = options
        self.start = time.monotonic()
        self.backends = options.backend or BACKENDS
        self.found = {
            "device": options.device,
            "versions": versions(),
            "frameworks": {},
            "rows": [],
            "tasks": [],
        }

    def seconds(self):
        return time.monotonic() - self.start

    def left(self):
        return 60 * self.options.minutes - self.seconds()

    def run_all(self):
        with ThreadPoolExecutor(max(1, os.cpu_count() // 4)) as pool:
            asked = pool.map(self.ask_framework, self.backends)
            self.found["frameworks"] = dict(zip(self.backends, asked))
            chosen = self.chosen_tasks()
            beside = [task for task in chosen if not task.alone]
            for task, result in zip(beside, pool.map(self.run, beside)):
                self.add(task, result)
        for task in chosen:
            if task.alone:
                self.add(task, self.run(task))

    def chosen_tasks(self):
        wanted = self.options.task or [""]
        return [
            task
            for task in tasks(self.options.device)
            if task.backend in self.backends
            and any(words in task.name for words in wanted)
        ]

    def ask_framework(self, backend):
        """Return its version and GPU, or `{"error": why there is none}`."""
        if importlib.util.find_spec(backend) is None:
            return {"error": f"{backend} is not installed"}
        command = [sys.executable, "-m", "benchmarks.gpu_machine", backend]
        found, error = self.process(command, backend, min(60, self.left()))
        return found or {"error": error}

    def why_not(self, task):
        """Return why a task is not begun, or `None`."""
        framework = self.found["frameworks"][task.backend]
        if "error" in framework:
            return framework["error"]
        if self.options.device == "cuda" and not framework["gpu"]:
            return f"{task.backend} {framework['version']} sees no GPU"
        if self.left() < task.seconds:
            left = max(0, self.left())
            return f"it takes about {task.seconds} s and {left:.0f} s were left"
        return None

    def run(self, task):
        """Return the rows of a task, what it wrote, and its seconds."""
        reason = self.why_not(task)
        if reason:
            return [gpu_rows.skipped(task.name, reason)], None, 0.0
        begun, left = self.seconds(), self.left()
        # CPUs differ too much to call one slow.
        slow = 4 * task.seconds if self.options.device == "cuda" else math.inf
        found, error = self.process(
            task.command, task.backend, min(left, slow), exact=not task.alone
        )
        seconds = self.seconds() - begun
        rows = []
        try:
            rows += task.rows(found, self.options.device) if found else []
        except Exception as problem:  # in one table, not the end of all
            error = f"{type(problem).__name__}: {problem}"
        if error and seconds >= left:
            reason = f"--minutes {self.options.minutes:g} were over"
            rows.append(gpu_rows.skipped(task.name, reason))
        elif error and not any(row["verdict"] == "FAIL" for row in rows):
            rows.append(gpu_rows.failed(task.name, error))
        elif not rows and task.rows:
            rows.append(gpu_rows.failed(task.name, "it found nothing"))
        elif not rows:
            rows.append(gpu_rows.row(task.name, "no error", "none"))
        return rows, found, seconds

    def process(self, command, backend, limit, exact=False):
        """Return what a process wrote, and what went wrong: each or `None`."""
        variables = environment(backend, self.options.device)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "found.json")
            process = subprocess.Popen(
                [*command, str(file)],
                env={**variables, **(EXACT if exact else {})},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
            try:
                output, _ = process.communicate(timeout=limit)
                error = None
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)  # and its workers
                process.communicate()
                error = f"not done after {limit:.0f} s"
            found = read_json(file)
        if error is None and process.returncode:
            lines = output.strip().splitlines() or ["no output"]
            error = f"exit code {process.returncode}: {lines[-1].strip()}"
        return found, error

    def add(self, task, result):
        rows, found, seconds = result
        for row in rows:
            row.update(backend=task.backend, task=task.name)
        verdicts = [row["verdict"] for row in rows]
        told = [f"{verdicts.count(v)} {v}" for v in VERDICTS if v in verdicts]
        print(
            f"{self.seconds():4.0f} s  {task.backend}: {task.name} "
            f"({seconds:.0f} s): {', '.join(told)}",
            flush=True,
        )
        self.found["rows"] += rows
        self.found["tasks"].append(
            {
                "name": task.name,
                "backend": task.backend,
                "command": task.command,
                "seconds": seconds,
                "found": found,
            }
        )
        self.found["seconds"] = self.seconds()
        text = json.dumps(self.found, indent=1) + "\n"
        Path(self.options.output).write_text(text)


def versions():
    found = {"python": sys.version.split()[0]}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def tabulate(found):
    gpus = {
        framework.get("gpu") or "no GPU"
        for framework in found["frameworks"].values()
        if "error" not in framework
    }
    versions = found["versions"].items()
    title = f"{', '.join(gpus)}\n"
    title += ", ".join(f"{name} {v}" for name, v in versions if v)
    table = Table(title=title, box=SIMPLE, padding=(0, 1, 0, 0))
    for column in ("backend", "what", "must be", "found", "verdict"):
        table.add_column(column)
    color = {"PASS": "green", "FAIL": "red", "SKIPPED": "yellow"}
    task = None
    for row in found["rows"]:
        if row["task"] != task:
            table.add_section()
            task = row["task"]
        told = " ".join(filter(None, (row["found"], row["reason"])))
        table.add_row(
            row["backend"],
            escape(row["what"]),
            row["must be"],
            escape(told),
            f"[{color[row['verdict']]}]{row['verdict']}[/]",
        )
    return table


def main():
    options = parse_arguments()
    if importlib.util.find_spec("keras") is None:
        print("keras is not installed; --help tells which wheels to bring.")
        return 1
    check = Check(options)
    check.run_all()
    console = Console()
    # A file has no width of its own; 80 columns would break each row.
    console = console if console.is_terminal else Console(width=150)
    console.print(tabulate(check.found))
    verdicts = [row["verdict"] for row in check.found["rows"]]
    told = ", ".join(f"{verdicts.count(v)} {v}" for v in VERDICTS)
    print(f"{told}, in {check.seconds():.0f} s. All figures: {options.output}")
    return int("FAIL" in verdicts or "PASS" not in verdicts)


if __name__ == "__main__":
    sys.exit(main())
