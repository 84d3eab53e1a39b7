"""A bar for what takes longer than two seconds."""

import contextlib
import threading

from rich.progress import Progress


@contextlib.contextmanager
def progress(verbose=1):
    """Show a bar after two seconds, until the end.

    Yields:
        A function of a string, what is being done now.
    """
    bar = Progress(transient=True)
    task = bar.add_task("Measuring", total=None)
    timer = threading.Timer(2, bar.start)
    timer.daemon = True
    if verbose:
        timer.start()
    try:
        yield lambda text: bar.update(task, description=text)
    finally:
        timer.cancel()
        bar.stop()
