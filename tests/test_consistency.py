"""What must hold for every plan, whatever its rows: an exact model lands on the schedule, and the
symmetries of the problem are the plan's too.

Rounding bounds are computed: eps times the sizes of the terms that were added, row by row.
"""

from __future__ import annotations

from contextlib import nullcontext

import interpreter
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle.cases import CASES, SCHEDULES, UNLISTED, grid, schedule_id
from oracle.linear import EPS
from oracle.probe import states

from fastsample.model import PREDICTIONS, to_x0
from fastsample.plan.consistency import CONSISTENT, is_sound
from fastsample.schedules import EDM, VE, VP, DiscreteVP, Flow, TrigFlow
from fastsample.solvers import SOLVERS

by_id = {case.id: case for case in CASES}
# lcm's boundary leaves the schedule by design
MARGINAL = [*(c for c in CASES if c.marginal and "space" not in c.options), *UNLISTED]
EACH = [
    by_id[i]
    for i in (
        "ddim-eta=0.3",
        "euler",
        "euler_ancestral",
        "heun",
        "dpmpp_2s",
        "dpmpp_2m",
        "dpmpp_3m",
        "dpmpp_2m_sde",
        "unipc-order=3-variant=bh2",
        "unipc-order=2-variant=bh1",
    )
]
ONE_STEP = [c for c in EACH if c.name in ("ddim", "euler", "euler_ancestral", "heun", "dpmpp_2s")]
CONTINUOUS = (VP(), VE(), EDM(), Flow(3.0), TrigFlow(0.5))


def exact_output(
    prediction: str, x: np.ndarray, x0: np.ndarray, alpha: float, sigma: float, spread: float
) -> np.ndarray:
    """What a perfect network of this prediction returns at x: the out with p x + q out = x0 (x0
    itself at sigma = 0 is never asked).
    """
    p, q = to_x0(prediction, alpha, sigma, spread)
    return (x0 - p * x) / q


ON_SLOPES = ("lms", "ipndm_v", "adams_bashforth", "deis", "pndm", "stork")


def landing(plan, spread: float) -> tuple[float, float]:
    """Run an image (e_0) noised by e_1 with a perfect model: (distance from alpha e_0 + sigma unit
    noise beyond rounding, the rounding's bound).

    The bound follows every row: 4 eps times the terms it adds, plus what it makes of the errors in
    x and in the slots; on plans that carry eps 4 + |lambda|, for alpha'/alpha, which nearly cancels
    there, knows lambda to eps |lambda|. A perfect model answers an error in x, so that of m is
    (p - q P/Q) times it, with x0 = P x + Q out.
    """
    ids = {int(k): n for n, k in enumerate(sorted({int(k) for k in plan.ids.ravel() if k >= 0}))}
    x0, *units = np.eye(1 + len(ids))
    noise = {k: units[n] for k, n in ids.items()}
    x, slots, over, off, largest = x0, [np.full(len(x0), np.nan)] * plan.S, 0.0, 0.0, 0.0
    slot_off, eps = np.zeros(plan.S), plan.note["arguments"].get("carry") == "eps"
    for i in range(plan.rows):
        alpha, sigma, asked = plan.alpha[i], plan.sigma[i], plan.call[i] >= 0
        f = (
            exact_output(plan.note["prediction"], x, x0, alpha, sigma, spread)
            if asked
            else np.zeros_like(x)
        )
        if i:
            distance = max(abs(x[0] - alpha), abs(np.linalg.norm(x[1:]) - sigma))
            over = max(over, distance - off - 8 * EPS * (alpha + sigma))
        P, Q = to_x0(plan.note["prediction"], alpha, sigma, spread) if asked else (0.0, 1.0)
        reply = plan.p[i] - plan.q[i] * P / Q
        m = abs(plan.p[i]) * np.abs(x).max() + abs(plan.q[i]) * np.abs(f).max()
        kept = [np.nan_to_num(np.abs(s).max()) for s in slots]
        sizes = np.array(
            [np.abs(x).max(), *kept, m, *[np.abs(f).max()] * (1 + plan.G), *[1.0] * plan.L]
        )
        read = (plan.reads[i] >> np.arange(plan.W)) & 1
        M = plan.M[i] * read
        far = abs(np.log(alpha / sigma)) if eps and alpha and sigma else 0.0
        errors = (
            np.abs(M[:, 0] + M[:, plan.layout.m] * reply) * off
            + np.abs(M[:, plan.layout.slot(0) : plan.layout.m]) @ slot_off
            + (4 + far) * EPS * (np.abs(M) @ sizes)
        )
        x, _, _ = interpreter.step(plan, i, x, slots, [f], noise.__getitem__)
        off, largest = errors[0], max(largest, errors[0])
        for o, d in enumerate(plan.dst[i]):
            if d >= 0:
                slot_off[d] = errors[1 + o]
    return over, largest


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=schedule_id)
@pytest.mark.parametrize("every", [3, pytest.param(1, marks=pytest.mark.soak)])
def test_a_perfect_model_lands_on_the_schedule(schedule, prediction, every):
    """In ten steps on every third schedule, by turns, and in a soak on all."""
    # eps and edm have no meaning at alpha = 0
    whole = schedule.alpha(schedule.t_max) > 0 or prediction not in ("eps", "edm")
    turn = SCHEDULES.index(schedule) + PREDICTIONS.index(prediction)
    for k, case in enumerate(MARGINAL if prediction == "x0" else EACH):
        for n in (1, 2, 3, 10)[: 3 + ((turn + k) % every == 0)]:
            plan = case.plan(schedule, grid(schedule, n, whole=whole), prediction, start=0)
            over, room = landing(plan, plan.note["model"]["sigma_data"])
            assert over <= 0, f"{case.id}, {n} steps: {over:.1e} beyond the {room:.1e} of rounding"
            # a step far down the noise of Heun and of the midpoint rule multiplies what its stage
            # rounded by the ratio of the levels; eps, by sigma/alpha
            limit = (
                1e-6
                if case.name in ("heun", "restart", "rk", "dpm_2_ancestral")
                else 1e-12 * (1 + plan.sigma[1] / plan.alpha[1] if prediction == "eps" else 1)
            )
            # what carries eps, and a polynomial in the level or in time, has large weights
            heavy = 2.0 * (case.options.get("carry") == "eps") + (case.name in ON_SLOPES)
            limit *= max(1.0, heavy * np.abs(plan.M).sum(2).max())
            assert room < limit and plan.consistency() <= max(1e-12, room), (
                f"{case.id}, {n} steps: room {room:.1e}"
            )


