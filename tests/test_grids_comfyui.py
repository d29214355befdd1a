"""Grids under ComfyUI's and RES4LYF's names, against loops in float64 written from their
formulas.
"""

import math

import mpmath
import numpy as np
import pytest
from scipy import stats

from fastsample import grids
from fastsample.schedules import EDM, DiscreteVP, Flow

EPS = float(np.finfo(np.float64).eps)
SD = DiscreteVP.scaled_linear()


def rho(schedule, grid):
    """sigma/alpha."""
    return schedule.sigma(grid) / schedule.alpha(grid)


def near(found, wanted, ulps=512):
    np.testing.assert_allclose(found, wanted, rtol=ulps * EPS, atol=0)


def comfy_sigmas(schedule):
    """The table of sigma that ComfyUI's model_sampling has, data to noise."""
    if isinstance(schedule, DiscreteVP):
        return rho(schedule, np.arange(1000.0))
    if isinstance(schedule, EDM):
        return np.exp(np.linspace(math.log(schedule.sigma_min), math.log(schedule.sigma_max), 1000))
    t = np.arange(1, 1001) / 1000
    return schedule.shift * t / (1 + (schedule.shift - 1) * t)


def of_comfy(schedule, sigma):
    """Their sigma as we have it."""
    return schedule.sigma(sigma) if isinstance(schedule, Flow) else rho(schedule, sigma)


COMFY = {"SD": SD, "EDM": EDM(), "Flow(3)": Flow(3.0), "Flow": Flow()}


@pytest.mark.parametrize("name", COMFY)
@pytest.mark.parametrize("n", [1, 4, 7, 20])
def test_comfyui_indices(name, n):
    schedule = COMFY[name]
    table = comfy_sigmas(schedule)
    wanted = [table[-(1 + int(x * (len(table) / n)))] for x in range(n)]
    near(of_comfy(schedule, grids.simple(schedule, n))[:-1], wanted)
    wanted, x = [], 1
    while x < len(table):
        wanted.append(table[x])
        x += max(len(table) // n, 1)
    near(of_comfy(schedule, grids.ddim_uniform(schedule, n))[:-1], wanted[::-1])
    for a, b in ((0.6, 0.6), (0.5, 0.7)):
        wanted, last = [], -1
        for x in range(n):
            at = int(np.rint(stats.beta.ppf(1.0 - x / n, a, b) * (len(table) - 1)))
            wanted += [table[at]] if at != last else []
            last = at
        near(of_comfy(schedule, grids.beta_comfyui(schedule, n, a, b))[:-1], wanted)
    near(grids.beta57(schedule, n), grids.beta_comfyui(schedule, n, 0.5, 0.7))


@pytest.mark.parametrize("name", COMFY)
@pytest.mark.parametrize("n", [1, 4, 20])
def test_comfyui_labels(name, n):
    """sigma(t) at times even from timestep(sigma_max) to timestep(sigma_min): the table's index,
    ¼ ln sigma on EDM, sigma itself on a flow.
    """
    schedule = COMFY[name]
    table = comfy_sigmas(schedule)
    if isinstance(schedule, DiscreteVP):
        first, last, sigma = 999.0, 0.0, lambda t: rho(schedule, t)
    elif isinstance(schedule, EDM):
        first, last = (0.25 * math.log(s) for s in (table[-1], table[0]))
        sigma = lambda t: np.exp(4.0 * t)
    else:
        first, last = table[-1], table[0]
        sigma = lambda t: schedule.shift * t / (1 + (schedule.shift - 1) * t)
    for make, times in (
        (grids.normal, np.linspace(first, last, n)),
        (grids.sgm_uniform, np.linspace(first, last, n + 1)[:-1]),
    ):
        near(of_comfy(schedule, make(schedule, n))[:-1], sigma(times), ulps=4096)


@pytest.mark.parametrize("n", [2, 10, 31])
def test_kl_optimal(n):
    mpmath.mp.dps = 40
    low, high = 0.03, 14.6
    wanted = [
        float(
            mpmath.tan(
                (1 - mpmath.mpf(i) / (n - 1)) * mpmath.atan(high)
                + mpmath.mpf(i) / (n - 1) * mpmath.atan(low)
            )
        )
        for i in range(n)
    ]
    near(grids.kl_optimal(EDM(low, high), n)[:-1], wanted)
    s = Flow(3.0).sigma(grids.kl_optimal(Flow(3.0), n))[:-1]
    lowest = Flow(3.0).sigma(1e-3)
    near(s, np.tan(np.linspace(np.arctan(1.0), np.arctan(lowest), n)))


@pytest.mark.parametrize("n", [3, 20, 40])
def test_laplace_of_comfyui(n):
    schedule, wanted = EDM(0.03, 14.6), []
    for i in range(n):
        u = i / (n - 1)
        level = 0.0 - 0.5 * np.sign(0.5 - u) * math.log(1 - 2 * abs(0.5 - u) + 1e-5)
        wanted.append(min(max(math.exp(level), 0.03), 14.6))
    wanted = sorted(set(wanted), reverse=True)
    near(grids.laplace(schedule, n)[:-1], wanted, ulps=4096)
    assert len(grids.laplace(EDM(0.5, 2.0), 40)) < 41  # those beyond the ends are one


@pytest.mark.parametrize("n", [2, 5, 20, 61])
def test_bong_tangent(n):
    """The two parts, point by point."""
    size = n + 2
    split, bend = int((size * 0.6 + size * 0.6) / 2), 0.2 / (size / 40)

    def part(count, pivot, high, low):
        f = [((2 / math.pi) * math.atan(-bend * (x - pivot)) + 1) / 2 for x in range(count)]
        return [(v - f[-1]) / (f[0] - f[-1]) * (high - low) + low for v in f]

    pivot = int(size * 0.6)
    wanted = part(split, pivot, 1.0, 0.5)[:-1] + part(size - split, pivot - split, 0.5, 0.0)
    assert len(wanted) == n + 1
    np.testing.assert_allclose(
        Flow().sigma(grids.bong_tangent(Flow(), n)), wanted, atol=64 * EPS, rtol=0
    )
    near(
        rho(SD, grids.bong_tangent(SD, n))[:-1], rho(SD, 999.0) * np.array(wanted[:-1]), ulps=2**14
    )
