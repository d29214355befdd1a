"""fs_plan_init_scale: where a C host's run begins."""

import ctypes
import dataclasses

import numpy as np
import pytest
from c import build, interface
from c.interface import Library, StatusError

import fastsample as fs
from tests.cases import louder

pytestmark = pytest.mark.slow  # builds libfastsample
B, D = 2, 1031  # not a multiple of a block, nor of four


@pytest.fixture(scope="module")
def lib():
    return Library(next(build.installed()[0].glob("lib*/libfastsample.so")))


def multistep():
    flow = fs.schedules.Flow(shift=3.0)
    return fs.solvers.dpmpp_2m(flow, fs.grids.uniform(flow, 6)[1:], prediction="flow")


def test_init_scale_is_what_row_zero_does(lib):
    """With the amplitude of a search, before churn, and padded or guided; a plan that begins from
    an image has none.
    """
    plan, scale = multistep(), ctypes.c_double(-1.0)
    vp = fs.schedules.VP()
    churn = fs.solvers.heun(vp, [0.9, 0.5, 0.1], prediction="eps", s_churn=1.0, space="rho")
    guided = fs.guidance.guided(fs.solvers.euler_ancestral(vp, [0.9, 0.5, 0.1], prediction="eps"))
    unread = dataclasses.replace(plan, reads=[0, *plan.reads[1:]])
    for each in (plan, louder(plan), louder(guided, 0.7), churn, plan.padded(S=5, L=2), unread):
        handle = lib.parse(each.to_bytes())
        lib.fs_plan_init_scale(handle, ctypes.byref(scale))
        assert scale.value == each.init_scale
        with pytest.raises(
            StatusError,
            match="fs_plan_init_scale: scale is NULL; the address of a double is needed",
        ) as error:
            lib.fs_plan_init_scale(handle, None)
        assert error.value.status == interface.E_ARG
        lib.fs_plan_free(handle)
    handle = lib.parse(plan.remake(1).to_bytes())
    with pytest.raises(
        StatusError, match="^fs_plan_init_scale: the plan .* begins from an image; .* has one$"
    ) as error:
        lib.fs_plan_init_scale(handle, ctypes.byref(scale))
    assert error.value.status == interface.E_ARG and scale.value == unread.init_scale == 0.0
    lib.fs_plan_free(handle)
    with pytest.raises(StatusError, match="fs_plan_init_scale: not a live plan") as error:
        lib.fs_plan_init_scale(None, ctypes.byref(scale))
    assert error.value.status == interface.E_HANDLE


def test_a_run_that_a_host_begins_itself_has_the_same_bits(lib):
    """From row 1 with init_scale times the noise, as after row 0."""
    plan, scale = louder(multistep()), ctypes.c_double()
    handle = lib.parse(plan.to_bytes())
    noise = np.random.default_rng(0).standard_normal((B, D), np.float32)
    lib.fs_plan_init_scale(handle, ctypes.byref(scale))
    floats, ints = lib.pack(handle, np.float32)
    ends = []
    for first, x in ((0, noise.copy()), (1, np.float32(scale.value) * noise)):
        slots, f = np.zeros((plan.S, B, D), np.float32), np.zeros((B, D), np.float32)
        for i in range(first, plan.rows):
            f[:] = np.tanh(x)
            row = np.full(B, i, np.int32)
            given = {
                "table_f": floats,
                "table_i": ints,
                "x": x,
                "slots": slots,
                "f": [f],
                "row": row,
            }
            sizes = {"batch": B, "pool": B, "outputs": B, "elements": D, "table_rows": plan.rows}
            lib.fs_step(interface.step_args({k: plan.dims[k] for k in "SGLKE"}, **sizes, **given))
        ends.append(x)
    assert np.array_equal(*ends)
    lib.fs_plan_free(handle)
