"""models/analytic.py: exact denoisers against quadrature, linear algebra and hand-worked cases."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from fastsample import schedules
from fastsample.model import PREDICTIONS, to_x0
from fastsample.models.analytic import Gaussian, GaussianMixture, Point, ring, waves
from fastsample.models.words import spoken

MIXTURE = GaussianMixture(means=[-1.0, 1.0], weights=[0.3, 0.7], std=0.25)
FULL = Gaussian([0.4, -1.0], cov=[[2.0, 0.6], [0.6, 1.0]])
SCHEDULES = {
    "edm": schedules.EDM(),
    "flow": schedules.Flow(shift=3.0),
    "trigflow": schedules.TrigFlow(sigma_data=0.7),
    "vp": schedules.VP(),
    "ve": schedules.VE(),
    "discrete": schedules.DiscreteVP.scaled_linear(),
    "zero-snr": schedules.DiscreteVP.linear().zero_terminal_snr(),
}


def quadrature(x: float, alpha: float, sigma: float) -> float:
    """E[x0|x] of MIXTURE from Bayes' rule on a grid: on smooth, decaying integrands the trapezoid
    rule converges beyond all orders.
    """
    x0 = np.linspace(-4.0, 4.0, 20001)
    bump = lambda mean: np.exp(-0.5 * ((x0 - mean) / 0.25) ** 2)
    prior = 0.3 * bump(-1.0) + 0.7 * bump(1.0)
    joint = prior * np.exp(-0.5 * ((x - alpha * x0) / sigma) ** 2)
    return float((joint * x0).sum() / joint.sum())


@pytest.mark.parametrize(
    "alpha, sigma", [(1.0, 0.1), (1.0, 1.0), (1.0, 80.0), (0.6, 0.8), (0.02, 0.98), (0.0, 1.0)]
)
def test_mixture_is_bayes_rule(alpha, sigma):
    x = np.array([-2.0, -0.3, 0.0, 0.1, 1.7]) * (alpha + sigma)
    want = [quadrature(value, alpha, sigma) for value in x]
    np.testing.assert_allclose(MIXTURE.denoise(x, alpha, sigma), want, rtol=0, atol=2e-13)


def test_gaussian_by_hand():
    # Prior N(1, 4), x = x0 + eps = 3: the mean moves 4/5 of the way from 1 to 3; eps is the rest.
    x0, eps = Gaussian(1.0, 2.0).posterior(np.array([3.0]), 1.0, 1.0)
    np.testing.assert_allclose([x0[0], eps[0]], [2.6, 0.4], rtol=1e-15)


@pytest.mark.parametrize(
    "law", [MIXTURE, Gaussian(0.5, 0.3), FULL], ids=["mixture", "diag", "full"]
)
@pytest.mark.parametrize(
    "alpha, sigma", [(1.0, 0.0), (0.5, 0.0), (0.0, 1.0), (0.0, 80.0), (1.0, 1e-8), (1e-9, 1.0)]
)
def test_halves_rebuild_x_and_end_in_their_limits(law, alpha, sigma):
    x = np.linspace(-3.0, 3.0, 10).reshape(-1, *law.shape)
    x0, eps = law.posterior(x, alpha, sigma)
    np.testing.assert_allclose(alpha * x0 + sigma * eps, x, rtol=1e-12, atol=1e-12)
    if sigma == 0.0:
        np.testing.assert_allclose(x0, x / alpha, rtol=1e-12)
        np.testing.assert_allclose(eps, 0.0, atol=0)
    if alpha == 0.0:
        mean = law.weights @ law.means if law.basis is None else law.basis @ law.means[0]
        want = np.broadcast_to(mean.reshape(law.shape), x.shape)
        np.testing.assert_allclose(x0, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("std", [0.0, 0.25])
def test_far_samples_and_zero_noise_stay_finite(std):
    law = GaussianMixture([[-1.0, 0.0], [1.0, 0.0]], [0.5, 0.5], std)
    for sigma in (0.0, 1e-200, 1e-8, 1.0, 1e8):
        for half in law.posterior(np.array([[1e3, -1e3], [0.9, 0.1], [0.0, 0.0]]), 1.0, sigma):
            assert np.isfinite(half).all(), sigma
    if std == 0.0:  # the nearest point
        np.testing.assert_array_equal(law.denoise(np.array([[0.9, 0.1]]), 1.0, 0.0), [[1.0, 0.0]])


def test_full_covariance_is_the_linear_solve():
    rng = np.random.default_rng(0)
    root, mean, x = rng.normal(size=(4, 4)), rng.normal(size=4), rng.normal(size=(3, 4))
    cov = root @ root.T
    for alpha, sigma in ((1.0, 0.5), (0.6, 0.8), (0.0, 1.0)):
        gain = alpha * cov @ np.linalg.inv(alpha**2 * cov + sigma**2 * np.eye(4))
        want = mean + (x - alpha * mean) @ gain.T
        got = Gaussian(mean.reshape(2, 2), cov=cov).denoise(x.reshape(3, 2, 2), alpha, sigma)
        np.testing.assert_allclose(got.reshape(3, 4), want, rtol=1e-11)


def test_mixture_in_many_dimensions_and_per_sample_levels():
    rng = np.random.default_rng(1)
    means, std = rng.normal(size=(3, 2, 2)), rng.uniform(0.2, 1.0, size=(3, 2, 2))
    x, law = rng.normal(size=(4, 2, 2)), GaussianMixture(means, [1, 2, 3], std)
    alpha, sigma = np.array([1.0, 0.8, 0.0, 0.5]), np.array([0.3, 0.6, 1.0, 0.0])
    got = law.denoise(x, alpha, sigma)
    for b in range(4):  # one sample, one component at a time
        u = alpha[b] ** 2 * std**2 + sigma[b] ** 2
        away = x[b] - alpha[b] * means
        weight = np.array([1, 2, 3]) * np.exp(-0.5 * (away**2 / u + np.log(u)).sum((1, 2)))
        each = means + alpha[b] * std**2 / u * away
        want = (weight[:, None, None] * each).sum(0) / weight.sum()
        np.testing.assert_allclose(got[b], want, rtol=1e-12)


def test_torch_is_numpy_and_keeps_dtype_and_gradient():
    x = np.linspace(-2.0, 2.0, 9)
    want = MIXTURE.denoise(x, 0.8, 0.6)
    got = MIXTURE.denoise(torch.tensor(x, requires_grad=True), torch.full((9,), 0.8), 0.6)
    rounded = MIXTURE.denoise(x, np.float64(np.float32(0.8)), 0.6)
    np.testing.assert_allclose(got.detach().numpy(), rounded, rtol=1e-14)
    assert got.requires_grad and got.dtype == torch.float64
    assert MIXTURE.denoise(torch.tensor(x, dtype=torch.float32), 0.8, 0.6).dtype == torch.float32
    assert MIXTURE.denoise(x.astype(np.float32), 0.8, 0.6).dtype == np.float32
    assert want.dtype == np.float64 and MIXTURE.denoise(np.zeros(0), 0.8, 0.6).shape == (0,)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("name", SCHEDULES)
def test_every_prediction_on_every_schedule_means_the_same_x0(name, prediction):
    schedule = SCHEDULES[name]
    model = MIXTURE.model(schedule, prediction)
    t = np.linspace(schedule.t_min, min(schedule.t_finite, 50.0), 7)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    x = np.linspace(-2.0, 2.0, 7) * (alpha + sigma)
    p, q = to_x0(prediction, alpha, sigma, model.sigma_data)
    out = model(model.scales(t) * x, model.times(t))
    # Rounding of out reaches x0 through q, that of x through p.
    bound = 64 * np.finfo(np.float64).eps * (1.0 + np.abs(p * x) + np.abs(q * out))
    assert (np.abs(p * x + q * out - MIXTURE.denoise(x, alpha, sigma)) <= bound).all()
    in_torch = model(torch.tensor(x), torch.tensor(t)).numpy()
    np.testing.assert_allclose(in_torch, out, rtol=1e-9, atol=1e-9 * np.abs(x).max())


@pytest.mark.parametrize("name", ["flow", "trigflow", "zero-snr"])
def test_predictions_are_finite_where_alpha_or_sigma_is_zero(name):
    schedule = SCHEDULES[name]
    for prediction in PREDICTIONS:
        model = MIXTURE.model(schedule, prediction)
        for t in (schedule.t_zero, schedule.t_max):
            out = model(np.array([0.3, -0.7]), np.array([t, t]))
            assert np.isfinite(out).all(), (prediction, t)


@pytest.mark.parametrize("law", [Gaussian([0.4, -1.0], [0.5, 2.0]), FULL], ids=["diag", "full"])
def test_gaussian_ode_end_point_is_the_integrated_ode(law):
    start, grid = np.array([[3.0, -2.0], [-1.0, 4.0]]), np.geomspace(3.0, 0.2, 401)
    x = start
    for s, s_next in pairwise(grid):  # dx/dsigma = eps at alpha = 1, classical Runge-Kutta
        h = s_next - s
        k1 = law.posterior(x, 1.0, s)[1]
        k2 = law.posterior(x + h / 2 * k1, 1.0, s + h / 2)[1]
        k3 = law.posterior(x + h / 2 * k2, 1.0, s + h / 2)[1]
        k4 = law.posterior(x + h * k3, 1.0, s_next)[1]
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    np.testing.assert_allclose(law.ode(start, 1.0, 3.0, 1.0, 0.2), x, rtol=1e-9)
    # Another schedule is another scale of the same path.
    end = law.ode(start, 1.0, 3.0)
    np.testing.assert_allclose(law.ode(start * 0.25, 0.25, 0.75), end, rtol=1e-13)
    np.testing.assert_allclose(law.ode(torch.tensor(start), 1.0, 3.0).numpy(), end, rtol=1e-13)


def test_samples():
    draws = GaussianMixture([[[0.0, 1.0]], [[2.0, 3.0]]], [1, 3], 0.0).sample(50, seed=3)
    assert draws.shape == (50, 1, 2)
    assert {tuple(row) for row in draws.reshape(50, 2)} == {(0.0, 1.0), (2.0, 3.0)}
    on_a_line = Gaussian([0.0, 0.0], cov=[[1.0, 2.0], [2.0, 4.0]]).sample(20, seed=3)
    # sqrt of a rounded zero eigenvalue
    np.testing.assert_allclose(on_a_line[:, 1], 2 * on_a_line[:, 0], atol=1e-7)
    np.testing.assert_array_equal(MIXTURE.sample(5, seed=1), MIXTURE.sample(5, seed=1))
    assert not np.array_equal(MIXTURE.sample(5, seed=1), MIXTURE.sample(5, seed=2))
    np.testing.assert_array_equal(Point([1.0, 2.0]).sample(2), [[1.0, 2.0], [1.0, 2.0]])


def test_the_ring():
    law = ring()
    assert law.shape == (2,) and law.weights == pytest.approx(np.arange(1, 9) / 36, rel=1e-15)
    np.testing.assert_allclose(np.hypot(*law.means.T), 1.0, rtol=1e-15)
    np.testing.assert_allclose(law.means[[0, 3]], [[1, 0], [-(0.5**0.5), 0.5**0.5]], atol=1e-15)
    # E|x0|² = 1 + 2·0.01; the mean is 1/36 of sum k e^(i pi (k-1)/4) = 8/(e^(i pi/4) - 1).
    mean = abs(8 / (np.exp(0.25j * np.pi) - 1)) / 36
    assert law.std() == pytest.approx(np.sqrt((1.02 - mean**2) / 2), rel=1e-14)


def test_the_waves():
    law = waves()
    means = law.means.reshape(16, 3, 32, 32)
    assert law.shape == (3, 32, 32) and (law.stds == 0.1).all()
    assert np.sqrt((means**2).mean()) == pytest.approx(0.5, rel=1e-14)
    np.testing.assert_array_equal(waves().means, law.means)
    assert not np.array_equal(waves(seed=1).means, law.means)
    # The pixels' own mean is c_00: the first number a channel's generator draws, 63 others later.
    drawn = np.random.default_rng(0).standard_normal(16 * 3 * 64)[::64]
    pixels = means.mean(axis=(2, 3)).ravel()
    np.testing.assert_allclose(pixels / pixels[0], drawn / drawn[0], rtol=1e-12)
    # Power of frequency (i, j), in expectation 1/(1+i+j)²; nothing at 8 and above.
    place = (np.arange(32) + 0.5) * (np.pi / 32)
    power = lambda i, j: (np.cos(place * i) @ means @ np.cos(place * j)) ** 2
    assert power(1, 1).mean() > 4 * power(7, 7).mean() > 0
    assert power(8, 0).max() < 1e-20


def test_point():
    law = Point([1.0, -2.0])
    x0, eps = law.posterior(np.array([[3.0, 0.0]]), 0.5, 2.0)
    np.testing.assert_array_equal(x0, [[1.0, -2.0]])
    np.testing.assert_allclose(eps, [[1.25, 0.5]], rtol=1e-15)
    for half in law.posterior(np.array([[1.0, -2.0]]), 1.0, 0.0):
        assert np.isfinite(half).all()


def test_std_is_the_spread_of_the_data():
    assert MIXTURE.std() == pytest.approx(np.sqrt(0.25**2 + 1.0 - 0.4**2), rel=1e-14)
    law = Gaussian([0.0, 5.0], cov=[[2.0, 0.6], [0.6, 1.0]])
    assert law.std() == pytest.approx(np.sqrt(1.5), rel=1e-14)


@pytest.mark.parametrize(
    "make, says",
    [
        (lambda: GaussianMixture([0.0, 1.0], [1.0], 0.1), "weights"),
        (lambda: GaussianMixture([0.0, 1.0], [1.0, 0.0], 0.1), "weights > 0"),
        (lambda: GaussianMixture([0.0, 1.0], [1.0, 1.0], [0.1, 0.1, 0.1]), "std"),
        (lambda: GaussianMixture([0.0, 1.0], [1.0, 1.0], -0.1), ">= 0"),
        (lambda: GaussianMixture([np.nan, 1.0], [1.0, 1.0], 0.1), "finite"),
        (lambda: Gaussian(0.0), "one of them"),
        (lambda: Gaussian([0.0, 0.0], cov=[[1.0, 2.0], [2.0, 1.0]]), "eigenvalue"),
        (lambda: Gaussian([0.0, 0.0], cov=[[1.0, 0.5], [0.0, 1.0]]), "symmetric"),
        (lambda: MIXTURE.denoise(np.zeros((3, 2)), 1.0, 1.0), r"x is \[3, 2\]"),
        (lambda: MIXTURE.model(schedules.EDM(), "epsilon"), "epsilon"),
        (lambda: spoken("score", 0.0, 0.0, 1.0, 1.0, 0.5), "score"),
    ],
)
def test_bad_input_is_refused_with_a_sentence(make, says):
    with pytest.raises(ValueError, match=says):
        make()
