"""Inversion: rows against 50-digit loops and diffusers' own schedulers, round trips at the solver's
order through Sampler, both ends of a flow, refusals.
"""

import math

import mpmath
import numpy as np
import pytest
import torch
from oracle.orders import MEANS, STD, WEIGHTS
from oracle.peers import probe, scheduler
from oracle.probe import states

import fastsample as fs
from fastsample import grids, solvers
from fastsample.model import Model
from fastsample.schedules import EDM, VE, VP, Cosine, DiscreteVP, Flow, TrigFlow

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # diffusers' own
EPS = float(np.finfo(np.float64).eps)
SD = DiscreteVP.scaled_linear()
SCHEDULES = {
    "VP": VP(),
    "EDM": EDM(),
    "VE": VE(),
    "Flow(3)": Flow(3.0),
    "TrigFlow": TrigFlow(1.0),
    "SD": SD,
    "zero_snr": SD.zero_terminal_snr(),
}
SOLVERS = ("ddim", "euler", "heun", "dpmpp_2m")


def levels(schedule, grid):
    """(alpha, sigma) at the grid's points, to 40 digits of their float64 times where the schedule
    is simple, else as it says.
    """
    mpmath.mp.dps = 40
    found = []
    for t in grid:
        u = mpmath.mpf(float(t))
        if isinstance(schedule, Flow):
            scale = 1 + (mpmath.mpf(schedule.shift) - 1) * u
            found.append(((1 - u) / scale, schedule.shift * u / scale))
        elif isinstance(schedule, EDM):
            found.append((mpmath.mpf(1), u))
        else:
            found.append(
                (mpmath.mpf(float(schedule.alpha(t))), mpmath.mpf(float(schedule.sigma(t))))
            )
    return found


def loop(solver, at, calls):
    """Every state as coefficients over the start and the x0 of each call, from the papers' forms:
    DDIM in x0 and eps; Heun's slope of x/alpha over sigma/alpha, or of x/(alpha + sigma) on a flow;
    DPM-Solver++(2M) over lambda.
    """
    unit = lambda k: np.array([mpmath.mpf(int(j == k)) for j in range(1 + calls)], dtype=object)
    x, states, call, past = unit(0), [], 0, None
    for (a, s), (a1, s1) in zip(at, at[1:], strict=False):
        call += 1
        x0 = unit(call)
        states.append(x)
        if solver in ("ddim", "euler"):
            x = a1 * x0 + s1 * (x - a * x0) / s
        elif solver == "dpmpp_2m":
            lam, lam1 = mpmath.log(a / s), mpmath.log(a1 / s1) if a1 else -mpmath.inf
            d = x0
            if past is not None and a1:
                r = (lam - past[1]) / (lam1 - lam)
                d = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * past[0]
            gain = a1 * (1 - mpmath.exp(lam - lam1)) if a1 else -a * s1 / s
            x, past = s1 / s * x + gain * d, (x0, lam)
        else:
            norm, norm1 = (a, a1) if solver == "heun" else (a + s, a1 + s1)
            slope = lambda x, x0, a, s: (
                (x - a * x0) / s - (0 if solver == "heun" else 1) * x0  # eps, or v
            )
            u, u1 = s / norm, s1 / norm1
            first = slope(x, x0, a, s)
            guess = norm1 * (x / norm + (u1 - u) * first)
            call += 1
            states.append(guess)
            last = slope(guess, unit(call), a1, s1)
            x = norm1 * (x / norm + (u1 - u) * (first + last) / 2)
    return np.array([*states, x])


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("solver", SOLVERS)
def test_rows_against_a_loop(solver, name):
    schedule = SCHEDULES[name]
    grid = grids.uniform(schedule, 6, end="min")[::-1]
    flow = isinstance(schedule, (Flow, TrigFlow)) or schedule.alpha(grid[-1]) == 0.0
    plan = solvers.inverted(solver, schedule, grid, prediction="x0")
    at = levels(schedule, grid)
    wanted = loop("heun in flow" if solver == "heun" and flow else solver, at, plan.nfe)
    found = states(plan, raw=True).states
    # through sigma/alpha in the x0 of a raw output, whose terms are larger than what is left
    size = np.array([[float(abs(v)) for v in row] for row in wanted]).max(1, keepdims=True)
    amplified = 1.0 / float(schedule.sigma(grid[0]))
    assert (np.abs(found - wanted.astype(float)) <= 64 * EPS * (size + amplified)).all()
    assert plan.nfe == (12 if solver == "heun" else 6)
    assert plan.consistency() <= 1e-12
    orders = {"heun": [2] * 6, "dpmpp_2m": [1, 2, 2, 2, 2, 2]}.get(solver, [1] * 6)
    if solver == "dpmpp_2m" and schedule.alpha(grid[-1]) == 0.0:
        orders[-1] = 1
    assert list(plan.note["orders"]) == orders and plan.note["order"] == max(orders)


