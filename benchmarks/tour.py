"""Run the cells of a notebook and write what they show into it: `python -m benchmarks.tour`.

It is what `jupyter nbconvert --execute --inplace` does, without Jupyter, which this repository does not need otherwise: text
that is printed, figures of matplotlib, and the value of a cell's last line.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

import tracking

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from PIL import Image


@dataclass
class Options:
    notebook: str = "docs/tour.ipynb"
    """the notebook; its outputs are replaced"""


def run_notebook(notebook: dict, names: dict[str, Any]) -> None:
    """Run the code cells one after another and put their outputs into them.

    Args: names: the variables that they share.
    """
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for count, cell in enumerate(cells, 1):
        cell["execution_count"] = count
        cell["outputs"] = run_cell("".join(cell["source"]), names, count)


def run_cell(source: str, names: dict[str, Any], count: int) -> list[dict]:
    """Returns: the outputs of a cell, as a notebook has them (nbformat 4)."""
    tree = ast.parse(source)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    printed = io.StringIO()
    value = None
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, f"cell {count}", "exec"), names)
        if last:
            value = eval(compile(ast.Expression(last.value), f"cell {count}", "eval"), names)
    outputs = []
    if text := printed.getvalue():
        outputs.append(dict(name="stdout", output_type="stream", text=text.splitlines(True)))
    if value is not None:
        result = dict(data=shown(value), execution_count=count, metadata={}, output_type="execute_result")
        outputs.append(result)
    for number in plt.get_fignums():
        data = image(plt.figure(number))
        outputs.append(dict(data=data, metadata={}, output_type="display_data"))
    plt.close("all")
    return outputs


def shown(value: Any) -> dict:
    """A value by its MIME types."""
    if isinstance(value, Image.Image):
        content = io.BytesIO()
        value.save(content, "png")
        return {"image/png": base64.b64encode(content.getvalue()).decode(), "text/plain": ["<image>"]}
    return {"text/plain": repr(value).splitlines(True)}


def image(figure: plt.Figure) -> dict:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=80, metadata={"Software": None})
    return {"image/png": base64.b64encode(buffer.getvalue()).decode(), "text/plain": ["<figure>"]}


def main() -> None:
    path = Path(tracking.parse_args(Options, __doc__.split("\n")[0]).notebook)
    notebook = json.loads(path.read_text(encoding="utf-8"))
    run_notebook(notebook, {"__name__": "__main__"})
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{path.as_posix()}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    tracking.run(main)
