"""k_model, k_sigmas, k_scale, k_state and k_remake: what a host has around k_sample."""

import numpy as np
import pytest
import torch

import fastsample as fs
from fastsample import solvers
from fastsample.grids import fine, from_sigmas, karras, uniform
from fastsample.interop import k_model, k_remake, k_sample, k_scale, k_sigmas, k_state
from fastsample.schedules import EDM, VP, DiscreteVP, Flow
from tests.test_k_sample_states import bent, lent, noise, wide

ROUNDING = 1e-12  # of float64 states of up to 14.6 that were made in two ways
EDM_LIKE = EDM(0.03, 14.6)


def eps_denoiser(x, sigma):
    """A denoiser of x0 + sigma eps that is not linear in it."""
    s = wide(sigma, x)
    return (x / (1 + s**2) + 0.3 * torch.sin(x / (1 + s))).to(x.dtype)


WORLDS = {"sigma": (EDM_LIKE, eps_denoiser), "flow": (Flow(3.0), bent)}


@pytest.mark.parametrize("state", WORLDS)
@pytest.mark.parametrize("name", ["euler", "dpmpp_2m", "heun", "unipc"])
def test_a_plan_of_the_model_runs_on_its_denoiser(state, name):
    """Sampler on k_model and k_sample on the denoiser end in the same place from one noise, with an
    amplitude that a search might find, and SIGMAS are where each step asked.
    """
    schedule, denoiser = WORLDS[state]
    model, seen = k_model(denoiser, schedule), []
    plan = solvers.SOLVERS[name](model, fine(schedule, 6))
    table = plan.M.copy()
    table[0, 0, 0] *= 1.02
    plan, z = plan.with_numbers(M=table), noise()
    assert k_state(plan) == state
    x = k_scale(plan) * z
    given = {"state": state, "disable": True, "callback": seen.append}
    end = k_sample(plan, denoiser, x, **given)
    expected = fs.Sampler(plan, model)(noise=z)
    torch.testing.assert_close(end, expected, rtol=0, atol=ROUNDING)
    sigmas = k_sigmas(plan)
    assert len(sigmas) == 7 and sigmas[-1] == 0.0
    assert sigmas[:-1].tolist() == pytest.approx([float(v["sigma"]) for v in seen], rel=1e-15)
    assert k_scale(plan) == pytest.approx(1.02 * sigmas[0], rel=1e-15)
    if state == "flow":
        assert sigmas[0] == 1.0


def test_extra_words_and_conditions_reach_the_denoiser():
    told = []

    def denoiser(x, sigma, scale, label=None):
        told.append((scale, label))
        return (scale * x / (1 + wide(sigma, x) ** 2),)

    model = k_model(denoiser, EDM_LIKE, model_id="mine", scale=0.5)
    assert model.identity == "mine"
    x = torch.ones(2, 3)
    assert torch.equal(model(x, torch.ones(2), label=4), x / 4) and told == [(0.5, 4)]


@pytest.mark.parametrize("schedule", [VP(), EDM, None, 3.0])
def test_k_model_refuses_other_states(schedule):
    with pytest.raises(ValueError, match=r"k_model: schedule is .*; schedules.EDM\(sigma_min"):
        k_model(eps_denoiser, schedule)


def test_what_is_no_plan_or_no_denoiser():
    for of in (k_state, k_sigmas, k_scale, lambda plan: k_remake(plan, [1.0, 0.0])):
        with pytest.raises(TypeError, match="plan is a str; a fastsample.Plan is accepted"):
            of("mine.fsplan")
    with pytest.raises(TypeError, match="k_model: denoiser is a NoneType; a callable"):
        k_model(None, EDM_LIKE)


def test_states_of_plans():
    make = lambda schedule, grid: solvers.euler(fs.Model(None, schedule, "v"), grid)
    assert k_state(make(EDM_LIKE, karras(EDM_LIKE, 4))) == "sigma"
    discrete = DiscreteVP.scaled_linear()
    assert k_state(make(discrete, karras(discrete, 4))) == "sigma"
    assert k_state(make(Flow(7.0), uniform(Flow(7.0), 4))) == "flow"
    terminal = DiscreteVP.cosine()
    assert k_state(make(terminal, uniform(terminal, 4))) == "sigma"


def test_sigmas_before_churn_are_the_grids():
    plan = solvers.heun(EDM_LIKE, karras(EDM_LIKE, 5), prediction="x0", s_churn=2.0)
    assert k_sigmas(plan).tolist() == pytest.approx(karras(EDM_LIKE, 5).tolist(), rel=1e-15)


