"""docs/notebook.ipynb is what tools/notebook.py makes, with what its cells show; they still run."""

import base64
import importlib.util
import json
from pathlib import Path

import pages
import pytest

import fastsample as fs

ROOT = Path(__file__).resolve().parents[1]
PATH = ROOT / "docs" / "notebook.ipynb"
BOOK = json.loads(PATH.read_text("utf-8"))
CODE = [cell for cell in BOOK["cells"] if cell["cell_type"] == "code"]


def tool():
    spec = importlib.util.spec_from_file_location("notebook", ROOT / "tools" / "notebook.py")
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def test_it_is_what_the_tool_makes():
    made = tool()
    assert PATH.stat().st_size < made.MOST
    bare = [
        {**c, "execution_count": None, "outputs": []} if c in CODE else c for c in BOOK["cells"]
    ]
    assert [{**cell, "source": "".join(cell["source"])} for cell in bare] == made.cells()
    assert made.notebook() == {**BOOK, "cells": made.cells()}


def test_it_holds_what_its_cells_show():
    """Every cell ran, in order, without an error; two cards, two pictures, and one line each of
    what runs.
    """
    assert [cell["execution_count"] for cell in CODE] == [*range(1, len(CODE) + 1)]
    outputs = [output for cell in CODE for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} <= {"execute_result", "stream"}
    assert {output.get("name", "stdout") for output in outputs} == {"stdout"}
    shown = [output["data"] for output in outputs if "data" in output]
    cards = ["".join(data["text/html"]) for data in shown if "text/html" in data]
    assert [card.count("<svg") for card in cards] == [1, 1 + 4]  # a plan; a search with four
    assert ["Search" in card for card in cards] == [False, True]
    pictures = [base64.b64decode(data["image/png"]) for data in shown if "image/png" in data]
    assert len(pictures) == 2 and all(data[:4] == b"\x89PNG" for data in pictures)
    said = "".join(line for output in outputs for line in output.get("text", ()))
    assert {"Run(", "Sampler(", "Engine(", "Ticket("} <= {
        f"{w.split('(')[0]}(" for w in said.split("\n")
    }
    assert "tensor" not in said


@pytest.mark.slow
def test_its_cells_still_run(tmp_path, monkeypatch):
    """Compared with fewer plans made by hand than the notebook's own run was."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fs.metrics, "STARTS", (None,))
    names = pages.run([pages.Block("python", "".join(cell["source"])) for cell in CODE])
    assert all(name in repr(names[name.lower()]) for name in ("Search", "Run", "Engine"))
    by_hand = names["search"].compared[4]
    assert by_hand.beats and names["images"].shape == (10, 1, 28, 28)
    assert names["run"].done and {ticket.state for ticket in names["tickets"]} == {"result"}