def test_rows_by_hand():
    """A flow from 0 to 1/2 to 1: Euler adds ½ v, ½ v. EDM from 1 to 2: x + eps."""
    found = states(solvers.inverted("euler", Flow(), [0.0, 0.5, 1.0], prediction="flow")).states
    np.testing.assert_allclose(found, [[1, 0, 0], [1, 0.5, 0], [1, 0.5, 0.5]], atol=4 * EPS)
    found = states(solvers.inverted("heun", Flow(), [0.0, 0.5], prediction="flow")).states
    np.testing.assert_allclose(found, [[1, 0, 0], [1, 0.5, 0], [1, 0.25, 0.25]], atol=4 * EPS)
    found = states(solvers.inverted("ddim", EDM(), [1.0, 2.0], prediction="eps")).states
    np.testing.assert_allclose(found, [[1, 0], [1, 1]], atol=4 * EPS)
    # lambda 0, -ln 2, -ln 4: 2 x - x0, then 2 x - [3/2 x0 - 1/2 x0_0]
    found = states(solvers.inverted("dpmpp_2m", EDM(), [1.0, 2.0, 4.0], prediction="x0")).states
    np.testing.assert_allclose(found[1:], [[2, -1, 0], [4, -1.5, -1.5]], atol=16 * EPS)


# -- diffusers -------------------------------------------------------------------------------------
TABLE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_ddim_inverse_of_diffusers(kind):
    """Its first step stays where it is; the network is told the time each step ends at."""
    words = {"clip_sample": False, "set_alpha_to_one": False, "prediction_type": kind}
    peer = scheduler("ddim_inverse", "DDIMInverseScheduler", **TABLE, **words)
    trace, _ = probe(peer, 10)
    grid = np.arange(0.0, 901.0, 100.0)
    assert trace.asked == [*grid]
    prediction = {"epsilon": "eps", "v_prediction": "v"}[kind]
    ours = states(solvers.inverted("ddim", SD, grid, prediction=prediction), raw=True).states
    theirs = np.array(trace.states)
    np.testing.assert_allclose(theirs[1], theirs[0], atol=1e-12)
    np.testing.assert_allclose(ours, np.delete(theirs[1:], 1, axis=1), atol=1e-11)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("one", [True, False])
def test_ddim_inverse_with_what_the_network_is_told(kind, one):
    """compat: from alpha = 1 (t = -1), or from the table's first level, where a step stays."""
    words = {"clip_sample": False, "set_alpha_to_one": one, "prediction_type": kind}
    peer = scheduler("ddim_inverse", "DDIMInverseScheduler", **TABLE, **words)
    trace, _ = probe(peer, 10)
    theirs, asked = np.array(trace.states), trace.asked
    if not one:
        theirs, asked = np.delete(theirs[1:], 1, axis=1), asked[1:]
    grid = [-1.0 if one else 0.0, *asked]
    prediction = {"epsilon": "eps", "v_prediction": "v"}[kind]
    plan = solvers.inverted("ddim", SD, grid, prediction=prediction, compat="diffusers")
    np.testing.assert_allclose(states(plan, raw=True).states, theirs, atol=1e-11)
    assert plan.t[: plan.nfe, 0].tolist() == asked
    assert plan.note["compat"] == "diffusers" and plan.note["order"] == 1
    model = Model(lambda x, t: x, SD, prediction)
    fs.Sampler(plan, model)(latent=torch.zeros(1, 2))
    with pytest.raises(ValueError, match="made for another|time"):
        other = plan.with_note(changed=[])  # the exact plan tells the time where x stands
        fs.Sampler(other, model)


