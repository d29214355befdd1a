"""The bound of ays: against closed forms on Gaussian data, direct minimisation, and the law of the
noising process; its descent.
"""

import numpy as np
import pytest
import torch

import fastsample as fs
from fastsample.models import analytic
from fastsample.optimize import _klub, ays
from fastsample.optimize._shortest import shortest


def levels(low, high, N):
    return np.linspace(-np.log(low), -np.log(high), N + 1)


def gaussian(level, c):
    """C of N(0, c²) in one dimension: by the martingale property the difference of the posterior
    variances c² s²/(c² + s²).
    """
    s = np.exp(-level)
    left = c**2 / (1 + (c / s) ** 2)
    return left[:, None] - left[None]


def closed(knots, c, xp=np):
    """The bound of N(0, c²) on decreasing knots: with u = s², half the integral of
    c⁴/u² (1/(u + c²) - 1/(u_i + c²)), whose first part is -1/(c² u) + ln((u + c²)/u)/c⁴.
    """
    low, high = knots[1:] ** 2, knots[:-1] ** 2
    part = lambda u: -1 / (c**2 * u) + xp.log1p(c**2 / u) / c**4
    each = part(high) - part(low) - (1 / low - 1 / high) / (high + c**2)
    return 0.5 * c**4 * each.sum()


def minimised(knots, c):
    """(knots, bound) of the direct minimum near a start: Newton's steps over the logarithms of the
    knots between the ends.
    """
    ends, inner = torch.tensor(knots[[0, -1]]), torch.tensor(np.log(knots[1:-1]))
    bound = lambda v: closed(torch.cat([ends[:1], v.exp(), ends[1:]]), c, torch)
    slope = lambda v: torch.autograd.functional.jacobian(bound, v)
    for _ in range(20):
        curve = torch.autograd.functional.hessian(bound, inner)
        assert torch.linalg.eigvalsh(curve).min() > 0
        inner = inner - torch.linalg.solve(curve, slope(inner))
    assert slope(inner).abs().max() < 1e-12
    return np.concatenate([knots[:1], inner.exp().numpy(), knots[-1:]]), bound(inner).item()


