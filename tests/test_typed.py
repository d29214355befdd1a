"""What type checkers are told of the package agrees with what runs; `make types` checks uses."""

import ast
import inspect
from pathlib import Path

import pytest

import fastsample as fs
from fastsample.runtime.words import Common, Words

PACKAGE = Path(fs.__file__).parent


def test_the_words_of_a_call_are_those_of_its_signature():
    said = {*inspect.signature(fs.Sampler.__call__).parameters}
    assert {*Common.__annotations__} == said - {"self", "noise", "trajectory"}
    assert {*Words.__annotations__} | Common.__annotations__.keys() == said - {"self", "trajectory"}


@pytest.mark.parametrize("front", ["solvers", "grids"])
def test_every_name_of_a_front_is_exported_to_a_strict_checker(front):
    """By `import name as name`, as the list of names is made when it runs."""
    seen = set()
    for node in ast.parse((PACKAGE / front / "__init__.py").read_text()).body:
        if isinstance(node, ast.ImportFrom):
            seen |= {alias.name for alias in node.names if alias.asname == alias.name}
        elif isinstance(node, ast.Assign):
            seen |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            seen.add(node.target.id)
        elif isinstance(node, ast.FunctionDef):
            seen.add(node.name)
    assert {*getattr(fs, front).__all__} <= seen


def test_the_package_says_that_it_is_typed():
    assert (PACKAGE / "py.typed").exists()
