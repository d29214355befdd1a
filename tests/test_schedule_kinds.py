"""Schedules under the names of other libraries, against loops in float64 and the libraries' own
objects; the shift of the log-SNR; schedules of two functions.
"""

import json
import math
import pickle

import diffusers
import mpmath
import numpy as np
import pytest
import torch

from fastsample import grids, solvers
from fastsample.model import Model, to_x0
from fastsample.plan import PlanError
from fastsample.schedules import (
    EDM,
    VE,
    VP,
    Cosine,
    CosmosRFlow,
    DiscreteVP,
    Flow,
    TrigFlow,
    from_functions,
    from_json,
)

EPS = float(np.finfo(np.float64).eps)
EPS32 = float(np.finfo(np.float32).eps)
STEPS = 1000


def betas(kind):
    """One at a time, from the definition."""
    if kind == "sigmoid":
        return [
            1e-4 + (0.02 - 1e-4) / (1.0 + math.exp(-(-6.0 + 12.0 * i / (STEPS - 1))))
            for i in range(STEPS)
        ]
    if kind == "exp":
        return [min(1.0 - math.exp(-12.0 / STEPS), 0.999)] * STEPS

    def kept(u):
        level = -0.5 * math.copysign(1.0, 0.5 - u) * math.log(1 - 2 * abs(0.5 - u) + 1e-6)
        snr = math.exp(level)
        return math.sqrt(snr / (1.0 + snr))

    return [min(1.0 - kept((i + 1) / STEPS) / kept(i / STEPS), 0.999) for i in range(STEPS)]


@pytest.mark.parametrize("kind", ["exp", "sigmoid", "laplace"])
def test_tables_of_diffusers(kind):
    ours = getattr(DiscreteVP, kind)()
    product, wanted = 1.0, []
    for beta in betas(kind):
        product *= 1.0 - beta
        wanted.append(product)
    # a product of as many rounded factors
    np.testing.assert_allclose(ours.alphas_cumprod, wanted, rtol=4 * STEPS * EPS)
    peer = diffusers.HeunDiscreteScheduler if kind == "exp" else diffusers.DDPMScheduler
    made = peer(STEPS, beta_schedule=kind).alphas_cumprod.double().numpy()
    np.testing.assert_allclose(ours.alphas_cumprod, made, rtol=STEPS * EPS32)


@pytest.mark.parametrize("zero", [False, True])
def test_the_snr_shift_of_cogvideox(zero):
    """alphas_cumprod/(s + (1 - s) alphas_cumprod): the SNR divided by s."""
    peer = diffusers.CogVideoXDDIMScheduler(snr_shift_scale=3.0, rescale_betas_zero_snr=zero)
    ours = DiscreteVP.scaled_linear(1000, 0.00085, 0.0120).shifted(log_snr=-math.log(3.0))
    ours = ours.zero_terminal_snr() if zero else ours
    made = peer.alphas_cumprod.double().numpy()
    np.testing.assert_allclose(ours.alphas_cumprod, made, rtol=4 * STEPS * EPS, atol=1e-15)
    assert json.loads(json.dumps(ours.to_json()))["log_snr"] == -math.log(3.0)


def test_a_shift_after_the_zero_is_written_whole():
    zero = DiscreteVP.linear(10).zero_terminal_snr().shifted(1.0)
    assert zero.alphas_cumprod[-1] == 0.0 and len(zero.to_json()["alphas_cumprod"]) == 10
    assert from_json(zero.to_json()) == zero


@pytest.mark.parametrize("shift", [1.0, 2.0, 0.5])
def test_the_cosine_of_stable_cascade(shift):
    """sigma/alpha of the cosine with ln(snr) + 2 ln(1/shift), alpha² held to [1e-4, .9999]."""
    schedule = Cosine(0.008).shifted(-2.0 * math.log(shift))
    mpmath.mp.dps = 40
    for t in (0.003, 0.2, 0.5, 0.9, 0.999):
        a = lambda u: mpmath.cos((u + mpmath.mpf(0.008)) / (1 + mpmath.mpf(0.008)) * mpmath.pi / 2)
        kept = (a(mpmath.mpf(t)) / a(mpmath.mpf(0))) ** 2
        log_snr = mpmath.log(kept / (1 - kept)) + 2 * mpmath.log(1 / mpmath.mpf(shift))
        kept = 1 / (1 + mpmath.exp(-log_snr))
        if 1e-4 < kept < 0.9999:
            rho = float(mpmath.sqrt((1 - kept) / kept))
            ours = schedule.sigma(t) / schedule.alpha(t)
            assert abs(ours - rho) <= 64 * EPS * rho
    ends = np.sqrt([(1 - 1e-4) / 1e-4, 1e-4 / (1 - 1e-4)])
    assert np.round(ends, 7).tolist() == [99.9949999, 0.0100005]  # as the docstring says


