"""The sizes CONTRIBUTING promises: files of at most 400 lines, functions of at most 50, a README of
fewer than 300.
"""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILE_LINES, FUNCTION_LINES, README_LINES = 400, 50, 300
BANNED_NAMES = {"utils", "util", "helpers", "helper", "common", "misc"}
# What is longer, as long as it is: an entry that is no longer needed fails too.
LONG = {
    # every argument of a dozen schedulers, by name, and nothing else
    "fastsample/interop/diffusers/scheduler.py: __init__": 71,
}


def sources(*patterns):
    return [path for pattern in patterns for path in sorted(ROOT.glob(pattern))]


def test_files_are_short():
    folders = ("fastsample/**/*.py", "tests/**/*.py", "bench/**/*.py", "tools/**/*.py")
    folders += ("integrations/**/*.py",)
    paths = sources(*folders, "csrc/**/*.h*", "csrc/**/*.cpp", "csrc/**/*.cu")
    assert len(paths) > 40
    lines = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in paths}
    long = {path: n for path, n in lines.items() if n > FILE_LINES}
    assert long == {where: n for where, n in LONG.items() if ": " not in where}


def test_functions_are_short():
    long = {}
    for path in sources("fastsample/**/*.py", "integrations/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lines = node.end_lineno - node.lineno + 1
                if lines > FUNCTION_LINES:
                    long[f"{path.relative_to(ROOT)}: {node.name}"] = lines
    assert long == {where: n for where, n in LONG.items() if ": " in where}


def test_no_drawer_for_everything():
    paths = sources("fastsample/**/*.py", "csrc/**/*.h*")
    bad = [str(p.relative_to(ROOT)) for p in paths if p.stem in BANNED_NAMES]
    assert not bad, bad


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) < README_LINES
