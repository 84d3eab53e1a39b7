"""Compiled code on disk: what cannot be read is dropped, none is done without.

Numba reads a file that was cut off, by a full disk or a process that ended
early, anew in each process, and raises the same error each time.
"""

from pathlib import Path

_problem = None
_dropped = set()


def njit(function, options):
    """Compile with `numba.njit`, without a cache where there can be none."""
    global _problem
    import numba

    try:
        return numba.njit(**options)(function)
    except RuntimeError as error:  # no folder that can be written to
        if not options["cache"]:
            raise
        _problem = str(error)
        return numba.njit(**{**options, "cache": False})(function)


def problem():
    """Return why a function is not kept on disk, or `None`."""
    return _problem


def drop(dispatcher):
    """Delete the files beside those of a dispatcher.

    Returns:
        Whether there was something to delete, for the first time.
    """
    folder = dispatcher.stats.cache_path
    if folder is None or folder in _dropped:
        return False
    _dropped.add(folder)
    files = list(Path(folder).glob("*.nb[ci]"))
    for file in files:
        try:
            file.unlink()
        except OSError:  # another process was first, or nobody may write here
            pass
    return bool(files)