def test_cosmos():
    """t = sigma/(sigma + 1), x (1 - t) for the network, D = x (1 - t) - F t."""
    model = Model(None, CosmosRFlow(), "flow", time=1, input_scale="flow")
    sigma = np.array([80.0, 3.0, 0.25, 0.002])
    t = sigma / (sigma + 1.0)
    np.testing.assert_allclose(model.times(sigma), t, rtol=4 * EPS)
    np.testing.assert_allclose(model.scales(sigma), 1.0 / (1.0 + sigma), rtol=4 * EPS)
    p, q = to_x0("flow", np.ones(4), sigma)
    np.testing.assert_allclose([p, q], [1.0 / (1.0 + sigma), -t], rtol=4 * EPS)
    again = solvers.euler(model, grids.karras(model.schedule, 4)).remake()
    assert again.note["model"]["input_scale"] == "flow"


def test_the_dynamic_shift():
    peer = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    t = np.linspace(0.05, 1.0, 20)
    for kind in ("exponential", "linear"):
        for tokens in (256, 1024, 4096, 9216):
            mu = 0.5 + (tokens - 256) * (1.15 - 0.5) / (4096 - 256)
            of_kind = getattr(peer, f"_time_shift_{kind}")
            wanted = of_kind(mu, 1.0, torch.from_numpy(t)).numpy()
            ours = Flow.dynamic(tokens, kind).sigma(t)
            np.testing.assert_allclose(ours, wanted, rtol=16 * EPS)
    assert Flow.dynamic(256) == Flow(math.exp(0.5)) and Flow.dynamic(4096, "linear") == Flow(1.15)
    with pytest.raises(ValueError, match="Flow.dynamic: kind = 'log'; 'exponential' or 'linear'"):
        Flow.dynamic(256, "log")
    with pytest.raises(ValueError, match="Flow.dynamic: tokens = 0"):
        Flow.dynamic(0)


FUNCTIONS = {
    "flow": (lambda t: 1.0 - t, lambda t: t, {}, Flow()),
    "trigflow": (
        np.cos,
        np.sin,
        {"t_min": 2e-3, "t_max": math.pi / 2},
        TrigFlow(),
    ),
    "vp": (
        lambda t: np.exp(-4.975 * t * t - 0.05 * t),
        lambda t: np.sqrt(-np.expm1(-9.95 * t * t - 0.1 * t)),
        {},
        VP(),
    ),
    "ve": (
        np.ones_like,
        lambda t: 0.01 * 5000.0**t,
        {"t_min": 0.0, "t_zero": None},
        VE(),
    ),
}
SHIFTABLE = (
    VP(),
    VE(),
    EDM(),
    Flow(3.0),
    TrigFlow(0.5),
    Cosine(),
    DiscreteVP.linear(),
    CosmosRFlow(),
)


@pytest.mark.parametrize("schedule", SHIFTABLE, ids=lambda s: type(s).__name__)
def test_a_shift_moves_the_log_snr_alone(schedule):
    for log_snr in (-2.5, 0.7):
        new = schedule.shifted(log_snr=log_snr)
        t = np.linspace(schedule.t_min, schedule.t_finite, 33)
        scale = math.exp(-0.5 * log_snr) if isinstance(schedule, EDM) else 1.0  # t is sigma itself
        moved = new.half_log_snr(scale * t) - schedule.half_log_snr(t)
        # a table holds alpha², which is 1 but for sigma²
        held = 8 * EPS / schedule.sigma(t) ** 2 if isinstance(schedule, DiscreteVP) else 0.0
        assert (np.abs(moved - 0.5 * log_snr) <= 256 * EPS + held).all()
        alpha, sigma = new.alpha(scale * t), new.sigma(scale * t)
        shared = {
            Flow: alpha + sigma,
            TrigFlow: alpha**2 + (sigma / 0.5) ** 2,
            VE: alpha,
            EDM: alpha,
            CosmosRFlow: alpha,
        }.get(type(schedule), alpha**2 + sigma**2)
        np.testing.assert_allclose(shared, 1.0, rtol=8 * EPS)
        back = new.shifted(-log_snr)
        off = np.abs(back.half_log_snr(t) - schedule.half_log_snr(t))
        assert (off[np.isfinite(off)] <= (256 * EPS + 2 * held + 0 * t)[np.isfinite(off)]).all()
        assert from_json(json.dumps(new.to_json())) == new
    with pytest.raises(ValueError, match=r"shifted: log_snr = nan; a number from -100 to 100"):
        schedule.shifted(math.nan)


