"""Which version of the XLA FFI a framework speaks, from the header it ships."""

import functools
import importlib.util
import pathlib
import re

# (major, minor) that the handlers of `xla_handler` were tested with. The layout
# of the structures it reads is that of these two.
TESTED = ((0, 2), (0, 3))

_HEADERS = {
    "jax": ("jaxlib", "include/xla/ffi/api/c_api.h"),
    "tensorflow": (
        "tensorflow",
        "include/tensorflow/compiler/xla/ffi/api/c_api.h",
    ),
}


@functools.lru_cache(maxsize=None)
def header_version(framework):
    """Return `(major, minor)`, or `None` where there is no header.

    The framework is not imported. A handler compares once more, with what the
    running library says of itself.
    """
    package, header = _HEADERS[framework]
    folder = package_folder(package)
    if folder is None or not (folder / header).is_file():
        return None
    text = (folder / header).read_text()
    found = [
        re.search(rf"#define XLA_FFI_API_{part} (\d+)", text)
        for part in ("MAJOR", "MINOR")
    ]
    return tuple(int(match[1]) for match in found) if all(found) else None


@functools.lru_cache(maxsize=None)
def package_folder(package):
    """Return where a package is installed, or `None`, without importing it."""
    try:
        spec = importlib.util.find_spec(package)
    except ValueError:  # a stub in `sys.modules`
        return None
    if spec is None or not spec.submodule_search_locations:
        return None
    return pathlib.Path(spec.submodule_search_locations[0])


def tensorflow_library():
    """Return the path of the library that has the FFI, or `None`."""
    folder = package_folder("tensorflow")
    found = sorted(folder.glob("libtensorflow_framework*")) if folder else []
    return found[0] if found else None


@functools.lru_cache(maxsize=None)
def why_not(framework):
    """Return why no handler can be registered with a framework, or `None`."""
    if package_folder(framework) is None:
        return f"{framework} is not installed"
    version = header_version(framework)
    if version not in TESTED:
        known = " and ".join(f"{major}.{minor}" for major, minor in TESTED)
        found = "unknown" if version is None else "%d.%d" % version
        return (
            f"the version of the XLA FFI in {framework} is {found}; "
            f"tested are {known}"
        )
    if framework == "tensorflow" and tensorflow_library() is None:
        return "tensorflow has no libtensorflow_framework on this platform"
    return None
