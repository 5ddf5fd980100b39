"""docs/tour.ipynb: its cells run, and what is committed shows what they show; the runner gives what Jupyter would."""

import base64
import io
import json
import sys
from pathlib import Path

import pytest

import tracking
from benchmarks.tour import run_cell, run_notebook

ROOT = Path(tracking.__file__).resolve().parent.parent
SIZE = "SAMPLES, EPOCHS = 30_000, 4"


def code_cells(notebook: dict) -> list[dict]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def kinds(cell: dict) -> list[str]:
    """What a cell shows: `stream`, or the richest MIME type of a value."""
    return [next(iter(output["data"])) if "data" in output else "stream" for output in cell["outputs"]]


def test_the_cells_run_and_show_what_is_committed(monkeypatch):
    monkeypatch.chdir(ROOT / "docs")  # where Jupyter starts
    monkeypatch.setattr(sys, "path", list(sys.path))
    committed = json.loads((ROOT / "docs/tour.ipynb").read_text(encoding="utf-8"))
    notebook = json.loads(json.dumps(committed))
    first = code_cells(notebook)[0]
    assert "".join(first["source"]).count(SIZE) == 1
    first["source"] = ["".join(first["source"]).replace(SIZE, "SAMPLES, EPOCHS = 2_000, 1")]
    names = {}
    run_notebook(notebook, names)
    assert names["step"] > 0 and len(names["belief"]) == len(names["test"]) > 100
    assert abs(names["belief"].sum(1) - 1).max() < 1e-6
    assert [kinds(cell) for cell in code_cells(notebook)] == [kinds(cell) for cell in code_cells(committed)]
    assert [cell["execution_count"] for cell in code_cells(committed)] == list(range(1, 9))


def test_the_committed_tour_separates_the_predictors():
    committed = json.loads((ROOT / "docs/tour.ipynb").read_text(encoding="utf-8"))
    lines = [line for cell in code_cells(committed) for o in cell["outputs"] for line in o.get("text", [])]
    nll = {
        line.split()[0]: float(line.split()[-1])
        for line in lines
        if line[:7].strip() in ("uniform", "MOA", "bayes")
    }
    assert nll["bayes"] < nll["MOA"] < nll["bayes"] + 0.05 < nll["uniform"]


def test_a_cell_gives_text_value_and_figure():
    source = "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nprint('a\\nb')\nx = 20\nx + 1"
    text, value, figure = run_cell(source, names := {}, 3)
    assert text == dict(name="stdout", output_type="stream", text=["a\n", "b\n"])
    assert value == dict(
        data={"text/plain": ["21"]}, execution_count=3, metadata={}, output_type="execute_result"
    )
    assert base64.b64decode(figure["data"]["image/png"]).startswith(b"\x89PNG")
    assert run_cell("print(x)", names, 4)[0]["text"] == ["20\n"]  # variables last; figures do not


def test_an_image_is_shown_as_png():
    (value,) = run_cell("from PIL import Image\nImage.new('RGB', (3, 2), 'red')", {}, 1)
    from PIL import Image

    assert Image.open(io.BytesIO(base64.b64decode(value["data"]["image/png"]))).size == (3, 2)


def test_a_cell_that_fails_ends_the_run():
    cells = [dict(cell_type="code", source=["1 / 0"])]
    with pytest.raises(ZeroDivisionError):
        run_notebook(dict(cells=cells), {})
