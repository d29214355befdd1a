"""csrc/cuda's step and fill, compiled by g++ over tests/emulate, against the CPU kernels: every
output to the bit, with canaries around all of them.
"""

import ctypes
from collections import Counter

import numpy as np
import pytest
from c.interface import CPU, CUDA, NoiseArgs
from emulate import build, fills, steps
from emulate.memory import Array, faults

pytestmark = pytest.mark.slow  # builds libfastsample over the emulation


@pytest.fixture(scope="module")
def lib():
    return build.library()


@pytest.fixture(scope="module")
def ran(lib):
    """2,650 random steps: {seed: what is wrong}, how often each kernel ran, words of the status."""
    met, words = Counter(), set()

    def seen(kernel, arrays):
        met[kernel] += 1
        if "status" in arrays:
            words.update((arrays["status"].values & 0xFF).tolist())

    with np.errstate(all="ignore"):
        found = {seed: steps.check(lib, seed, seen) for seed in range(2650)}
    return {seed: names for seed, names in found.items() if names}, met, words


def test_random_steps_have_the_bits_of_the_cpu(ran):
    assert ran[0] == {}


def test_the_random_steps_meet_every_kernel_and_every_fault(ran):
    """Else the test above, which holds each to the kernel of the rules too, would say less than it
    seems.
    """
    _, met, words = ran
    assert len(met) == 9 and min(met.values()) >= 8, met
    assert words >= {0, 1, 2, 4, 8}


def test_a_row_whose_words_the_host_lacks_is_looked_up_by_the_device(lib):
    case = next(
        c for c in map(steps.Step, range(99)) if "uniform" in steps.expected_kernel(c) and c.B
    )
    before = lib.count("step_any(whole)")
    lib.fs_step(case.args(case.arrays, CUDA, words=False))
    assert lib.count("step_any(whole)") == before + 1


def test_random_fills_have_the_bits_of_the_cpu(lib):
    found = {seed: fills.check(lib, seed) for seed in range(150)}
    assert {seed: names for seed, names in found.items() if names} == {}


def test_more_samples_than_a_grid_has_rows(lib):
    lib.fs_emulated_order(0, 0)
    out = [Array(np.full((70_000, 3), np.nan, np.float32)) for _ in range(2)]
    for device, array in zip((CPU, CUDA), out, strict=True):
        lib.fs_noise_fill(NoiseArgs(device=device, batch=70_000, elements=3, out=array.address))
    assert faults({"out": out[0]}, {"out": out[1]}) == []


@pytest.mark.parametrize(("kind", "count"), [("steps", 500), ("fills", 60)])
def test_under_sanitizers(kind, count):
    done = build.run_alone(build.sanitized(), kind, 0, count, sanitizer=True)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]


def test_a_write_behind_an_array_is_seen():
    array = Array(np.zeros(5, np.float32), 1)
    assert array.intact() and array.address % 16 == 4
    for at in (array.address - 1, array.address + 20):
        planted = array.copy()
        ctypes.memset(at - array.address + planted.address, 0, 1)
        assert faults({"x": array}, {"x": planted}) == ["around x"]
