"""What the README says to run can be run."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import keras
import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
PYTHON = [text for language, text in BLOCKS if language == "python"]


def commands():
    """The commands of Python in shell blocks and in `code`, without doubles."""
    texts = [text for language, text in BLOCKS if language == "shell"]
    prose = re.sub(r"```.*?```", "", README, flags=re.DOTALL)
    texts += re.findall(r"`([^`]*\bpython\s[^`]+)`", prose)
    found = {}
    for text in texts:
        for command in re.split(r"&&|\n(?=[a-zA-Z])", text):
            words = shlex.split(command)
            while words and "=" in words[0]:  # variables of the environment
                words.pop(0)
            if words and words[0] == "keras-efficient":
                words = ["python", "-m", "keras_efficient", *words[1:]]
            if words and words[0] == "python":
                found[" ".join(words)] = words[1:]
    return found


def test_there_is_something_to_test():
    assert PYTHON
    scripts = {words[0] for words in commands().values()}
    assert {"tools/test.py", "tools/benchmark.py", "-m"} <= scripts


@pytest.mark.slow
@pytest.mark.parametrize("text", PYTHON)
def test_python_runs(text):
    # Some numbers are turned down; the lines are those of the README.
    text = text.replace("epochs=20", "epochs=1, verbose=0")
    exec(compile(text, "README.md", "exec"), {})


@pytest.mark.skipif(
    keras.config.backend() != "torch", reason="the same on each backend"
)
@pytest.mark.parametrize("command", commands())
def test_a_command_and_its_options_exist(command):
    words = commands()[command]
    options = [word for word in words if word.startswith("--")]
    # The script or module, and the name of what it is to do.
    script = words[:3] if words[0] == "-m" else words[:1]
    names = [
        word for word in words[len(script) :] if re.fullmatch("[a-z_]+", word)
    ][:1]
    if script == ["tools/test.py"]:
        names = []
    script = [str(ROOT / x) if x.endswith(".py") else x for x in script]
    help = subprocess.run(
        [sys.executable, *script, *names, "--help"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    for option in options:
        assert option in help, (option, help)
