"""csrc/cuda's moments, cost matrix and gather, compiled by g++ over tests/emulate: the CPU's bits
where they are promised, else the bound of the roundings.
"""

import numpy as np
import pytest
from c.interface import CUDA, CostArgs
from emulate import build, costs, moments
from emulate.memory import Array

pytestmark = pytest.mark.slow  # builds libfastsample over the emulation


@pytest.fixture(scope="module")
def lib():
    return build.library()


@pytest.mark.parametrize(
    ("kind", "count"), [(moments, 180), (costs, 260)], ids=["moments", "costs"]
)
def test_random_calls(lib, kind, count):
    before = {name: lib.count(name) for name in KERNELS[kind]}
    with np.errstate(all="ignore"):
        found = {seed: kind.check(lib, seed) for seed in range(count)}
    assert {seed: names for seed, names in found.items() if names} == {}
    assert all(lib.count(name) >= before[name] + 10 for name in before)


KERNELS = {
    moments: ("moments", "moments(whole)", "halve", "halve(max)", "zeros"),
    costs: ("cost_tiles", "cost_pairs", "cost_sum", "cost_gather", "cost_gather(any)"),
}


@pytest.mark.parametrize("kind", ["moments", "costs"])
def test_under_sanitizers(kind):
    done = build.run_alone(build.sanitized(), kind, 0, 60, sanitizer=True)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]


def test_a_source_that_is_none_gathers_nan(lib):
    """The host does not see i_star: the kernel compares it with its bounds."""
    U, c = Array(np.ones((1, 2, 8), np.float32)), Array(np.ones((1, 2, 4)))
    star, out = Array(np.array([1, 2, -2, 0], np.int32)), Array(np.zeros((1, 4, 8), np.float32))
    sizes = dict(device=CUDA, terms=1, batch=1, I=2, J=4, D=8)
    args = CostArgs(**sizes, c=c.address, i_star=star.address, out=out.address)
    args.U[0] = U.address
    lib.fs_cost_gather(args)
    assert (np.isnan(out.values).all(-1) == [[False, True, True, False]]).all() and out.intact()
