"""select: one choice for each (kernel, device, dtype), with its reason; a wish is granted or
refused, never replaced.
"""

import sys
from importlib.util import module_from_spec, spec_from_file_location, spec_from_loader

import pytest
import torch

import fastsample
from fastsample.kernels import native, reference, select, triton
from fastsample.kernels.backend import BACKENDS, KERNELS, VARIABLE, _chosen, chosen, filling
from fastsample.kernels.reference import noise
from fastsample.runtime.window import window


@pytest.fixture(autouse=True)
def forgotten():
    """Choices made in a test end with it."""
    before = dict(_chosen)
    _chosen.clear()
    yield
    _chosen.clear()
    _chosen.update(before)


def test_the_choice_is_made_once_and_kept_with_its_reason():
    first = select("step", "cpu", torch.float32)
    assert first is select("step", torch.device("cpu"), torch.float32)
    assert first.reason
    assert chosen() == {("step", "cpu", torch.float32, None): first}
    assert first.name == ("reference" if native.MISSING else "native")


def test_a_wish_by_argument():
    choice = select("step", "cpu", torch.float64, "reference")
    assert (choice.name, choice.module) == ("reference", reference)
    assert "argument" in choice.reason


def test_a_wish_by_environment(monkeypatch):
    monkeypatch.setenv(VARIABLE, "reference")
    choice = select("step", "cpu", torch.float32)
    assert choice.name == "reference"
    assert VARIABLE in choice.reason
    monkeypatch.setenv(VARIABLE, "fortran")
    _chosen.clear()
    with pytest.raises(
        ValueError,
        match=f"'fortran' \\(from {VARIABLE}\\) is unknown; accepted are {', '.join(BACKENDS)}",
    ):
        select("step", "cpu", torch.float32)


def test_a_wish_that_cannot_be_granted_is_an_error():
    with pytest.raises(RuntimeError, match="native was asked for .* tensors are on meta"):
        select("step", "meta", torch.float32, "native")
    assert select("step", "meta", torch.float32).name == "reference"


@pytest.mark.parametrize("wish", [None, *BACKENDS])
@pytest.mark.parametrize("binary", [True, False])
def test_the_host_fills_noise_whatever_is_wished_of_a_device(monkeypatch, wish, binary):
    """A window's and a device's without float64, in one way: the wish where it runs on the host,
    else the best that does; always the same bits.
    """
    seed = torch.tensor([7, 8])
    right = noise.normal(seed, torch.full_like(seed, 3), 12).view(2, 3, 4)
    monkeypatch.setenv(VARIABLE, wish or "")
    if not binary:
        monkeypatch.setattr(native, "MISSING", "fastsample._C is not built")
    runs = {"native": binary, "triton": triton.INTERPRETED, "reference": True}
    others = ["native", "reference"] if binary else ["reference"]
    assert filling(torch.float32).name == (wish if runs.get(wish) else others[0])
    part = window((2, 3, 4), (..., slice(1, 3))).over((2, 3, 2), None)
    assert torch.equal(part.noise(seed, None, 3, torch.empty(2, 3, 2)), right[..., 1:3])
    ids = torch.full_like(seed, 3)
    assert torch.equal(noise._by_kernel(seed, ids, 12, 0), right.flatten(1))


def test_a_word_that_is_no_backend_fills_nothing(monkeypatch):
    monkeypatch.setenv(VARIABLE, "fortran")
    with pytest.raises(ValueError, match="'fortran' .* is unknown"):
        filling(torch.float32)


def test_without_the_binary(monkeypatch):
    """Everything runs on the reference, and says why; asking for native is refused."""
    monkeypatch.setattr(native, "MISSING", "fastsample._C is not built")
    choice = select("step", "cpu", torch.float32)
    assert choice.name == "reference"
    assert "not built" in choice.reason
    with pytest.raises(RuntimeError, match="not built"):
        select("step", "cpu", torch.float32, "native")


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_kernel_has_a_choice_of_its_own(kernel):
    """A backend that lacks one kernel there runs the others."""
    refuses = lambda name, device, dtype: "no such kernel" if name == kernel else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "covers", refuses)
        choice = select(kernel, "cpu", torch.float32)
        other = select("moments" if kernel == "step" else "step", "cpu", torch.float32)
    others = f", triton: {triton.covers(kernel, torch.device('cpu'), torch.float32)}"
    assert (choice.name, choice.reason) == ("reference", "native: no such kernel" + others)
    assert other.name == "native"


@pytest.mark.parametrize("here", [False, True])
def test_triton_runs_on_the_cpu_only_interpreted_and_only_where_asked_for(monkeypatch, here):
    monkeypatch.setattr(triton, "INTERPRETED", here)
    monkeypatch.setattr(native, "MISSING", "fastsample._C is not built")
    choice = select("step", "cpu", torch.float32)
    assert choice.name == "reference"
    assert ("only where asked for" if here else "only under TRITON_INTERPRET=1") in choice.reason
    if here:
        assert select("step", "cpu", torch.float32, "triton").name == "triton"
    else:
        with pytest.raises(RuntimeError, match="triton was asked for .* TRITON_INTERPRET=1"):
            select("step", "cpu", torch.float32, "triton")


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_gpu_that_native_does_not_cover_is_tritons(monkeypatch, kernel):
    """Nothing is launched: what is chosen there, and why."""
    monkeypatch.setattr(native, "covers", lambda kernel, device, dtype: "no CUDA kernels")
    assert select(kernel, "cuda", torch.float32).name == "triton"
    _chosen.clear()
    monkeypatch.setattr(triton, "find_spec", lambda name: None)
    choice = select(kernel, "cuda", torch.float32)
    assert (choice.name, choice.reason) == (
        "reference",
        "native: no CUDA kernels, triton: triton is not installed; pip install triton",
    )


def test_on_rocm_triton_is_chosen_and_says_why(monkeypatch):
    """torch calls such a device cuda."""
    monkeypatch.setattr(torch.version, "hip", "6.4")
    choice = select("step", "cuda", torch.float32)
    assert choice.name == "triton" and "native: " in choice.reason and "ROCm" in choice.reason


class Unloadable:
    """An importer that finds the binary and cannot load it."""

    def find_spec(self, name, path=None, target=None):
        return spec_from_loader(name, self) if name == "fastsample._C" else None

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        raise ImportError("libgomp.so.1: cannot open shared object file")


def test_a_binary_that_is_there_and_does_not_load_is_told(monkeypatch):
    """Once, in the loader's words; the reason is kept."""
    monkeypatch.delattr(fastsample, "_C", raising=False)
    monkeypatch.delitem(sys.modules, "fastsample._C", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Unloadable(), *sys.meta_path])
    spec = spec_from_file_location("fastsample.kernels.again", native.__file__)
    again = module_from_spec(spec)
    with pytest.warns(UserWarning, match="does not load .libgomp.so.1: cannot open.* reference$"):
        spec.loader.exec_module(again)
    assert "does not load (libgomp.so.1: cannot open" in again.MISSING and not again.EXCHANGE
    assert again.covers("step", torch.device("cpu"), torch.float32) == again.MISSING
