"""select: one choice for each (device, dtype), with its reason; a wish is granted or refused, never
replaced.
"""

import pytest
import torch

from fastsample.kernels import native, reference, select
from fastsample.kernels import select as choose
from fastsample.kernels.backend import BACKENDS, VARIABLE, _chosen, chosen


@pytest.fixture(autouse=True)
def forgotten():
    """Choices made in a test end with it."""
    before = dict(_chosen)
    _chosen.clear()
    yield
    _chosen.clear()
    _chosen.update(before)


def test_the_choice_is_made_once_and_kept_with_its_reason():
    first = select("cpu", torch.float32)
    assert first is select(torch.device("cpu"), torch.float32)
    assert first.reason
    assert chosen() == {("cpu", torch.float32, None): first}
    assert first.name == ("reference" if native.MISSING else "native")


def test_a_wish_by_argument():
    choice = select("cpu", torch.float64, "reference")
    assert (choice.name, choice.module) == ("reference", reference)
    assert "argument" in choice.reason


def test_a_wish_by_environment(monkeypatch):
    monkeypatch.setenv(VARIABLE, "reference")
    choice = choose("cpu", torch.float32)
    assert choice.name == "reference"
    assert VARIABLE in choice.reason
    monkeypatch.setenv(VARIABLE, "fortran")
    _chosen.clear()
    with pytest.raises(
        ValueError,
        match=f"'fortran' \\(from {VARIABLE}\\) is unknown; accepted are {', '.join(BACKENDS)}",
    ):
        choose("cpu", torch.float32)


def test_a_wish_that_cannot_be_granted_is_an_error():
    with pytest.raises(RuntimeError, match="native was asked for .* tensors are on meta"):
        select("meta", torch.float32, "native")
    assert select("meta", torch.float32).name == "reference"


def test_without_the_binary(monkeypatch):
    """Everything runs on the reference, and says why; asking for native is refused."""
    monkeypatch.setattr(native, "MISSING", "fastsample._C is not built")
    choice = select("cpu", torch.float32)
    assert choice.name == "reference"
    assert "not built" in choice.reason
    with pytest.raises(RuntimeError, match="not built"):
        select("cpu", torch.float32, "native")
