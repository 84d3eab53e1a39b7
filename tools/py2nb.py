"""Turn a guide into a Jupyter notebook.

`python tools/py2nb.py guides/quickstart.py` writes `guides/quickstart.ipynb`,
`-o` another file. A string that stands alone in the guide becomes a markdown
cell, what is between two of them a code cell. Guides parse a command line,
and that of a notebook is Jupyter's; so the last cell sets `sys.argv` before
it calls `main()`: options go in there.
"""

import argparse
import ast
import json
import os
from pathlib import Path

# `__file__` is for guides that start themselves again.
LAUNCH = """\
import sys

# Options go here, as on a command line: [__file__, "--epochs", "1"]
__file__ = {path!r}
sys.argv = [__file__]
main()"""


def header(text):
    """Return the fields of a guide's first string, by name."""
    lines = [line.split(": ", 1) for line in text.strip().splitlines()]
    return {name: value for name, value in lines}


def title_of(text):
    """Return the first cell: the title as a heading, the rest under it."""
    fields = header(text)
    title, description = fields.pop("Title"), fields.pop("Description")
    rest = [f"**{name}:** {value}<br>" for name, value in fields.items()]
    return "\n".join([f"# {title}", "", *rest, "", description])


def is_text(node):
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def is_launch(node):
    is_if = isinstance(node, ast.If)
    return is_if and ast.unparse(node.test) == "__name__ == '__main__'"


def cells_of(source, path):
    """Return pairs of a kind, `"markdown"` or `"code"`, and a text.

    Args:
        source: String, the guide.
        path: String, from the notebook's folder to the guide.
    """
    lines, end = source.splitlines(), 0
    cells = []

    def add(kind, text):
        if text.strip():
            cells.append((kind, text.strip("\n")))

    for node in ast.parse(source).body:
        if not is_text(node) and not is_launch(node):
            continue
        # Code goes by lines, with its comments.
        add("code", "\n".join(lines[end : node.lineno - 1]))
        end = node.end_lineno
        if is_launch(node):
            add("code", LAUNCH.format(path=path))
        else:
            text = node.value.value
            add("markdown", text if cells else title_of(text))
    add("code", "\n".join(lines[end:]))
    return cells


def notebook_of(cells):
    """Return the notebook as a dictionary, in nbformat 4.5."""

    def cell(number, kind, text):
        source = text.splitlines(keepends=True)
        fields = {"id": f"cell-{number}", "metadata": {}, "source": source}
        if kind == "code":
            fields |= {"execution_count": None, "outputs": []}
        return {"cell_type": kind, **fields}

    kernel = {"display_name": "Python 3", "language": "python"}
    return {
        "cells": [cell(i, *pair) for i, pair in enumerate(cells)],
        "metadata": {
            "kernelspec": {**kernel, "name": "python3"},
            "language_info": {"name": "python"},
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def convert(guide, output):
    """Write the notebook of a guide."""
    path = Path(os.path.relpath(guide, output.parent)).as_posix()
    cells = cells_of(guide.read_text(encoding="utf-8"), path)
    text = json.dumps(notebook_of(cells), indent=1, ensure_ascii=False)
    output.write_text(text + "\n", encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("guide", type=Path)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    output = options.output or options.guide.with_suffix(".ipynb")
    convert(options.guide, output)
    print(f"Wrote {output}")


if __name__ == "__main__":
    main()