def test_dpm_solver_inverse_of_diffusers():
    words = {"lower_order_final": False, "algorithm_type": "dpmsolver++"}
    peer = scheduler(
        "dpmsolver_multistep_inverse", "DPMSolverMultistepInverseScheduler", **TABLE, **words
    )
    trace, _ = probe(peer, 12)
    with np.errstate(divide="ignore"):
        grid = SD.time(-np.log(peer.sigmas.double().numpy()))
    grid = np.append(np.round(trace.asked), grid[-1])
    ours = states(solvers.inverted("dpmpp_2m", SD, grid, prediction="eps"), raw=True).states
    theirs = np.array(trace.states)
    np.testing.assert_allclose(ours, theirs, atol=1e-11 * np.abs(theirs).max())


# -- there and back --------------------------------------------------------------------------------
def mixture(prediction, schedule):
    """The mixture of oracle.orders as a torch model."""
    means, weights = torch.tensor(MEANS), torch.tensor(WEIGHTS)

    def model(x, t):
        time = float(t[0])
        a, s = float(schedule.alpha(time)), float(schedule.sigma(time))
        gap = x[..., None] - a * means
        variance = (a * STD) ** 2 + s**2
        share = torch.softmax(torch.log(weights) - gap**2 / (2 * variance), -1)
        eps = s * (share * gap / variance).sum(-1)  # -sigma times the score
        x0 = (share * (means + a * STD**2 / variance * gap)).sum(-1)
        return {"x0": x0, "eps": eps, "flow": eps - x0}[prediction]

    return Model(model, schedule, prediction)


def there_and_back(solver, schedule, n, prediction):
    """The largest error of images that were inverted and sampled again."""
    model = mixture(prediction, schedule)
    low, high = (0.1, 3.0) if not isinstance(schedule, Flow) else (0.0, 0.75)
    if isinstance(schedule, Flow):
        grid = np.linspace(high, low, n + 1)
    else:
        grid = schedule.time(-np.linspace(math.log(high), math.log(low), n + 1))
    images = torch.tensor([[-1.6, -1.0, -0.8], [0.8, 1.0, 1.7]], dtype=torch.float64)
    up = solvers.inverted(solver, model, grid[::-1])
    z = fs.Sampler(up, model)(latent=images)
    back = fs.Sampler(solvers.SOLVERS[solver](model, grid), model)(latent=z, start=1)
    return float((back - images).abs().max())


@pytest.mark.parametrize(
    ("solver", "schedule", "prediction", "order"),
    [
        ("ddim", VP(), "eps", 1),
        ("euler", EDM(), "x0", 1),
        ("euler", Flow(), "flow", 1),
        ("heun", VP(), "eps", 2),
        ("heun", Flow(), "flow", 2),
        ("heun", Flow(3.0), "flow", 2),
        ("dpmpp_2m", VP(), "eps", 2),
        ("dpmpp_2m", EDM(), "x0", 2),
    ],
    ids=lambda v: v if isinstance(v, str) else type(v).__name__,
)
def test_a_round_trip_returns_at_the_solvers_order(solver, schedule, prediction, order):
    coarse, fine = (there_and_back(solver, schedule, n, prediction) for n in (100, 200))
    assert fine < 0.02 and math.log2(coarse / fine) >= order - 0.2


def test_a_flow_from_its_very_data_to_its_very_noise():
    """sigma 0 to 1 of a Gaussian: v at (1 - s, s) is linear in x, and x goes from x0 to x0/STD of
    unit noise. Heun asks at both ends.
    """
    spread, schedule = 0.5, Flow(3.0)

    def model(x, t):
        s = t.to(x.dtype).view(-1, 1)
        s = 3.0 * s / (1.0 + 2.0 * s)
        return (s - (1.0 - s) * spread**2) / ((1.0 - s) ** 2 * spread**2 + s**2) * x

    model = Model(model, schedule, "flow")
    images = torch.tensor([[0.3, -0.8]], dtype=torch.float64)
    errors = []
    for n in (256, 512):
        up = solvers.inverted("heun", model, np.linspace(0.0, 1.0, n + 1))
        errors.append(float((fs.Sampler(up, model)(latent=images) - images / spread).abs().max()))
    assert errors[1] < 1e-5 and math.log2(errors[0] / errors[1]) > 1.8
    assert (up.t[0, 0], up.t[-2, 0]) == (0.0, 1.0)