def test_what_a_shifted_network_is_told():
    assert VP().shifted(-1.0).label(0.25) == 0.25
    assert TrigFlow(0.5).shifted(1.0).sigma_data == 0.5
    assert not hasattr(VP().shifted(1.0), "sigma_data")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_of_two_functions(name):
    """The schedule of the same two functions is the same, its inverse to the last digits."""
    alpha, sigma, words, wanted = FUNCTIONS[name]
    made = from_functions(alpha, sigma, **words)
    for what in ("t_min", "t_max", "t_zero", "t_finite"):
        assert abs(getattr(made, what) - getattr(wanted, what)) <= 4 * EPS
    t = np.concatenate([np.linspace(made.t_zero, made.t_max, 101), [made.t_min, made.t_finite]])
    for what in ("alpha", "sigma", "half_log_snr"):
        found, right = getattr(made, what)(t), getattr(wanted, what)(t)
        finite = np.isfinite(right)
        np.testing.assert_array_equal(found[~finite], right[~finite])
        # log(alpha) - log(sigma) of rounded values
        np.testing.assert_allclose(found[finite], right[finite], rtol=64 * EPS, atol=16 * EPS)
    assert made.time([np.inf])[0] == wanted.t_zero and made.half_log_snr(made.t_zero) == np.inf
    level = made.half_log_snr(t)
    again = made.half_log_snr(made.time(level))
    slope = np.abs(np.gradient(made.half_log_snr(np.linspace(made.t_min, made.t_finite, 999))))
    finite = np.isfinite(level)
    step = EPS * np.maximum(np.abs(t[finite]), 1.0) * 999 * slope.max()
    off = np.abs(again[finite] - level[finite])
    assert (off <= 4 * EPS * (1 + np.abs(level[finite])) + step).all()


def test_a_solver_on_two_functions():
    """The rows of the schedule they are, through every grid."""
    alpha, sigma, words, wanted = FUNCTIONS["vp"]
    made = from_functions(alpha, sigma, **words)
    for grid in (grids.karras, grids.uniform, grids.uniform_half_log_snr):
        here, there = (solvers.dpmpp_2m(s, grid(s, 6), prediction="eps") for s in (made, wanted))
        np.testing.assert_allclose(here.M, there.M, rtol=1e-12, atol=1e-12)
    plan = solvers.ddim(made, grids.uniform(made, 4), prediction="eps")
    sentence = "remake: the note's schedule: .*of two functions, which no note keeps"
    with pytest.raises(PlanError, match=sentence):
        plan.remake()
    with pytest.raises(PlanError, match=sentence):
        plan.remake(strength=0.5)
    assert plan.note["schedule"]["name"] == "FromFunctions"
    other = from_functions(lambda t: 1.0 - t, lambda t: t)
    assert other.to_json() != made.to_json()
    with pytest.raises(ValueError, match="several on unlike schedules"):
        solvers.Builder([Model(None, s, "flow") for s in (made, other)], [1.0, 0.0])
    assert solvers.ddim(made.shifted(1.0), grids.uniform(made, 4), prediction="v").nfe == 4
    assert pickle.loads(pickle.dumps(from_functions(np.cos, np.sin, t_max=1.5))).t_max == 1.5
    with pytest.raises(pickle.PicklingError, match="Model: schedule's alpha_at is .*; a function"):
        pickle.dumps(Model(None, other, "flow"))
    own = Remembering(2.0)  # whose callable is no part of what it pickles
    assert pickle.loads(pickle.dumps(Model(None, own, "flow"))).schedule.shift == 2.0


