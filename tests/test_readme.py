"""README keeps its word: the example prints what README shows, and the tables are those of
bench/results.
"""

import importlib.util
import re
import runpy
from pathlib import Path

import numpy as np
import pages
import pytest
import setuptools
from c import build

import fastsample as fs

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
FOUND, *DOORS = pages.blocks(README, "python")


def readme_tables():
    path = ROOT / "tools" / "readme_tables.py"
    spec = importlib.util.spec_from_file_location("readme_tables", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow  # a whole search
def test_the_example_prints_what_readme_shows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = next(block for block in pages.blocks(README) if block.language == "text")
    pages.run([FOUND, shown])


@pytest.mark.parametrize("door", range(len(DOORS)))
def test_a_door_is_ten_lines_that_run(door, tmp_path, monkeypatch):
    """Each on its own, as one who pastes it has it."""
    monkeypatch.chdir(tmp_path)
    assert len([line for line in DOORS[door].text.splitlines() if line.strip()]) <= 10
    pages.run([DOORS[door]])


@pytest.mark.slow
def test_the_door_of_cpp(tmp_path):
    """Its program ends where the Sampler does."""
    (program,) = pages.blocks(README, "cpp")
    source, plan_file = tmp_path / "program.cpp", tmp_path / "mine.fsplan"
    source.write_text(program.text)
    prefix, _ = build.installed()
    engine, core = build.package(prefix, "fastsample-engine"), build.package(prefix)
    words = f"-std=c++17 -Wall -Werror {core['Cflags']} {source} {engine['Libs']} {core['Libs']}"
    run = f"-Wl,-rpath,{core['libdir']} -o {tmp_path / 'program'}"
    build.run("g++", *words.split(), *run.split())
    model = fs.Model(lambda x, t: -x, fs.schedules.Flow(), "flow")
    plan = fs.solvers.dpmpp_2m(model, fs.grids.uniform(model.schedule, 5))
    plan.save(plan_file)
    said = build.run(tmp_path / "program", plan_file)
    own = fs.Sampler(plan, model)(shape=(1, 24), seed=0)[0, 0]
    assert np.float32(said) == pytest.approx(float(own), rel=1e-5)  # six digits are printed


def test_no_line_is_longer_than_a_hundred_columns():
    assert [line for line in README.read_text().splitlines() if len(line) > 100] == []


@pytest.mark.parametrize("home", ["", "https://host.example/we/fastsample/"])
def test_a_package_index_is_pointed_to_the_repository(home, monkeypatch):
    """Or to nothing, where the build is not told its address; code stays as it is."""
    said = []
    monkeypatch.setattr(setuptools, "setup", lambda **words: said.append(words))
    monkeypatch.setenv("FASTSAMPLE_NATIVE", "off")
    monkeypatch.setenv("FASTSAMPLE_HOME", home)
    runpy.run_path(str(ROOT / "setup.py"))
    page = said[0]["long_description"]
    root, paths = home + "{}/v" + fs.__version__ + "/{}", [*pages.links(README)]
    found = re.findall(r"(!?)\[[^]]*\]\(([^)]+)\)", pages.BLOCK.sub("", page))
    assert all(to.startswith("https://") for _, to in found)
    assert pages.BLOCK.findall(page) == pages.BLOCK.findall(README.read_text())
    assert said[0]["project_urls"] == ({"Repository": home.rstrip("/")} if home else {})
    if home:
        assert len(found) == len(paths)
        assert ("!", root.format("raw", "docs/front.png")) in found
        assert ("", root.format("blob", "CHANGELOG.md")) in found
    else:
        assert found == [] and "CHANGELOG.md names every change" in page


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


def test_a_short_table_has_medians_and_marks_what_is_missed():
    """Of the columns that README shows; rows of one figure and one case are one row."""
    tables = readme_tables()
    figures = [
        {"what": "euler: one step", "value": 2.0, "q1": 1, "q3": 3, "unit": "µs"},
        {"what": "euler: against diffusers", "value": 4.0, "unit": "x", "target": 5, "met": False},
        {"what": "euler: share of a triad's speed", "value": 90, "unit": "%"},
    ]
    one = lambda n: {"what": f"by hand: {n} evaluations", "value": n, "unit": "dB"}
    rows = [{"group": "step", "figures": [dict(f, better="higher") for f in figures]}]
    rows += [{"group": "step", "figures": [one(n)]} for n in (4, 6)]
    record = {"machine": "m", "processor": "P", "vector": "", "cores": 2, "date": "2026-01-02"}
    made = tables.filled("<!-- short table: step -->\n<!-- end -->", [record | {"rows": rows}])
    assert made == (
        "<!-- short table: step -->\n|  | one step | against diffusers |\n|---|---|---|\n"
        "| euler | 2 µs | 4 x † |\n\n|  | 4 | 6 |\n|---|---|---|\n| by hand | 4 dB | 6 dB |\n\n"
        "Measured on P, 2 cores, 2026-01-02.\n<!-- end -->"
    )


def test_a_table_of_words_has_what_is_said_beside_the_figures():
    """A column a budget where it is said of each; what is long and said twice stands once."""
    tables = readme_tables()
    figure = lambda what: {"what": what, "value": 1, "unit": "dB"}
    grids, counts = "; ".join(["Karras"] * 20), {"fit, 4 evaluations": "a", "plans": 7}
    rows = [
        {"figures": [figure("fit: 4 evaluations"), figure("fit: 6 evaluations")]},
        {"figures": [figure("by hand: 4 evaluations")], "counts": {"which": "b", "grids": grids}},
        {"figures": [figure("by hand: 6 evaluations")], "counts": {"which": "b", "grids": grids}},
    ]
    rows[0]["counts"] = counts | {"fit, 6 evaluations": "c", "time": "2 s"}
    record = {"machine": "m", "processor": "P", "vector": "", "cores": 2, "date": "2026-01-02"}
    record["rows"] = [row | {"group": "front"} for row in rows]
    made = tables.filled("<!-- words table: front -->\n<!-- end -->", [record])
    assert made == (
        "<!-- words table: front -->\n|  | 4 evaluations | 6 evaluations |\n|---|---|---|\n"
        "| fit | a | c |\n\n| of | said |\n|---|---|\n| fit: time | 2 s |\n"
        "| by hand: 4 evaluations: which | b |\n"
        f"| by hand: 4 evaluations, 6 evaluations: grids | {grids} |\n"
        "| by hand: 6 evaluations: which | b |\n\n"
        "Measured on P, 2 cores, 2026-01-02.\n<!-- end -->"
    )


def test_every_path_in_readme_exists():
    assert [path for path in pages.links(README) if not path.exists()] == []
