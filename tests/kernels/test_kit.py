"""The kit: every kernel of every backend on random configurations, bit for bit the definition's, or
for costs within their bound and with the argmins of float64; nothing is written elsewhere.
"""

import contextlib

import kit
import pytest
import torch
from cases import backends, same
from cost_bounds import bound, exact

from fastsample.kernels import argmin_source

COUNTS = {"step": 126, "fill": 18, "moments": 12, "cost_matrix": 36, "cost_gather": 58}
CASES = [
    pytest.param(kernel, name, marks=[pytest.mark.interpreted] if name == "triton" else [])
    for kernel in COUNTS
    for name in backends("step" if kernel == "fill" else kernel, wished=True)[1:]
]


def fenced(run, backend, device="cpu"):
    """What a configuration gives on a device, brought here, if every fence stood, and in the
    interpreter every address.
    """
    fences, looking = kit.Fences(device), contextlib.nullcontext()
    if backend == "triton" and device == "cpu":
        from addresses import checked

        looking = checked()
    with looking:
        got = run(backend, fences)
    assert fences.whole(), "written outside"
    return [v.cpu() for v in got]


def differs(run, got):
    """Is any number, dtype, shape or stride not the definition's?"""
    want = run("reference", kit.Fences())
    lies = [a.stride() == b.stride() for a, b in zip(got, want, strict=True)]
    return not (all(lies) and all(same(a, b) for a, b in zip(got, want, strict=True)))


def costs_differ(run, got):
    """Is any cost beyond its bound, or an argmin another than in float64?"""
    (got,), (U, c, X, band, p) = got, run.given
    want = exact(U, c, X, band, p)
    inside = torch.isfinite(want)
    near = ((got - want).abs() <= bound(U, c, X, p))[inside].all()
    alike = torch.equal(torch.isfinite(got), inside) and bool(near)
    return not (alike and torch.equal(argmin_source(got), argmin_source(want)))


@pytest.mark.parametrize(("kernel", "backend"), CASES)
@pytest.mark.filterwarnings("ignore:.* encountered in .*:RuntimeWarning")  # log 0, float16's ends
def test_random_configurations(kernel, backend):
    compare(kernel, backend)


def compare(kernel, backend, device="cpu", every=1):
    """Configurations of a kernel by a backend on a device, held to the definition here."""
    wrong = costs_differ if kernel == "cost_matrix" else differs
    for index in range(0, COUNTS[kernel], every):
        draw = kit.Draw(kernel, index)
        run = getattr(kit, kernel)(draw)
        got = fenced(run, backend, device)
        assert not wrong(run, got), f"{index}, {draw.regime}"
        if index % 10 == 0:
            again = zip(got, fenced(run, backend, device), strict=True)
            assert all(same(a, b) for a, b in again), f"{index} is not repeatable"


def test_configurations_are_of_every_kind():
    """250 in all, six regimes, and no kernel that gives nothing but zeros."""
    assert sum(COUNTS.values()) == 250
    for kernel, count in COUNTS.items():
        draws = [kit.Draw(kernel, index) for index in range(count)]
        assert {draw.regime for draw in draws} == set(kit.REGIMES)
        told = [fenced(getattr(kit, kernel)(draw), "reference") for draw in draws]
        some = [any(bool(v.nan_to_num(1).any()) for v in got) for got in told]
        assert sum(some) > 0.8 * count
    status = [fenced(kit.step(kit.Draw("step", k)), "reference") for k in range(COUNTS["step"])]
    seen = {int(v) & 255 for got in status for t in got if t.dtype == torch.int32 for v in t}
    assert seen >= {0, 1, 2, 4, 8}


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.int32])
def test_a_number_written_outside_is_noticed(dtype, behind):
    """The last one before an output, or the first one behind it."""
    makers = (
        lambda fences: fences.memory((2, 3), dtype),
        lambda fences: fences.copy(torch.zeros(2, 3, dtype=dtype)),
        lambda fences: torch.zeros(1).new_empty(2, 3, dtype=dtype),
        lambda fences: torch.zeros(1, dtype=dtype).new_zeros((2, 3)),
    )
    for make in makers:
        fences = kit.Fences()
        with fences.around_what_is_made():
            out = make(fences)
        assert out.shape == (2, 3) and out.dtype == dtype
        out.fill_(1)
        assert fences.whole()
        at = out.storage_offset() + (6 if behind else -1)
        out.as_strided((1,), (1,), at).fill_(1)
        assert not fences.whole()


def test_a_wrong_bit_is_noticed():
    for kernel in COUNTS:
        wrong, changed = costs_differ if kernel == "cost_matrix" else differs, 0
        for index in range(0, 24, 6):
            run = getattr(kit, kernel)(kit.Draw(kernel, index))
            got = [v.clone() for v in run("reference", kit.Fences())]
            assert not wrong(run, got)
            first = [v for v in got if v.dtype.is_floating_point and v.isfinite().any()][:1]
            for out in first:
                place = tuple(out.isfinite().nonzero()[0])
                least = torch.nextafter(out[place], out[place] + 1)
                out[place] = 1.01 * least if kernel == "cost_matrix" else least
                assert wrong(run, got)
                changed += 1
        assert changed