class Remembering(Flow):
    def __init__(self, shift):
        super().__init__(shift)
        self.__dict__["cached"] = lambda t: t

    def __reduce__(self):
        return Remembering, (self.shift,)


LINEAR = lambda: from_functions(np.ones_like, lambda t: 0.01 + t, t_min=0.0, t_zero=None)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: from_functions(1.0, np.sin), "alpha is a float; a function"),
        (lambda: from_functions(np.cos, None), "sigma is a NoneType; a function"),
        (lambda: from_functions(np.cos, np.sin, t_min=0.0), "numbers that rise, or t_zero=None,"),
        (lambda: from_functions(np.cos, np.sin, t_max=math.nan), "numbers that rise"),
        (lambda: from_functions(np.cos, lambda t: 1.0), r"sigma of 1\d+ times gives shape \[\]"),
        (lambda: from_functions(np.cos, str), r"sigma of 1\d+ times gives no numbers"),
        (lambda: from_functions(np.cos, lambda t: t * np.nan), r"sigma\(0\) = nan; finite"),
        (lambda: from_functions(np.cos, np.sin, t_max=3.0), r"alpha\(1.57\d*\) = -.*from 0 up"),
        (
            lambda: from_functions(np.cos, lambda t: 0.01 + t),
            "alpha = 1 and sigma = 0.01 at t_zero = 0; 1 and 0 there, or t_zero=None,",
        ),
        (lambda: from_functions(lambda t: 2 - t, lambda t: t), "alpha = 2 and sigma = 0 at t_zero"),
        (
            lambda: from_functions(np.ones_like, lambda t: np.minimum(t, 0.5)),
            r"ln\(alpha/sigma\) is 0.69\d+ at t = 0.5 and 0.69\d+ at 0.500\d*; a signal that falls",
        ),
        (
            lambda: from_functions(np.ones_like, lambda t: 0.01 + t, t_min=0.0, t_zero=None).time(
                -3.0
            ),
            r"FromFunctions.time: half_log_snr = -3; values from -0.00995\d+, that at t_max",
        ),
        (
            lambda: from_json({"name": "FromFunctions", "t_min": 0.1}),
            "schedules.from_json: a schedule of two functions, which no note keeps",
        ),
        (lambda: from_json({"name": "Shifted", "base": None, "log_snr": 1.0}), "from_json: None"),
        (
            lambda: from_json({"name": "Shifted", "base": VP().to_json(), "log_snr": "1"}),
            "VP.shifted: log_snr = '1'",
        ),
        (
            lambda: from_json({**DiscreteVP.linear(9).to_json(), "log_snr": None, "kind": "exp"}),
            "unexpected keyword argument 'beta_start'",
        ),
        (lambda: DiscreteVP.exp(10, beta_max=2.0), "DiscreteVP.exp: beta_max = 2.0"),
        (lambda: Cosine(-1.0), "Cosine: offset = -1.0"),
        (lambda: Model(None, VP(), "eps", input_scale="rf"), "None, 'vp', 'flow' or a callable"),
    ],
)
def test_what_is_no_schedule_is_refused(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


def test_the_sentence_about_t_zero_can_be_followed():
    assert LINEAR().sigma(-1.0) == 0.0 and LINEAR().sigma(-0.5) == 0.005


NEW = {
    "Cosine": Cosine(),
    "Stable Cascade": Cosine().shifted(-2.0 * math.log(2.0)),
    "CosmosRFlow": CosmosRFlow(),
    "VP shifted": VP().shifted(-2.0),
    "exp": DiscreteVP.exp(),
    "laplace": DiscreteVP.laplace(),
    "CogVideoX": DiscreteVP.scaled_linear().shifted(-math.log(3.0)).zero_terminal_snr(),
    "functions": from_functions(lambda t: 1.0 - t, lambda t: t),
}


@pytest.mark.parametrize("name", NEW)
def test_every_solver_on_every_schedule(name):
    """Finite rows that stand on the schedule, or say that they do not, on uneven grids to 0."""
    schedule = NEW[name]
    for maker in solvers.SOLVERS.values():
        for n in (1, 2, 3, 10):
            plan = maker(schedule, grids.kl_optimal(schedule, n), prediction="v")
            assert np.isfinite(plan.M).all() and plan.nfe >= n
            assert plan.consistency() <= 1e-9 or not plan.note["consistent"]
