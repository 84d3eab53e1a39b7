"""Run pytest in forks of a process that has imported Keras and its backend.

Each line of the standard input is a run, as JSON: `environment`, variables that
change; `arguments` of pytest; `output`, the file for what it prints; `timeout`
in seconds or null. Each line of the standard output answers: pytest's exit code
(null when the time is over, negative after a signal), seconds of processors.
"""

import json
import os
import signal
import sys
import threading

import keras  # noqa: F401
import pytest

try:
    import numba
except ImportError:
    numba = None


def run(environment, arguments, output):
    """Be the child: never return."""
    os.setsid()  # one group with what tests start
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ.update(environment)
    if numba is not None:
        numba.config.reload_config()
    code = pytest.main(arguments)
    sys.stdout.flush()
    os._exit(code)


def answer(environment, arguments, output, timeout):
    is_over = threading.Event()
    child = os.fork()
    if not child:
        run(environment, arguments, output)

    def end():
        is_over.set()
        os.killpg(child, signal.SIGKILL)

    timer = threading.Timer(timeout or 10**6, end)
    timer.start()
    _, status, usage = os.wait4(child, 0)
    timer.cancel()
    timer.join()
    code = None if is_over.is_set() else os.waitstatus_to_exitcode(status)
    return code, usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(answer(**json.loads(line))), flush=True)