@pytest.mark.parametrize("c", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("N", [7, 60])
def test_the_bound_of_a_gaussian_is_its_closed_form(c, N):
    """On any grid, however coarse, where c is the data's."""
    level = levels(0.03, 80.0, N)
    K, s = _klub.intervals(gaussian(level, c), level, 3.0, c), np.exp(-level)
    for i, j in ((N, 0), (N, N - 1), (N - 2, 1), (1, 0)):
        assert K[i, j] == pytest.approx(closed(s[[i, j]], c), rel=1e-10)


@pytest.mark.parametrize("power", [1.0, 2.0, 2.5])
def test_other_powers_are_the_integral(power):
    """By the midpoint rule over 10,000 parts of ln s."""
    c, level = 0.5, levels(0.05, 20.0, 9)
    K, s = _klub.intervals(gaussian(level, c), level, power, c), np.exp(-level)
    for i, j in ((9, 0), (6, 5)):
        step = np.log(s[i] / s[j]) / 10_000
        x = s[j] * np.exp(step * (np.arange(10_000) + 0.5))
        each = c**4 * (1 / (x**2 + c**2) - 1 / (s[i] ** 2 + c**2)) * x ** (1 - power)
        assert K[i, j] == pytest.approx(each.sum() * step, rel=1e-6)


def test_the_noise_end_may_be_infinite():
    """The level of Flow at t = 1: what comes of ever larger ones."""
    c, level = 0.5, levels(0.03, 500.0, 30)
    endless = level.copy()
    endless[-1] = -np.inf
    level[-1] = -np.log(1e9)
    K, near = (_klub.intervals(gaussian(v, c), v, 3.0, c) for v in (endless, level))
    assert np.isfinite(K).all() and np.allclose(K, near, rtol=1e-9, atol=0.0)


def test_with_another_c_the_bound_is_approached_by_the_square_of_the_spacing():
    wrong = []
    for N in (100, 200, 400):
        level = levels(0.03, 80.0, N)
        K = _klub.intervals(gaussian(level, 1.0), level, 3.0, 0.5)
        knots = np.rint(np.linspace(N, 0, 11)).astype(int)
        wrong.append(abs(_klub.total(K, knots) / closed(np.exp(-level)[knots], 1.0) - 1))
    assert wrong[0] < 1e-3 and wrong[0] > 3.5 * wrong[1] > 12 * wrong[2]


def test_the_optimum_is_that_of_direct_minimisation():
    """On a grid that is fine about every knot of the continuous optimum, and even elsewhere, where
    nothing keeps the program from other knots.
    """
    c, n, even = 0.5, 10, levels(0.03, 80.0, 150)
    K = _klub.intervals(gaussian(even, c), even, 3.0, c)
    first = np.exp(-even)[shortest(K, n)[n]]
    knots, least = minimised(first, c)
    near = np.log(knots[1:-1])[:, None] + np.linspace(-0.01, 0.01, 21)
    level = np.unique(np.concatenate([even, -near.ravel()]))[::-1]
    K = _klub.intervals(gaussian(level, c), level, 3.0, c)
    found = shortest(K, n)[n]
    reached = closed(np.exp(-level)[found], c)
    assert _klub.total(K, found) == pytest.approx(reached, rel=1e-10)
    assert least * (1 - 1e-12) <= reached <= least * (1 + 1e-6)
    assert closed(first, c) > least * (1 + 1e-5)


def test_an_even_grid_approaches_it():
    c, n, over = 0.5, 6, []
    for N in (40, 120, 360):
        level = levels(0.05, 20.0, N)
        K = _klub.intervals(gaussian(level, c), level, 3.0, c)
        over.append(closed(np.exp(-level)[shortest(K, n)[n]], c))
    least = minimised(np.exp(-level)[shortest(K, n)[n]], c)[1]
    over = np.array(over) / least - 1
    assert over[0] < 0.03 and over[0] > 4 * over[1] > 16 * over[2] > 0


@pytest.mark.parametrize("name", ["EDM", "VP", "Flow"])
def test_paths_are_drawn_as_the_noising_process_draws_them(name):
    """Variances and covariances of y = x/alpha over 4,096 paths, within 5 of their deviations;
    y - x0 has independent steps, so that of y_i and y_j is the smaller s².
    """
    schedule = fs.schedules.SCHEDULES[name]()
    model = analytic.Point(np.zeros(4)).model(schedule)
    t, level = _klub.nodes_of(model.schedule, 0.1, 6)
    B, D = 4096, 4
    x0 = torch.full((B, D), 0.7).double()
    x = _klub.noised(x0, model, t, torch.arange(B)).numpy()
    alpha, sigma = model.schedule.alpha(t), model.schedule.sigma(t)
    e = (x - alpha[:, None] * 0.7) / sigma[:, None]
    cov = np.einsum("bid,bjd->ij", e, e) / (B * D)
    with np.errstate(invalid="ignore"):  # two infinite levels are one
        wanted = np.exp(-np.abs(np.nan_to_num(level[:, None] - level, nan=0.0)))
    assert np.abs(cov - wanted).max() < 5 * np.sqrt(2 / (B * D))
    assert np.abs(e.mean((0, 2))).max() < 5 / np.sqrt(B * D)


def test_a_descent_stops_where_no_candidate_is_better():
    level = levels(0.03, 80.0, 90)
    K = _klub.intervals(gaussian(level, 0.5), level, 3.0, 0.5)
    start = np.rint(np.linspace(90, 0, 11)).astype(int)
    found = _klub.descent(K, start, 40, 300)
    assert list(found) == list(range(1, 41))
    assert all((np.diff(v) < 0).all() and (v[0], v[-1]) == (90, 0) for v in found.values())
    assert set(found[10]) <= set(found[20])
    nodes, least = found[10], _klub.total(K, shortest(K, 10)[10])
    assert least <= _klub.total(K, nodes) < 1.1 * least < 0.5 * _klub.total(K, start)
    for i in range(1, 10):
        for j in range(max(nodes[i + 1] + 1, nodes[i] - 5), min(nodes[i - 1], nodes[i] + 6)):
            moved = nodes.copy()
            moved[i] = j
            assert _klub.total(K, moved) >= _klub.total(K, nodes)


@pytest.mark.parametrize(
    "nodes, wanted",
    [
        ([9, 9, 8, 3, 3, 0], [9, 8, 7, 4, 3, 0]),
        ([5, 0, 0, 0, 0, 0], [5, 4, 3, 2, 1, 0]),
        ([5, 5, 5, 5, 5, 0], [5, 4, 3, 2, 1, 0]),
        ([9, 5, 0], [9, 5, 0]),
    ],
)
def test_nodes_are_moved_apart(nodes, wanted):
    assert _klub.apart(np.array(nodes)).tolist() == wanted


def test_of_samples_the_bound_is_that_of_their_law():
    """64 samples of 64 coordinates: within 4 %."""
    law = analytic.Gaussian(np.zeros(64), 0.5)
    model, data = law.model(fs.schedules.EDM(), "x0"), torch.from_numpy(law.sample(64))
    search = ays(model, (64, 64), 10, seed=0, data=data, steps=40)
    s = np.append(search.grid[search.indices[10]][:-1], 0.03)
    assert search.error[10] == pytest.approx(64 * closed(s, 0.5), rel=0.04)


def test_a_knot_moves_to_the_best_of_eleven_nodes():
    K = np.ones((21, 21))
    K[20, 4] = K[20, 16] = -5.0  # beyond those
    assert _klub._best(K, 20, 10, 0) == 10
    for best in (5, 15):
        K[20, best] = 0.5
        assert _klub._best(K, 20, 10, 0) == best
        K[20, best] = 1.0


def test_a_subdivision_is_half_way():
    assert _klub._halved(np.array([9, 4, 0])).tolist() == [9, 6, 4, 2, 0]
    assert _klub._halved(np.array([9, 8, 0])).tolist() == [9, 8, 7, 4, 0]
