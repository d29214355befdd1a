"""README keeps its word: the example prints what README shows, and the tables are those of
bench/results.
"""

import importlib.util
from pathlib import Path

import pages
import torch

import fastsample

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"


def readme_tables():
    path = ROOT / "tools" / "readme_tables.py"
    spec = importlib.util.spec_from_file_location("readme_tables", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_example_prints_what_readme_shows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    example, shown = pages.blocks(README)[:2]
    assert (example.language, shown.language) == ("python", "text")
    assert len([line for line in example.text.splitlines() if line.strip()]) <= 8
    pages.run([example, shown])


def test_the_second_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    z = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))
    second = pages.blocks(README, "python")[1]
    made = second._replace(text=second.text.replace("{...}", "{}"))
    names = pages.run([made], {"fs": fastsample, "fn": lambda x, t: x, "z": z})
    assert names["run"].done and names["x0"].shape == z.shape


def test_the_tables_are_those_of_the_results():
    tables = readme_tables()
    for page in tables.PAGES:
        text = page.read_text()
        assert tables.BLOCK.search(text)
        assert tables.filled(text, tables.results()) == text, "run make tables"


def test_a_changed_result_is_seen():
    tables = readme_tables()
    figure = {"what": "a step", "value": 2.0, "q1": 1.5, "q3": 2.5, "n": 11, "unit": "x"}
    figure.update(target=3, better="higher", met=False, note="why")
    record = {"machine": "m", "processor": "P", "vector": "", "cores": 2, "date": "2026-01-02"}
    record["rows"] = [{"group": "step", "figures": [figure]}]
    rows = [{"group": "step", "figures": [{**figure, "value": 9.0}]}]
    older = {**record, "date": "2026-01-01", "rows": rows}
    made = tables.filled("<!-- table: step -->\nold\n<!-- end -->", [record, older])
    assert made == (
        "<!-- table: step -->\n| what | median (quartiles) | target |\n|---|---|---|\n"
        "| a step | 2 x (1.5–2.5) | ≥ 3 x **missed** |\n\n"
        "Missed: a step: why.\nMeasured on P, 2 cores, 2026-01-02.\n<!-- end -->"
    )


def test_a_row_is_called_what_all_its_figures_are():
    """Its columns have the rest of their names, and none of them is called like another."""
    tables = readme_tables()
    what = lambda *names: {"figures": [{"what": n, "value": 1, "unit": "dB"} for n in names]}
    rows = [
        what(f"{name}: bound", f"{name}, euler: PSNR", f"{name}, heun: PSNR")
        for name in ("power, 1", "power, 12")
    ]
    assert [tables.case(row) for row in rows] == ["power, 1", "power, 12"]
    assert tables.pivot(rows)[0].endswith("| bound | euler: PSNR | heun: PSNR |")
    assert tables.case(what("call: a, b", "call: a, c")) == "call"
    assert tables.case(what("one", "other")) == "" and not tables.names(what("one"))


def test_every_path_in_readme_exists():
    assert [path for path in pages.links(README) if not path.exists()] == []
