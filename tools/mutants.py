"""Plant small faults, one after the other, and see that the tests fail.

The files in `tools/mutants/` list the faults: a text in a file, what replaces
it, the test that must fail, and the backend to show it on. A fault that no test
sees, a survivor, is a hole in the tests. The tree itself is not changed: all
happens in a copy.

`python tools/mutants.py` tries all of them. `--only WORD` (may be repeated)
chooses those that have the word in the name of their list, in the fault, the
file or the test; `--backend jax` those of a backend. The exit status is 1 if
any survived.
"""

import argparse
import ast
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
LISTS = ROOT / "tools" / "mutants"
BACKENDS = ("jax", "tensorflow", "torch")
TIMEOUT = 600  # seconds: with a fault, a loop may run for ever
FAILED = 1  # pytest's exit code; others say that no test was run


class Mutant(NamedTuple):
    part: str  # the name of its list
    fault: str
    file: str
    text: str
    replacement: str
    test: str
    backend: str


def load():
    return [
        Mutant(path.stem, **mutant)
        for path in sorted(LISTS.glob("*.toml"))
        for mutant in tomllib.loads(path.read_text())["mutant"]
    ]


def problems(mutants):
    """List mutants whose text or test the tree no longer has."""
    found = []
    for mutant in mutants:
        path = ROOT / mutant.file
        source = path.read_text() if path.exists() else ""
        times = source.count(mutant.text)
        if times != 1:
            found.append(f"{mutant.file} has {times} times: {mutant.text}")
        ast.parse(source.replace(mutant.text, mutant.replacement))
        file, _, name = mutant.test.partition("::")
        path, function = ROOT / file, f"def {name.partition('[')[0]}("
        if not path.exists() or function not in path.read_text():
            found.append(f"there is no test {mutant.test}")
    return found


@functools.cache
def server(tree, backend):
    """Return a process that has imported the backend, and forks."""
    environment = {
        "KERAS_BACKEND": backend,
        "PYTHONPATH": str(tree),
        # Nothing that was compiled from one source may serve another.
        "PYTHONDONTWRITEBYTECODE": "1",
        # XLA's programs are found by what they compute.
        "JAX_COMPILATION_CACHE_DIR": str(tree.parent / "xla"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "passive",
    }
    return subprocess.Popen(
        # -P: the tools are no modules of the tests.
        [sys.executable, "-P", ROOT / "tools" / "forked_pytest.py"],
        cwd=tree,
        env={**os.environ, **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def run(tree, backend, tests, numba_cache, timeout=None):
    """Run tests in a tree; return pytest's exit code, what it printed, and
    the seconds of processors."""
    output = tree.parent / "output"
    job = {
        "environment": {"NUMBA_CACHE_DIR": str(numba_cache)},
        "arguments": ["-q", "-x", *tests, "-p", "no:cacheprovider"],
        "output": str(output),
        "timeout": timeout,
    }
    process = server(tree, backend)
    print(json.dumps(job), file=process.stdin, flush=True)
    code, seconds = json.loads(process.stdout.readline())
    code = FAILED if code is None else code
    return code, output.read_text(errors="replace"), seconds


def verdict(mutant, folder):
    """Return "killed" or what else happened to a mutant, and seconds."""
    path = folder / "tree" / mutant.file
    source = path.read_text()
    path.write_text(source.replace(mutant.text, mutant.replacement))
    # Kernels are compiled again where their sources may have changed.
    shared = "kernels" not in mutant.file
    cache = folder / ("numba" if shared else "numba of a mutant")
    try:
        code, output, seconds = run(
            folder / "tree", mutant.backend, [mutant.test], cache, TIMEOUT
        )
    finally:
        path.write_text(source)
    if not shared:
        shutil.rmtree(cache, ignore_errors=True)
    if code == FAILED or code < 0:  # a crash is seen as well
        return "killed", seconds
    if code == 0:
        return "SURVIVED", seconds
    return f"NOT RUN (exit code {code})\n{output}", seconds


def check_without_faults(mutants, folder):
    """Return what pytest prints where a named test fails as things are."""
    for backend in BACKENDS:
        tests = {m.test: None for m in mutants if m.backend == backend}
        if tests:
            tree, cache = folder / "tree", folder / "numba"
            code, output, seconds = run(tree, backend, tests, cache)
            if code:
                return output
            print(
                f"{'passed':10}{seconds:4.0f} s  {backend:11}"
                f"without a fault: {len(tests)} tests",
                flush=True,
            )
    return ""


def try_all(mutants, folder):
    """Return the verdict on each mutant."""
    verdicts = []
    for mutant in mutants:
        found, seconds = verdict(mutant, folder)
        verdicts.append(found)
        print(
            f"{found:10}{seconds:4.0f} s  {mutant.backend:11}"
            f"{mutant.part}: {mutant.fault}",
            flush=True,
        )
    return verdicts


def chosen(mutants, words, backend):
    def text(mutant):
        names = mutant.part, mutant.fault, mutant.file, mutant.test
        return " ".join(names).lower()

    return [
        m
        for m in mutants
        if backend in (None, m.backend)
        and (not words or any(word.lower() in text(m) for word in words))
    ]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", metavar="WORD", action="append", default=[])
    parser.add_argument("--backend", choices=BACKENDS)
    options = parser.parse_args()
    found = problems(load())
    if found:
        print("\n".join(found))
        return 1
    mutants = chosen(load(), options.only, options.backend)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        shutil.copytree(
            ROOT,
            folder / "tree",
            ignore=shutil.ignore_patterns(".*", "__pycache__"),
        )
        output = check_without_faults(mutants, folder)
        if output:
            print(output)
            return 1
        verdicts = try_all(mutants, folder)
    table = Table("", *BACKENDS, "killed", "survived")
    for part in dict.fromkeys(m.part for m in mutants):
        of_part = [i for i, m in enumerate(mutants) if m.part == part]
        backends = [mutants[i].backend for i in of_part]
        killed = sum(verdicts[i] == "killed" for i in of_part)
        numbers = *map(backends.count, BACKENDS), killed, len(of_part) - killed
        table.add_row(part, *map(str, numbers))
    Console().print(table)
    print(f"{verdicts.count('killed')} of {len(mutants)} killed")
    return int(any(verdict != "killed" for verdict in verdicts))


if __name__ == "__main__":
    sys.exit(main())
