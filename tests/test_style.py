"""The sizes files, functions and README have at most."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILE_LINES, FUNCTION_LINES, README_LINES = 494, 109, 150
BANNED_NAMES = {"utils", "util", "helpers", "helper", "common", "misc"}


def sources(*patterns):
    return [path for pattern in patterns for path in sorted(ROOT.glob(pattern))]


def test_files_are_short():
    paths = sources(
        "fastsample/**/*.py",
        "csrc/**/*.h",
        "csrc/**/*.cpp",
        "csrc/**/*.cu",
        "tests/**/*.py",
        "bench/**/*.py",
        "tools/**/*.py",
    )
    assert len(paths) > 40
    long = {
        str(p.relative_to(ROOT)): n
        for p in paths
        if (n := len(p.read_text().splitlines())) > FILE_LINES
    }
    assert not long, long


def test_functions_are_short():
    long = {}
    for path in sources("fastsample/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lines = node.end_lineno - node.lineno + 1
                if lines > FUNCTION_LINES:
                    long[f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"] = lines
    assert not long, long


def test_no_drawer_for_everything():
    bad = [
        str(p.relative_to(ROOT))
        for p in sources("fastsample/**/*.py", "csrc/**/*.h")
        if p.stem in BANNED_NAMES
    ]
    assert not bad, bad


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) < README_LINES
