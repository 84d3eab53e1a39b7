"""The process that measures one backend for a benchmark."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def run_worker(benchmark, mode, device, words, **variables):
    """Run `benchmark.py` with `--worker`; return what it found.

    Args:
        benchmark: Name of the benchmark.
        mode: Backend, or "tensorflow-xla".
        device: "cpu" or "cuda".
        words: List of strings, further arguments.
        **variables: Strings, further environment variables.

    Returns:
        Dictionary: what the worker wrote, and `{"error": last line}` if the
        process failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "result.json")
        command = [sys.executable, ROOT / "tools" / "benchmark.py", benchmark]
        command += ["--backend", mode, "--device", device, *words]
        process = subprocess.run(
            [*command, "--worker", file],
            env={**environment(mode, device), **variables},
            capture_output=True,
            text=True,
        )
        found = read_json(file) or {}
    if process.returncode:
        lines = process.stderr.strip().splitlines()
        code = f"exit code {process.returncode}"
        found["error"] = lines[-1].strip() if lines else code
    return found


def read_json(file):
    """Return what is in a file, or `None` if it was not written whole."""
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        return None


def environment(mode, device):
    """Return the environment variables of such a process."""
    path = [str(ROOT), str(ROOT / "tools"), os.environ.get("PYTHONPATH", "")]
    variables = {
        **os.environ,
        "KERAS_BACKEND": mode.partition("-")[0],
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "TF_ONEDNN_USE_SYSTEM_ALLOCATOR": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
        # Threads that spin after their work take the time of the next one's.
        "OMP_WAIT_POLICY": "passive",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }
    if device == "cpu":
        variables.update(CUDA_VISIBLE_DEVICES="", JAX_PLATFORMS="cpu")
    return variables