def test_runs_and_notes():
    model = mixture("eps", VP())
    plan = solvers.inverted("ddim", model, grids.uniform(VP(), 4, end="min")[::-1])
    image = torch.full((2, 3), 0.5, dtype=torch.float64)
    with pytest.raises(ValueError, match="begins from an image; pass latent="):
        fs.Sampler(plan, model)(shape=(2, 3), seed=1)
    run = fs.Run(plan, latent=image)  # no seed: nothing is drawn
    while not run.done:
        run.step(model(run.model_input, run.t))
    torch.testing.assert_close(run.x, fs.Sampler(plan, model)(latent=image), rtol=0, atol=0)
    assert plan.note["solver"] == "inverted" and "noise_end" not in plan.note
    assert plan.sigma[1] == VP().sigma(1e-3) and plan.sigma[-1] == VP().sigma(1.0)
    again = fs.Plan.from_bytes(plan.to_bytes())
    np.testing.assert_array_equal(again.M, plan.M)
    with pytest.raises(ValueError, match="remake: solver = 'inverted'; plans of ddim, "):
        plan.remake()
    assert "inverted" in plan.describe()


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda: solvers.inverted("ddim", VP(), [1.0, 0.5, 0.1], prediction="eps"),
            r"the grid falls from 1 to 0.1; the same list from data to noise, grid\[::-1\], is",
        ),
        (
            lambda: solvers.inverted("unipc", VP(), [0.1, 1.0], prediction="eps"),
            "inverted: solver = 'unipc'; one of ddim, euler, heun, dpmpp_2m is accepted",
        ),
        (
            lambda: solvers.inverted("ddim", SD, [-1.0, 500.0], prediction="eps"),
            "ddim from sigma = 0 at t = -1, which no network is told; a grid from t_min = 0",
        ),
        (
            lambda: solvers.inverted("dpmpp_2m", Flow(), [0.0, 0.5], prediction="flow"),
            "dpmpp_2m from sigma = 0 at t = 0, where x says nothing of eps; a grid from t_min = ",
        ),
        (
            lambda: solvers.inverted("ddim", VP(), [0.0, 0.5], prediction="x0"),
            "prediction 'x0' at sigma = 0",
        ),
        (lambda: solvers.inverted("ddim", VP(), [0.1, 0.5, 0.3], prediction="eps"), "grid: entry"),
        (
            lambda: solvers.inverted("ddim", VP(), [0.1, 0.5], prediction="eps", compat="k"),
            "inverted: compat = 'k'; one of exact, diffusers is accepted",
        ),
        (lambda: solvers.inverted("ddim", VP(), [0.1], prediction="eps"), "grid: 1 times"),
        (lambda: solvers.inverted("ddim", VP(), "a", prediction="eps"), "'a'; a list of numbers"),
        (lambda: solvers.inverted("ddim", VP(), [0.5, 2.0], prediction="eps"), "t = 2; 0 <= t"),
        (lambda: solvers.inverted("ddim", VP(), [0.1, 0.5]), "prediction: none given"),
    ],
)
def test_what_cannot_be_inverted_is_refused(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


@pytest.mark.parametrize("schedule", [VP(), Cosine(), TrigFlow(0.5), Flow(5.0)])
def test_from_sigma_0(schedule):
    """eps and v are finite there, and so are the rows; a step and the same back keep the state."""
    plan = solvers.inverted("ddim", schedule, [schedule.t_zero, 0.5], prediction="v")
    assert np.isfinite(plan.M).all() and plan.consistency() <= 1e-12
    x = states(plan, raw=True).states[1]
    a, s = schedule.alpha(0.5), schedule.sigma(0.5)
    np.testing.assert_allclose(x, [a, s], rtol=16 * EPS)  # x0 = x, eps = v where alpha = 1