@pytest.mark.parametrize(
    "case",
    [c for c in EACH if c.name not in ("heun", "ddim", "euler_ancestral")],
    ids=lambda c: c.id,
)
def test_a_perfect_model_lands_after_a_thousand_steps(case):
    schedule = SCHEDULES[EACH.index(case) % 6]
    plan = case.plan(schedule, grid(schedule, 1000, whole=True), "v", start=0)
    over, room = landing(plan, 0.5)
    assert over <= 0 and room < 1e-10 and plan.consistency() <= 1e-12


@pytest.mark.parametrize(
    "name, options", [("euler_ancestral", {}), ("dpmpp_2m_sde", {}), ("heun", {"s_churn": 2.0})]
)
def test_scaled_noise_leaves_the_schedule_and_the_note_says_so(name, options):
    t = grid(EDM(), 4, whole=True)
    for s_noise, consistent in ((1.0, True), (1.1, False)):
        plan = SOLVERS[name](EDM(), t, prediction="x0", s_noise=s_noise, **options)
        assert plan.note["consistent"] == consistent == (plan.consistency() <= 1e-12)


# -- properties over random grids ------------------------------------------------------------------
@st.composite
def random_grids(draw, schedules=CONTINUOUS, longest: int = 8):
    """(schedule, strictly decreasing times): levels anywhere between the ends, spacings from tiny
    to huge, either end exact or not.
    """
    schedule = draw(st.sampled_from(schedules))
    top, low = schedule.half_log_snr(schedule.t_finite), schedule.half_log_snr(schedule.t_min)
    shares = draw(st.lists(st.floats(1e-3, 1.0), min_size=1, max_size=longest))
    ends = np.cumsum([draw(st.floats(0.01, 1.0)), *shares, draw(st.floats(0.01, 1.0))])
    t = schedule.time(top + (low - top) * ends[:-1] / ends[-1])
    if draw(st.booleans()):
        t = np.append(t, schedule.t_zero)
    return schedule, t


case_of = st.sampled_from(EACH)


