"""docs/solvers.md: written by the tool from what the registry is now, and true of what was
measured; every name of other libraries has a solver here or a reason there.
"""

import runpy
from pathlib import Path

import pytest
from solver_names import NAMES

from fastsample.solvers import SOLVERS

ROOT = Path(__file__).resolve().parents[1]
TOOL = runpy.run_path(str(ROOT / "tools" / "solvers_page.py"))
PAGE = (ROOT / "docs" / "solvers.md").read_text()
BLOCKS = dict(TOOL["BLOCK"].findall(PAGE))
AT = {grid: TOOL["figures"](text) for grid, text in BLOCKS.items()}
ABSENT = {
    (library, name)
    for _, of in TOOL["NOT_HERE"]
    for library, words in of.items()
    for name in TOOL["names"](words)
}


def test_the_page_is_what_the_registry_says():
    """Written by `python tools/solvers_page.py`."""
    assert TOOL["page"](BLOCKS) == PAGE
    assert TOOL["evidence"](BLOCKS) == TOOL["MEASURED"].read_text()


@pytest.mark.parametrize("library", [*NAMES])
def test_every_name_elsewhere_is_a_solver_or_has_a_reason(library):
    has = {name for where, name, _ in TOOL["here"]() if where == library}
    lacks = {name for where, name in ABSENT if where == library}
    assert has | lacks == set(NAMES[library]) and not has & lacks


def test_names_are_of_these_libraries():
    assert {library for library, *_ in TOOL["here"]()} == set(NAMES) >= {k for k, _ in ABSENT}


def test_every_grid_was_measured_with_solvers_that_there_are():
    assert tuple(AT) == TOOL["GRIDS"]
    for of in AT.values():
        assert {key.split()[0] for key in of} <= set(SOLVERS)
        assert {int(key.split()[1]) for key in of} == set(TOOL["BUDGETS"])


def test_what_the_page_says_of_orders_is_what_was_measured():
    at = lambda name, m: AT["Karras"][f"{name} {m}"]
    for m in (5, 6, 8):
        for third in ("dpmpp_3m", "unipc"):
            assert at(third, m) < at("ddim", m) < at("dpmpp_2m", m) - 2
        assert at("deis", m) > at("dpmpp_2m", m) and at("heun", m) < at("ddim", m)
    assert min(at("dpmpp_3m", 20), at("unipc", 20), at("deis", 20)) > at("dpmpp_2m", 20)
