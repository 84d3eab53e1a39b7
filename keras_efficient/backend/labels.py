"""How names are found again in what a framework made of them."""

import re

_LABEL = re.compile(r"kept_by_(.+?)_end")


def marked(name):
    """Return a name that can be found among those around it."""
    return f"kept_by_{name}_end"


def find(text):
    """Return the innermost name that `marked` left in a text, or `None`."""
    found = _LABEL.findall(text)
    return found[-1] if found else None