def denoiser(x: np.ndarray, alpha: float, sigma: float) -> np.ndarray:
    """A smooth nonlinear D(x) of no particular meaning, of order 1."""
    y = x / np.hypot(alpha, sigma)
    return np.tanh(1.3 * y + 0.2) + 0.1 * np.sin(3 * y)


def run(
    plan,
    start: np.ndarray,
    D=denoiser,
    noise=lambda k: np.cos(np.arange(4.0) * (k + 1)),
    spread: float = 0.5,
) -> np.ndarray:
    """The plan from x = start at its first point, with the denoiser D as the plan's own kind of
    network.
    """

    def model(x, t, row, call):
        alpha, sigma = plan.alpha[row], plan.sigma[row]
        x = x / plan.c[row - 1]
        return [exact_output(plan.note["prediction"], x, D(x, alpha, sigma), alpha, sigma, spread)]

    return interpreter.run(plan, start, model, noise, first=1)


START = np.array([-1.1, 0.2, 0.9, 2.4])


def amplification(plan) -> float:
    """How much a rounding error of one row may grow, at most: the largest sum of |coefficients|
    times the rows, and sigma/alpha for eps."""
    largest = max(
        1.0,
        *(
            np.abs(plan.M[i, 0]).sum() * max(1.0, abs(plan.p[i]) + abs(plan.q[i]))
            for i in range(plan.rows)
        ),
    )
    return float(plan.rows * largest**2)


@given(random_grids(), case_of)
def test_any_decreasing_grid_gives_finite_rows(where, case):
    schedule, t = where
    plan = case.plan(schedule, t)
    assert np.isfinite(plan.M).all() and plan.consistency() <= 1e-9
    assert plan.nfe >= len(t) - 1


@given(random_grids(), case_of, st.floats(-3, 3))
def test_constant_denoiser_is_a_fixed_point(where, case, value):
    """D = c everywhere: x leaves along the straight line, and ends in alpha c + (sigma/sigma_0)(x_0
    - alpha_0 c), c itself at sigma = 0."""
    schedule, t = where
    if case.name in ("ddim", "euler_ancestral", "dpmpp_2m_sde"):
        case = by_id["ddim"]  # without noise
    plan = case.plan(schedule, t)
    end = run(plan, START, lambda x, alpha, sigma: np.full_like(x, value))
    a0, s0, a1, s1 = plan.alpha[1], plan.sigma[1], plan.alpha[-1], plan.sigma[-1]
    size = amplification(plan) * (np.abs(START).max() + abs(value))
    np.testing.assert_allclose(
        end, a1 * value + s1 / s0 * (START - a0 * value), rtol=0, atol=8 * EPS * size
    )


@given(random_grids(), case_of, st.floats(-2, 2))
def test_shifting_the_data_shifts_the_samples(where, case, by):
    """D_s(x) = D(x - alpha s) + s moves every state by alpha s: the weights of each row sum to what
    the schedule needs.
    """
    schedule, t = where
    plan = case.plan(schedule, t)
    straight = run(plan, START)
    moved = run(plan, START + plan.alpha[1] * by, lambda x, a, s: denoiser(x - a * by, a, s) + by)
    size = amplification(plan) * 4 * (3 + abs(by))
    np.testing.assert_allclose(moved, straight + plan.alpha[-1] * by, rtol=0, atol=64 * EPS * size)


@given(random_grids((EDM(),)), case_of, st.floats(0.01, 100))
def test_scaling_sigma_scales_the_noise_and_nothing_else(where, case, by):
    """On sigmas c sigma the coefficients of the predictions stay, those of start and noises are c
    times as large.
    """
    schedule, t = where
    plan = case.plan(schedule, t)
    one, scaled = states(plan, raw=True), states(case.plan(schedule, by * t), raw=True)
    want = one.states.copy()
    want[:, 0] *= by
    want[:, 1 + one.calls :] *= by
    lam = np.abs(np.log(t[t > 0])).max() + abs(np.log(by)) + 1
    gap = np.min(-np.diff(np.log(t[t > 0])), initial=1.0)
    # knowledge of h, or cancelling terms
    size = max(lam / gap * len(t) * np.abs(want).max(), amplification(plan) * max(by, 1))
    assert np.abs(scaled.states - want).max() <= 64 * EPS * size


