"""`tools/check_gpu.py`: tiny sizes on the CPU, and what faults do to it."""

import json
import subprocess
import sys
import time
from pathlib import Path

import keras
import pytest

TOOLS = Path(__file__).resolve().parent.parent / "tools"

pytestmark = pytest.mark.skipif(
    keras.config.backend() != "torch", reason="its processes choose theirs"
)


@pytest.fixture
def check(monkeypatch, tmp_path):
    """Return a function that runs commands as tasks, and returns rows."""
    monkeypatch.syspath_prepend(str(TOOLS))
    import check_gpu
    from benchmarks import gpu_rows
    from benchmarks.gpu_tasks import Task

    def run(*scripts, minutes=1.0):
        tasks = [
            Task(
                name=f"task {i}",
                backend="torch",
                command=[sys.executable, "-c", f"import os, sys; {script}"],
                seconds=1,
                rows=gpu_rows.of_checks,
            )
            for i, script in enumerate(scripts)
        ]
        gpu = {"version": "2", "gpu": "none"}
        monkeypatch.setattr(check_gpu, "tasks", lambda device: tasks)
        monkeypatch.setattr(check_gpu.Check, "ask_framework", lambda *_: gpu)
        file = str(tmp_path / "found.json")
        words = ["check_gpu.py", "--minutes", str(minutes), "--output", file]
        monkeypatch.setattr(sys, "argv", words)
        code = check_gpu.main()
        rows = json.loads(Path(file).read_text())["rows"]
        return code, [(row["verdict"], row["reason"]) for row in rows]

    return run


def write(*rows):
    text = json.dumps({"rows": rows})
    return f"open(sys.argv[1], 'w').write({text!r})"


PASSED = {"what": "", "must be": "", "found": "", "reason": ""}
PASSED["verdict"] = "PASS"


def test_a_fault_does_not_end_the_rest(check):
    code, rows = check(
        "raise MemoryError('no room')",
        f"{write(PASSED)}; os.abort()",
        "import time; time.sleep(60)",
        "open(sys.argv[1], 'w').write('[1, ')",
        "open(sys.argv[1], 'w').write('[[]]')",
        write(PASSED),
    )
    assert code == 1
    assert rows == [
        ("FAIL", "exit code 1: MemoryError: no room"),
        ("PASS", ""),
        ("FAIL", "exit code -6: no output"),
        ("FAIL", "not done after 4 s"),
        ("FAIL", "it found nothing"),
        ("FAIL", "TypeError: list indices must be integers or slices, not str"),
        ("PASS", ""),
    ]


def test_minutes_are_a_budget(check):
    start = time.monotonic()
    code, rows = check("import time; time.sleep(60)", write(), minutes=1 / 30)
    assert time.monotonic() - start < 10
    assert code == 1  # nothing passed
    assert rows == [
        ("SKIPPED", "--minutes 0.0333333 were over"),
        ("SKIPPED", "it takes about 1 s and 0 s were left"),
    ]


def test_bounds(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    from benchmarks import gpu_rows

    verdict = {
        value: gpu_rows.at_most("", value, 1.0)["verdict"]
        for value in (1.0, 1.01, float("nan"))
    }
    assert list(verdict.values()) == ["PASS", "FAIL", "FAIL"]
    assert gpu_rows.goal("cuda", "", 2.0, 1.0)["verdict"] == "FAIL"
    assert gpu_rows.goal("cpu", "", 2.0, 1.0)["verdict"] == "SKIPPED"


def test_a_model_of_a_billion(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    from benchmarks import gpu_rows

    found = {"size": "1B", "parameters": 10**9, "losses": [12.0, 13.0, 5.0]}
    found |= {"tokens_a_second": 900.0, "peak": 6 * 2**30, "limit": 8 * 2**30}
    nan = {**found, "losses": [12.0, float("nan")], "peak": 9 * 2**30}
    missing = {"not installed": "keras_hub"}
    verdicts = [
        [row["verdict"] for row in gpu_rows.of_billion(case, "cuda")]
        for case in (found, nan, missing)
    ]
    assert verdicts == [["PASS", "PASS"], ["FAIL", "FAIL"], ["SKIPPED"]]


@pytest.mark.slow
def test_tiny_sizes_on_the_cpu(tmp_path):
    file = tmp_path / "found.json"
    command = [sys.executable, TOOLS / "check_gpu.py", "--device", "cpu"]
    command += ["--backend", "torch", "--minutes", "20", "--output", file]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(file.read_text())
    assert found["versions"]["keras"] == keras.__version__
    assert found["frameworks"]["torch"]["gpu"] is None
    passed = [row["task"] for row in found["rows"] if row["verdict"] == "PASS"]
    assert set(passed) == {task["name"] for task in found["tasks"]}
    assert len(found["tasks"]) == 5 and len(passed) > 30
    assert all(task["found"] for task in found["tasks"])
