"""What every test runs under: hypothesis without chance or deadlines, and memory of the package's
own torch.empty filled with NaN.
"""

import sys
from itertools import product
from pathlib import Path

import pytest
from covering import pairs

try:
    from hypothesis import settings
except ImportError:
    said = "tests: hypothesis is not installed; pip install 'fastsample[dev]'"
    raise pytest.UsageError(said) from None

settings.register_profile("fast", derandomize=True, deadline=None, max_examples=50)
settings.register_profile("soak", derandomize=True, deadline=None, max_examples=2000)
settings.load_profile("fast")

# Of two processes one would begin the last of these when the other had nothing left.
LONGEST = ("emulated_package", "docs", "cuda_compiled", "aoti_server", "readme", "emulated_kernels")
PACKAGE = str(Path(__file__).resolve().parents[1] / "fastsample")


def pytest_generate_tests(metafunc):
    """@pytest.mark.pairs(argument=values, ...), values a list or {id: value}: cases in which each
    value of an argument meets each of every other one, and in a soak the whole product.
    """
    for mark in metafunc.definition.iter_markers("pairs"):
        axes = {
            name: values if isinstance(values, dict) else {str(value): value for value in values}
            for name, values in mark.kwargs.items()
        }
        soak = metafunc.config.getoption("hypothesis_profile") == "soak"
        chosen = product(*axes.values()) if soak else pairs(*axes.values())
        cases = [
            pytest.param(
                *(axis[key] for axis, key in zip(axes.values(), keys, strict=True)),
                id="-".join(keys),
                marks=[pytest.mark.soak] if soak else [],
            )
            for keys in chosen
        ]
        metafunc.parametrize(list(axes), cases)


def pytest_collection_modifyitems(items):
    """The longest files are begun first. Slow tests run beside one another, so what a neighbour
    disturbs is none of them; and the Makefile finds the files of a mark by its name in them.
    """
    items.sort(key=lambda item: item.path.stem.removeprefix("test_") not in LONGEST)
    texts = {path: path.read_text() for path in {item.path for item in items}}
    for item in items:
        found = [m for m in ("slow", "alone", "interpreted") if item.get_closest_marker(m)]
        if {"slow", "alone"} <= set(found):
            raise pytest.UsageError(f"{item.nodeid}: slow and alone; one of the two is accepted")
        for mark in found:
            if f"pytest.mark.{mark}" not in texts[item.path]:
                said = (
                    f"{mark}, without a pytest.mark.{mark} in its file; the Makefile looks for it"
                )
                raise pytest.UsageError(f"{item.nodeid}: {said}")


@pytest.fixture(autouse=True)
def nothing_compiled_by_another_test():
    """Schedulers of one config share what they compile, also under another test's patches."""
    shared = sys.modules.get("fastsample.interop.diffusers.runs")
    if shared is not None:
        shared._shared.clear()


@pytest.fixture(autouse=True)
def unwritten_memory_is_nan(monkeypatch):
    """torch.empty and empty_like called from the package give NaN (or the largest integer): an
    output that nobody wrote fails loudly.
    """
    if "torch" not in sys.modules:  # a test of what importing loads must not load torch itself
        yield
        return
    import torch

    def poisoned(make):
        def empty(*args, **kwargs):
            tensor = make(*args, **kwargs)
            if torch.compiler.is_compiling() or not sys._getframe(1).f_code.co_filename.startswith(
                PACKAGE
            ):
                return tensor
            return tensor.fill_(
                torch.nan if tensor.is_floating_point() else torch.iinfo(tensor.dtype).max
            )

        return empty

    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, poisoned(getattr(torch, name)))
    yield