@given(random_grids(), case_of)
def test_predictions_of_one_denoiser_agree(where, case):
    """x0, eps, v, flow, edm and trigflow are names for the same network: the samples are the
    same.
    """
    schedule, t = where
    ends = {kind: run(case.plan(schedule, t, kind), START) for kind in PREDICTIONS}
    for kind in PREDICTIONS:
        plan = case.plan(schedule, t, kind)
        np.testing.assert_allclose(
            ends[kind], ends["x0"], rtol=0, atol=64 * EPS * amplification(plan), err_msg=kind
        )


@given(random_grids())
def test_first_order_solvers_are_one_solver(where):
    """DDIM, Euler, ancestral Euler without noise, UniPC-1 without corrector: one row in four
    spellings.
    """
    schedule, t = where
    want = states(SOLVERS["ddim"](schedule, t, prediction="v"), raw=True).states
    for name, options in (
        ("euler", {}),
        ("euler_ancestral", {"eta": 0.0}),
        ("unipc", {"order": 1, "corrector": False}),
    ):
        have = states(SOLVERS[name](schedule, t, prediction="v", **options), raw=True).states
        assert np.abs(have - want).max() <= 64 * EPS * len(t) * np.abs(want).max(), name


@given(random_grids())
def test_exact_multistep_rows_have_one_form(where):
    """The exact two- and three-node integrals under their three names: 2M heun, its SDE at eta = 0,
    UniP; and 3M, UniP-3.
    """
    schedule, t = where
    unip = {"variant": "vary", "corrector": False, "lower_order_final": False}
    groups = [
        [
            ("dpmpp_2m", {"variant": "heun"}),
            ("dpmpp_2m_sde", {"eta": 0.0, "variant": "heun"}),
            ("unipc", {"order": 2, **unip}),
        ],
        [("dpmpp_3m", {}), ("unipc", {"order": 3, **unip})],
        [
            ("dpmpp_2m", {}),
            ("dpmpp_2m_sde", {"eta": 0.0}),
            ("unipc", {"order": 2, **unip, "variant": "bh2"}),
        ],
    ]
    for group in groups:
        want, *others = (
            states(SOLVERS[name](schedule, t, prediction="x0", **options)).states
            for name, options in group
        )
        for have in others:
            assert np.abs(have - want).max() <= 64 * EPS * len(t) * np.abs(want).max()


@given(random_grids(longest=6), st.sampled_from(ONE_STEP), st.data())
def test_splitting_a_one_step_plan_and_resuming_equals_the_whole(where, case, data):
    schedule, t = where
    if len(t) < 3 or case.name in ("ddim", "euler_ancestral"):
        case = by_id["euler"]  # noise ids start again in a second plan
    k = data.draw(st.integers(1, len(t) - 1)) if len(t) > 2 else 1
    whole = case.plan(schedule, t)
    first = run(case.plan(schedule, t[: k + 1]), START)
    second = run(case.plan(schedule, t[k:]), first) if k < len(t) - 1 else first
    np.testing.assert_allclose(
        second, run(whole, START), rtol=0, atol=64 * EPS * amplification(whole)
    )


# -- a plan's own check ----------------------------------------------------------------------------
def test_a_defect_is_rounding_where_rows_enlarge_rounding_as_much():
    """Three Runge-Kutta steps from where sigma/alpha is 1e5 make 4e-9 of float64's 1e-16. A weight
    of the last row that is off by a part in 1e5 is no rounding there, nor one by a part in 1e8
    elsewhere.
    """
    steep = DiscreteVP.cosine(288), [287.0, 262.0, 260.0, 249.0, -1.0]
    for (schedule, grid_of), part in ((steep, 1e-5), ((VP(), [1.0, 0.6, 0.3, 0.1, 0.0]), 1e-8)):
        said = "^pndm: rows enlarge rounding on this grid, in float64 to .*e-09 .* float32 to about"
        with pytest.warns(UserWarning, match=said) if part == 1e-5 else nullcontext() as warned:
            plan = SOLVERS["pndm"](schedule, grid_of, prediction="x0", warm_up="runge-kutta")
        assert is_sound(plan) and (plan.consistency() > CONSISTENT) == (part == 1e-5)
        assert all(w.filename == __file__ for w in warned or ())
        M = plan.M.copy()
        M[-2, 0, 0] *= 1.0 + part
        off = plan.with_numbers(M=M)
        assert not is_sound(off) and not off.note["consistent"]
