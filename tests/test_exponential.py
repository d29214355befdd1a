"""The weights of exponential integrators against mpmath."""

import itertools

import mpmath
import numpy as np
import pytest

from fastsample.solvers._exponential import gain, phi
from fastsample.solvers._multistep import Form, Levels, history, lagrange, moments, place

EPS = np.finfo(np.float64).eps
STEPS = [1e-12, 1e-6, 1e-3, 0.1, 0.5, 0.999, 1.0, 1.5, 3.0, 10.0, 40.0]
NODES = [
    (0.0,),
    (0.0, -1.0),
    (0.0, -0.3),
    (0.0, -1.0, -2.0),
    (0.0, -0.7, -3.1),
    (0.0, -1.0, 1.0),
    (0.0, 1.0),
    (0.0, -0.5, -2.0, 1.0),
]


def exact_moment(h, j):
    """∫_0^1 h e^{-(1-u)h} u^j du by its series in h, summed with 60 digits: h sum_n (-h)^n
    j!/(n+j+1)!.
    """
    h = mpmath.mpf(h)
    return h * mpmath.nsum(
        lambda n: (-h) ** n * mpmath.factorial(j) / mpmath.factorial(n + j + 1), [0, mpmath.inf]
    )


@pytest.fixture(autouse=True)
def digits():
    with mpmath.workdps(60):
        yield


def closed_moment(h, j):
    """The same by the recurrence I_j = 1 - (j/h) I_{j-1}, whose cancellation 60 digits can
    afford.
    """
    h = mpmath.mpf(h)
    found = -mpmath.expm1(-h)
    for k in range(1, j + 1):
        found = 1 - k / h * found
    return found


def test_the_two_references_agree():
    for h, j in itertools.product((0.1, 3.0), range(4)):
        assert abs(exact_moment(h, j) - closed_moment(h, j)) < mpmath.mpf(10) ** -50


@pytest.mark.parametrize("h", STEPS)
def test_moments(h):
    # the recurrence for phi, used from h = 1 on, loses a factor of at most (j+1)! at h = 1
    for j, found in enumerate(moments(h, 4)):
        wanted = closed_moment(h, j)
        assert abs(found - wanted) <= 4 * EPS * np.prod(np.arange(1, j + 2)) * abs(wanted)


def weights(at, h):
    """Of every output, the newest's, at 0, first."""
    whole = moments(h, len(at))
    others = lagrange(at[1:], whole)
    return [whole[0] - sum(others), *others]


@pytest.mark.parametrize("h", STEPS)
@pytest.mark.parametrize("at", NODES)
def test_weights(at, h):
    found = weights(at, h)
    for k, node in enumerate(at):
        basis = [mpmath.mpf(1)]
        size = [mpmath.mpf(1)]  # the same with every term taken positive: what rounding acts on
        for i, other in enumerate(at):
            if i != k:
                gap = mpmath.mpf(node) - mpmath.mpf(other)
                basis = [a / gap for a in mul(basis, -mpmath.mpf(other))]
                size = [a / abs(gap) for a in mul(size, abs(mpmath.mpf(other)))]
        wanted = sum(c * closed_moment(h, j) for j, c in enumerate(basis))
        bound = 64 * EPS * sum(c * closed_moment(h, j) for j, c in enumerate(size))
        assert abs(found[k] - wanted) <= bound


def mul(polynomial, root):
    """(u + root)·polynomial, lowest power first."""
    return [a * root + b for a, b in zip([*polynomial, 0], [0, *polynomial], strict=True)]


@pytest.mark.parametrize("at", NODES)
def test_a_polynomial_is_integrated_exactly(at):
    """sum_k w_k u_k^j = I_j for j < number of nodes; the whole weight is 1 - e^{-h}."""
    for h in STEPS:
        w = np.array(weights(at, h))
        for j, integral in enumerate(moments(h, len(at))):
            powers = np.array(at) ** j
            assert abs(w @ powers - integral) <= 64 * EPS * (
                np.abs(w) @ np.maximum(1.0, np.abs(powers))
            )
        assert abs(sum(w) - gain(h)) <= 64 * EPS * np.abs(w).sum()


def test_infinite_step():
    assert gain(np.inf) == 1.0
    assert moments(np.inf, 3) == [1.0, 1.0, 1.0]
    assert weights([0.0], np.inf) == [1.0]


BOTH_WAYS = [z for h in (*STEPS, np.nextafter(1.0, 0.0)) for z in (h, -h)]


@pytest.mark.parametrize("k", range(5))
def test_phi(k):
    """phi_k(z) = (phi_{k-1}(z) - 1/(k-1)!)/z of 150 digits, of which a z of 1e-12 takes 12 a step;
    the recurrence used from |z| = 1 on loses a factor of (k+1)! at most.
    """
    assert phi(k, 0.0) == 1.0 / np.prod(np.arange(1.0, k + 1))
    for z in BOTH_WAYS:
        with mpmath.workdps(150):
            exact = mpmath.mpf(z)
            wanted = mpmath.exp(exact)
            for j in range(k):
                wanted = (wanted - 1 / mpmath.factorial(j)) / exact
            assert abs(phi(k, z) - wanted) <= 4 * EPS * np.prod(np.arange(1, k + 2)) * abs(wanted)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_moments_both_ways(count):
    """Noise form has -h, and what is integrated there grows; the last moment is begun from where h
    is short.
    """
    for h in BOTH_WAYS:
        found = moments(h, count)
        assert len(found) == count
        for j, own in enumerate(found):
            with mpmath.workdps(150):
                wanted = closed_moment(h, j)
                room = 4 * EPS * np.prod(np.arange(1, j + 2)) * abs(wanted)
                assert abs(own - wanted) <= room, (h, j)


def test_history_and_places():
    level = [-np.inf, -1.0, 0.0, 2.0, 2.0, 6.0]
    at = Levels([0.0, *[1.0] * 5], [1.0, *np.exp(-np.array(level[1:]))], level, [9, 5, 4, 3, 3, 1])
    data, slope, even = Form(), Form("eps", "level"), Form("eps", "index")
    for form in (data, slope):
        assert history(at, form, 0, 3) == [0]
        assert history(at, form, 1, 3) == [1]
        assert history(at, form, 2, 3) == [2, 1]
        assert history(at, form, 4, 3) == [4, 2]
    assert history(at, even, 2, 3) == history(at, Form("eps", "time"), 2, 3) == [2, 1, 0]
    assert [place(at, data, 4, j) for j in (3, 2, 1)] == [0.0, -0.5, -0.75]
    assert [place(at, even, 4, j) for j in (3, 2, 1)] == [-1.0, -2.0, -3.0]
    assert [place(at, Form("eps", "time"), 4, j) for j in (2, 1)] == [-0.5, -1.0]
    rho = np.exp(-np.array(level))
    found = [place(at, slope, 4, j) for j in (2, 1)]
    assert np.allclose(found, (rho[[2, 1]] - rho[4]) / (rho[5] - rho[4]), rtol=1e-14)


def test_places_on_a_flow_from_its_noise_end():
    s = np.array([1.0, 0.7, 0.4, 0.3])
    with np.errstate(divide="ignore"):
        at = Levels((1 - s).tolist(), s.tolist(), np.log((1 - s) / s).tolist())
    form = Form("v", "level")
    for i, older in ((2, (1, 0)), (1, (0,))):
        found = [place(at, form, i, j) for j in older]
        assert np.allclose(found, [(s[j] - s[i]) / (s[i + 1] - s[i]) for j in older], rtol=1e-14)