# -- other sigmas ----------------------------------------------------------------------------------


@pytest.mark.parametrize("state", WORLDS)
@pytest.mark.parametrize("name", ["euler", "dpmpp_2m", "euler_ancestral"])
def test_other_sigmas_are_the_same_solver_on_them(state, name):
    schedule, denoiser = WORLDS[state]
    plan = solvers.SOLVERS[name](k_model(denoiser, schedule), fine(schedule, 6))
    top = k_sigmas(plan)[0]
    sigmas = np.array([0.8, 0.5, 0.2, 0.0]) * top
    again = k_remake(plan, torch.tensor(sigmas, dtype=torch.float32).double().numpy())
    direct = schedule if state == "sigma" else Flow()
    expected = solvers.SOLVERS[name](
        k_model(denoiser, direct), from_sigmas(direct, sigmas.astype(np.float32)), start=0
    )
    x = noise() * 5  # of any size
    draws = lambda: lent(*(noise(k) for k in range(2, 9)))
    run = lambda plan: k_sample(plan, denoiser, x, state=state, disable=True, noise_sampler=draws())
    torch.testing.assert_close(run(again), run(expected), rtol=0, atol=ROUNDING)
    assert k_scale(again) == 0.0
    with pytest.raises(ValueError, match=r"k_remake: sigmas = .*; the plan's own, or their tail"):
        k_remake(plan, sigmas, other=False)


def test_a_plan_of_another_schedule_takes_other_sigmas_too():
    """Levels of one state, put on the plan's own schedule."""
    for schedule, state in ((Flow(3.0), "sigma"), (EDM_LIKE, "flow"), (VP(), "flow")):
        level = [0.9, 0.5, 0.1] if state == "flow" else [9.0, 1.0, 0.1]
        plan = solvers.euler(fs.Model(None, schedule, "x0"), from_sigmas(schedule, [0.8, 0.3, 0.0]))
        again = k_remake(plan, [*level, 0.0], state)
        np.testing.assert_allclose(k_sigmas(again, state), [*level, 0.0], rtol=1e-12)


def test_own_sigmas_are_the_plan_and_their_tail_its_rest():
    schedule = Flow(3.0)
    plan = solvers.dpmpp_2m(k_model(bent, schedule), uniform(schedule, 6))
    rounded = k_sigmas(plan).astype(np.float32)
    assert k_remake(plan, rounded) is plan
    assert k_remake(plan, rounded[2:], other=False) == plan.remake(2)
    for bad in ([0.5], 0.5, "much", [0.1, 0.5]):
        with pytest.raises(ValueError, match=r"accepted"):
            k_remake(plan, bad)


def test_rows_that_were_found_keep_their_levels():
    model = k_model(eps_denoiser, EDM_LIKE)
    words = {"seed": 0, "beam": 1, "teacher": 20, "progress": False}
    free = fs.optimize.fit(model, [8, 4], 3, **words).plan
    with pytest.raises(
        ValueError, match="the plan, whose rows were found for their own levels, runs on"
    ):
        k_remake(free, [9.0, 1.0, 0.1, 0.0])
    with pytest.raises(ValueError, match=r"sigmas = \[9, 1\] \(2\), and"):
        k_remake(free, [9.0, 1.0])
    with pytest.raises(ValueError, match="of a plan whose rows leave the schedule"):
        k_remake(free, k_sigmas(free)[1:])
    tame = fs.optimize.fit(model, [8, 4], 3, rows="consistent", **words).plan
    assert k_sample(k_remake(tame, k_sigmas(tame)[1:]), eps_denoiser, noise(), disable=True).std()


# -- a bar of one's own ----------------------------------------------------------------------------


def test_searches_report_to_a_bar_of_ones_own():
    """Made once a part, told as many evaluations as the search says it spent."""
    bars = []

    class Bar:
        def __init__(self, total, unit, desc):
            self.total, self.unit, self.desc, self.n = total, unit, desc, 0
            bars.append(self)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.closed = True

        def update(self, n=1):
            self.n += n

        def set_postfix_str(self, text):
            self.text = text

    model = k_model(eps_denoiser, EDM_LIKE)
    search = fs.optimize.fit(model, [8, 4], 3, seed=0, beam=1, teacher=20, progress=Bar)
    (bar,) = bars
    assert bar.closed and bar.unit == " evaluations" and bar.text.startswith("teacher agrees to")
    assert bar.n == bar.total == search.nfe * 8
