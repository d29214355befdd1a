"""Orders of the stochastic solvers without a draw: on Gaussian data every state is an affine
combination of the start noise and the noises drawn, so its mean and variance are carried exactly.

The denoiser of data N(MEAN, SPREAD²) is linear. A plan is run on coefficients over [1, the start,
every noise]: the first is the mean, the others' squares add up to the variance. Weak order: how
fast both come to the exact marginal's. Strong order: the variance of the difference between two
runs whose noises are integrals of one path.
"""

from __future__ import annotations

import interpreter
import numpy as np
import pytest
from oracle.probe import noise_ids

from fastsample.schedules import EDM, VP, Flow
from fastsample.solvers import SOLVERS, res, seeds

MEAN, SPREAD = 0.7, 0.5
TOP, BOTTOM = 3.0, 0.1  # sigma/alpha


def grid(schedule, n: int) -> np.ndarray:
    return schedule.time(np.linspace(-np.log(TOP), -np.log(BOTTOM), n + 1))


def denoise(x: np.ndarray, alpha: float, sigma: float) -> np.ndarray:
    """E[x0 | x] of a state given by its coefficients [1 + noises]."""
    share = alpha * SPREAD**2 / (alpha**2 * SPREAD**2 + sigma**2)
    one = np.eye(1, len(x))[0]
    return MEAN * one + share * (x - alpha * MEAN * one)


def end(plan) -> tuple[np.ndarray, list[int]]:
    """(coefficients [2 + noises] of the last state, ids of the noises), from the exact marginal."""
    ids = noise_ids(plan)
    unit = np.eye(2 + len(ids))
    x = plan.alpha[1] * MEAN * unit[0]
    x = x + np.hypot(plan.alpha[1] * SPREAD, plan.sigma[1]) * unit[1]
    drawn = {k: unit[2 + i] for i, k in enumerate(ids)}
    model = lambda x, t, row, call: [denoise(x, plan.alpha[row], plan.sigma[row])]
    return interpreter.run(plan, x, model, drawn.__getitem__, first=1), ids


def errors(name: str, options: dict, schedule, n: int) -> np.ndarray:
    """Of mean and variance at the end, over alpha."""
    plan = SOLVERS[name](schedule, grid(schedule, n), prediction="x0", **options)
    x, _ = end(plan)
    alpha, sigma = plan.alpha[-1], plan.sigma[-1]
    mean, variance = x[0] / alpha, (x[1:] ** 2).sum() / alpha**2
    return np.abs([mean - MEAN, variance - SPREAD**2 - (sigma / alpha) ** 2])


# solver, options, weak order; on Flow too where that has a form of its own
WEAK = [
    ("ddim", {"eta": 1.0}, 1),
    ("euler_ancestral", {}, 1),
    ("dpm_2_ancestral", {}, 2),
    ("dpm_2_ancestral", {"eta": 0.6}, 2),
    ("dpmpp_2s_ancestral", {}, 2),
    ("dpm_fast", {"eta": 0.6}, 2),
    ("dpmpp_sde", {}, 2),
    ("dpmpp_sde", {"eta": 0.6, "r": 0.3}, 2),
    ("dpmpp_sde", {"compat": "k-diffusion"}, 2),
    ("dpmpp_2m_sde", {}, 2),
    ("seeds_2", {}, 2),
    ("seeds_2", {"eta": 0.4, "r": 1.0, "variant": "phi_2"}, 2),
    ("seeds_3", {}, 2),
    ("er_sde", {"order": 1}, 1),
    ("er_sde", {"order": 2}, 2),
    ("er_sde", {}, 2),
    ("ddpm", {}, 1),
    ("flow_sde", {}, 1),
    ("res_multistep_ancestral", {}, 2),
    ("res_multistep_ancestral", {"eta": 0.6}, 2),
]
OWN_ON_FLOW = (
    "euler_ancestral",
    "dpm_2_ancestral",
    "dpmpp_2s_ancestral",
    "dpm_fast",
    "res_multistep_ancestral",
)
RUNS = [
    (*case, schedule)
    for case in WEAK
    for schedule in (EDM(), *([Flow(3.0)] if case[0] in OWN_ON_FLOW else []))
]


@pytest.mark.parametrize(
    "name, options, order, schedule",
    RUNS,
    ids=[f"{name}-{options}-{type(schedule).__name__}" for name, options, _, schedule in RUNS],
)
def test_weak_order(name, options, order, schedule):
    mean, variance = np.transpose([errors(name, options, schedule, n) for n in (64, 128)])
    assert mean.max() <= 1e-13
    slope = np.log2(variance[0] / variance[1])
    assert order - 0.15 <= slope and variance[1] > 1e-10, f"order {slope:.2f}, {variance}"


def test_an_older_output_where_it_was_made_lowers_the_weak_order(monkeypatch):
    """RES's m_1 stands as far back as its step went down, (1 + eta²) h but for h², and not h."""
    own, options = res.bent, {"eta": 0.6}
    monkeypatch.setattr(res, "bent", lambda *widths: (1 + options["eta"] ** 2) * own(*widths))
    variance = [errors("res_multistep_ancestral", options, EDM(), n)[1] for n in (64, 128)]
    assert 0.9 < np.log2(variance[0] / variance[1]) < 1.1


def test_noises_that_are_apart_lower_the_weak_order(monkeypatch):
    """The two noises of a dpmpp_sde step belong to one path: drawn apart, its order is 1."""

    def apart(z, more, noise):
        variance = sum(weight**2 for weight in z.values())
        return np.sqrt(np.exp(-2.0 * more) * variance - np.expm1(-2.0 * more)) * noise

    monkeypatch.setattr(seeds, "grown", apart)
    variance = [errors("dpmpp_sde", {}, EDM(), n)[1] for n in (64, 128)]
    assert 0.9 < np.log2(variance[0] / variance[1]) < 1.1


# -- strong order ----------------------------------------------------------------------------------
def halves(n: int, stages: int) -> np.ndarray:
    """[noises of n steps, noises of 2n]: the first over the second, which split every part of a
    step in two, `stages` parts a step even in lambda; eta = 1, where a part of length p adds
    sqrt(1 - e^{-2p}) n to what is left, e^{-p}, of what came before.
    """
    p = np.log(TOP / BOTTOM) / (n * stages) / 2
    early, late = np.exp(-p) * np.sqrt(-np.expm1(-2 * p)), np.sqrt(-np.expm1(-2 * p))
    split = np.array([early, late]) / np.sqrt(-np.expm1(-4 * p))
    return np.kron(np.eye(n * stages), split)


STRONG = [("dpmpp_sde", {}, 2), ("seeds_2", {"variant": "phi_2"}, 2), ("seeds_3", {}, 3)]


@pytest.mark.parametrize("name, options, stages", STRONG, ids=[case[0] for case in STRONG])
def test_strong_order(name, options, stages):
    """Root mean square between n steps and 2n on one path: of order 1."""

    def apart(n: int) -> float:
        (x, ids), (fine, _) = (
            end(SOLVERS[name](VP(), grid(VP(), k), prediction="x0", **options)) for k in (n, 2 * n)
        )
        assert ids == list(range(1, n * stages + 1))
        coarse = np.concatenate([x[:2], x[2:] @ halves(n, stages)])
        return float(np.linalg.norm(coarse - fine))

    distance = [apart(n) for n in (32, 64)]
    slope = np.log2(distance[0] / distance[1])
    assert slope >= 0.85, f"order {slope:.2f}, {distance}"
