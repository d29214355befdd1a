"""The documentation keeps its word: its code runs and prints what it shows, its links lead
somewhere, what is written from the code is what that says, and docstrings have the form rendered.
"""

import ast
import os
import re
import runpy
from pathlib import Path

import pages
import pytest

from fastsample import solvers

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
NAV = re.findall(r'"([\w/-]+\.md)"', (ROOT / "zensical.toml").read_text())
FORM = runpy.run_path(str(ROOT / "tools" / "docstrings.py"))
BUILD = runpy.run_path(str(ROOT / "tools" / "docs.py"))
# what takes longer than a few seconds, and what has a test of its own, which looks at results too
SLOW = {"calibrate.md", "caching.md", "which_plan.md"}
APART = {"servers.md"}
LINES = 300


def name(page):
    return str(page.relative_to(DOCS))


def case(page):
    return pytest.param(page, id=name(page), marks=[pytest.mark.slow] * (name(page) in SLOW))


WITH_CODE = [case(page) for page in PAGES if pages.blocks(page) and name(page) not in APART]


@pytest.mark.parametrize("page", WITH_CODE)
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
    (tmp_path / "gallery").symlink_to(DOCS / "gallery")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT) + os.pathsep + os.environ.get("PYTHONPATH", ""))
    for registry in ("SOLVERS", "JUMPS"):  # a page may register a solver
        monkeypatch.setattr(solvers, registry, dict(getattr(solvers, registry)))
    pages.run(pages.blocks(page))


def test_every_page_is_in_the_navigation_once():
    assert sorted(NAV) == [name(page) for page in PAGES], "zensical.toml has nav"


def test_pages_are_short_and_their_links_lead_somewhere():
    for page in PAGES:
        assert len(page.read_text().splitlines()) <= LINES, page
        assert [path for path in pages.links(page) if not path.exists()] == [], page


def test_a_table_has_a_blank_line_before_it():
    """Else it is a paragraph on the site, whatever it is elsewhere."""
    for page in PAGES:
        lines = ["", *pages.BLOCK.sub("```", page.read_text()).splitlines()]
        for before, line in zip(lines, lines[1:], strict=False):
            begun = not before or before.startswith("|") or before.endswith("-->")
            assert begun or not line.startswith("|"), (page, line)


def test_a_command_of_make_on_a_page_is_one():
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for page in PAGES:
        for block in pages.blocks(page, "sh"):
            for words in pages.commands(block.text):
                asked = {word for word in words[1:] if "=" not in word}
                assert words[0] != "make" or asked <= {*targets}, page


def test_pages_from_the_code_are_what_it_says():
    """Written by `python tools/docs_pages.py`."""
    made = runpy.run_path(str(ROOT / "tools" / "docs_pages.py"))["pages"]()
    assert [path for path, text in made.items() if path.read_text() != text] == []
    assert {path for path in PAGES if path.parent.name == "api"} <= {*made, DOCS / "api" / "c.md"}


def test_every_docstring_has_the_form():
    """Two spaces within a line are a list's, in one column, or follow a formula's comma."""
    gap = re.compile(r"[^\s,;.] {2,}\S")
    for path in sorted((ROOT / "fastsample").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                for kind, lines in FORM["parts"](ast.get_docstring(node) or "a"):
                    stray = [line for line in lines if kind == "prose" and gap.search(line)]
                    assert not stray, f"{path}: {stray[0]}"


LIST = """A formula of two lines,
     + h (a_b - c*d)·m,  0 < h ~ 1, of [B,*].

    x' = a x
       + b m

takes `one*two` and
name      what it is, which
          goes on
a long name, and another  its text,
          which goes on
[n, *] t  a shape
    mode     indented
    other    too
And more.
"""


def test_a_docstring_as_markdown():
    assert FORM["markdown"](LIST).split("\n\n") == [
        r"A formula of two lines, + h (a\_b - c\*d)·m,  0 &lt; h &#126; 1, of `[B,*]`.",
        "```text\nx' = a x\n   + b m\n```",
        "takes `one*two` and",
        "`name`\n:   what it is, which goes on",
        "`a long name, and another`\n:   its text, which goes on",
        "`[n, *] t`\n:   a shape",
        "`mode`\n:   indented",
        "`other`\n:   too",
        "And more.",
    ]


def test_what_a_site_lacks_is_named(tmp_path):
    page = '<a href="b.html#x">b</a><a href="c.html">c</a><a href="https://a.org">a</a>{}'
    (tmp_path / "a.html").write_text(page.format('<img src="p.png"><script src="//n.org/s.js">'))
    (tmp_path / "b.html").write_text(r'<p id="x">a \&lt; b<code>\*</code></p>')
    assert BUILD["astray"](tmp_path) == [
        "a.html loads //n.org/s.js",
        "a.html points to c.html, which is not there",
        "a.html points to p.png, which is not there",
        r"b.html shows '\\< b'",
    ]


def test_numbers_of_a_page_are_compared():
    pages.alike("4 rows, 31.41 dB\n", "4 rows, 31.42 dB\n")
    for printed in ("5 rows, 31.42 dB\n", "4 rows, 31.45 dB\n", "4 lines, 31.42 dB\n"):
        with pytest.raises(AssertionError):
            pages.alike(printed, "4 rows, 31.42 dB\n")
