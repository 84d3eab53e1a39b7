import importlib


def matplotlib_module(name, caller):
    """Import a module of Matplotlib, which is not required by the package."""
    try:
        return importlib.import_module(f"matplotlib.{name}")
    except ImportError as error:
        raise ImportError(
            f"`{caller}` needs Matplotlib. Install it with "
            "`pip install 'keras-efficient[guides]'`."
        ) from error
