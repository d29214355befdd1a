"""Every coefficient of every solver against a derivation of its own: oracle.loops in 50 digits, row
by row, at 1e-12.

A plan is run on basis vectors, so that each state is the list of its coefficients over the start
noise, every prediction and every noise; a direct loop with explicit anchors follows it. Both reduce
to the same thing whatever the plan stores, eliminates or folds.
"""

from __future__ import annotations

from dataclasses import replace

import mpmath
import numpy as np
import pytest
from oracle import derivations as d
from oracle.cases import CASES, SCHEDULES, grid, schedule_id
from oracle.linear import EPS, mp
from oracle.marginals import Point, point
from oracle.probe import follow

from fastsample.schedules import EDM, VP
from fastsample.solvers import jump

PREDICTIONS = ("x0", "eps", "v", "flow", "edm", "trigflow")
LONG = (
    "ddim-eta=0.3",
    "euler_ancestral",
    "heun-space=rho-s_churn=2.0-s_tmin=0.05-s_tmax=30.0",
    "dpmpp_2s-r=0.3",
    "dpmpp_2m",
    "dpmpp_3m",
    "dpmpp_2m_sde-eta=0.4-variant=heun",
    "unipc-order=2-variant=bh1",
    "unipc-order=3-variant=bh2",
    "euler",
    "lcm",
)
SHORT = (
    "dpmpp_2m",
    "dpmpp_2m-variant=heun",
    "dpmpp_3m",
    "dpmpp_3m_sde-eta=0.4",
    "res_multistep",
    "deis",
    "deis-variant=tab-order=2",
    "deis-variant=rhoab-order=4",
    "unipc-carry=eps",
    "unipc-lower_order_final=False",
    "sa_solver-predictor_order=3-corrector_order=4-between=(0.2, 3.0)-evaluations=2",
    "seeds_3",
    "dpmpp_3s-r1=0.25-r2=0.8-variant=taylor",
    "rk",
    "rk-tableau=etdrk4",
)
by_id = {case.id: case for case in CASES}


def grids(case, schedule, sizes) -> list[np.ndarray]:
    """Uneven grids of every size: between finite levels, and (unless the solver needs a finite rho)
    from the noise end to sigma = 0.
    """
    finite = "space" in case.options and schedule.alpha(schedule.t_max) == 0
    return [
        grid(schedule, n, whole=whole)
        for n in sizes
        for whole in ((False,) if finite else (False, True))
    ]


GRIDS = {f"{n} {end}": (n, end == "whole") for end in ("part", "whole") for n in (1, 2, 3, 10)}


@pytest.mark.pairs(case=by_id, schedule={schedule_id(s): s for s in SCHEDULES}, of=GRIDS)
def test_rows_equal_their_derivation(case, schedule, of):
    n, whole = of
    t = grids(case, schedule, (n,))[-1 if whole else 0]
    found = follow(case.plan(schedule, t), schedule, case.loop, case.loop_options(schedule, t))
    assert found.agrees(), str(found)


@pytest.mark.parametrize("h", [1e-4, 1e-2, 0.9])
@pytest.mark.parametrize("case", [by_id[name] for name in SHORT], ids=lambda c: c.id)
def test_rows_of_short_steps(case, h):
    """Weights are differences of what is nearly equal there: 1 - e^{-h} and h, h^2 and h - I_1. h =
    .9 has steps on both sides of 1, where a series gives way to a recurrence.
    """
    schedule = EDM()
    t = np.asarray(schedule.time(h * np.cumsum([0.0, 1.0, 0.7, 1.3, 0.9]) - 0.5))
    found = follow(case.plan(schedule, t), schedule, case.loop, case.loop_options(schedule, t))
    assert found.agrees(), str(found)


@pytest.mark.parametrize("eta", [0.4, 0.64, 1.0])
def test_noise_of_a_step_that_has_drawn_nearly_all_of_it_by_its_stage(eta):
    """kappa grows by 1e-6 from there to the end of a step over all of a schedule."""
    case = replace(
        by_id["dpmpp_sde"], options={"eta": eta, "r": 0.8}, expect={"eta": eta, "r": 0.8}
    )
    schedule, t = VP(), np.array([0.95, 0.01, 0.0])
    found = follow(case.plan(schedule, t), schedule, case.loop, case.loop_options(schedule, t))
    assert found.agrees(), str(found)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=schedule_id)
def test_rows_that_keep_their_anchor_for_a_mask_are_the_same(schedule):
    """inpaint=True keeps the anchor in a slot instead of eliminating it; without a mask the states
    are those of the same loop.
    """
    for name in (
        "heun",
        "dpmpp_2s-r=0.3",
        "dpmpp_3m",
        "unipc-order=2-variant=bh1",
        "unipc-order=3-variant=bh2",
        "rk",
        "dpmpp_3s",
        "dpm_solver_singlestep",
    ):
        case = by_id[name]
        for t in grids(case, schedule, (2, 5)):
            found = follow(
                case.plan(schedule, t, inpaint=True),
                schedule,
                case.loop,
                case.loop_options(schedule, t),
            )
            assert found.agrees(), f"{name}, {len(t) - 1} steps: {found}"


@pytest.mark.parametrize(
    "case", [c for c in CASES if "s_churn" not in c.options], ids=lambda c: c.id
)
def test_rows_from_an_image_are_those_of_the_rest_of_the_grid(case):
    """start=k: row 0 makes alpha_k y + sigma_k n of an image y, the rest is the plan of grid[k:].
    (Churn is part of row 0 too.)
    """
    schedule = SCHEDULES[1]
    t = grid(schedule, 5, whole=True)
    image, rest = case.plan(schedule, t, start=2), case.plan(schedule, t[2:])
    for name in ("p", "q", "c", "t", "preview", "alpha", "sigma"):
        np.testing.assert_array_equal(
            getattr(image, name)[1:], getattr(rest, name)[1:], err_msg=name
        )
    # the image's noise may be one column more
    np.testing.assert_array_equal(image.M[1:, :, : rest.W], rest.M[1:])
    assert not image.M[1:, :, rest.W :].any() and image.ids[0].max() == image.ids[0, 0] == 0
    amount = image.M[0, 0, [0, image.layout.noise(0)]].tolist()
    assert amount == [schedule.alpha(t[2]), schedule.sigma(t[2])]
    assert (image.alpha[0], image.sigma[0]) == (1.0, 0.0)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_rows_read_what_has_a_coefficient_and_nothing_else(case):
    """A declared read is a load, and carries a NaN: at sigma = 0 no row reads the x it does not
    use.
    """
    for schedule in SCHEDULES:
        for t in grids(case, schedule, (1, 5)):
            plan = case.plan(schedule, t)
            used = sum((plan.M[:, :, k] != 0).any(1).astype(int) << k for k in range(plan.W))
            assert (plan.reads == used).all(), (
                f"{schedule_id(schedule)}: rows {np.flatnonzero(plan.reads != used)}"
            )


@pytest.mark.parametrize(
    "parts", [3, pytest.param(1, marks=pytest.mark.soak)], ids=["parts", "whole"]
)
@pytest.mark.parametrize("name", LONG)
def test_rows_of_a_thousand_steps(name, parts):
    """Steps so short that weights cancel: of a grid of a thousand, twelve at its beginning, where
    they are shortest and at its end, or all.
    """
    case, schedule = by_id[name], SCHEDULES[LONG.index(name) % 6]
    whole = grids(case, schedule, (1000,))[-1]
    shortest = 1 + int(np.argmin(np.diff(schedule.half_log_snr(whole[1:-1]))))
    for k in (0, min(max(shortest - 6, 1), 987), 988) if parts == 3 else (0,):
        t = whole[k : k + 13] if parts == 3 else whole
        found = follow(case.plan(schedule, t), schedule, case.loop, case.loop_options(schedule, t))
        assert found.agrees(), f"from step {k}: {found}"


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=schedule_id)
def test_rows_over_raw_model_outputs(schedule, prediction):
    """The map from a network's output to the stored prediction, for every prediction on every
    schedule, within each shape of row.
    """
    for name in (
        "ddim-eta=0.3",
        "euler",
        "heun",
        "dpmpp_2m",
        "dpmpp_3m",
        "unipc-order=3-variant=bh2",
        "lcm",
    ):
        case = by_id[name]
        # eps and edm have no meaning at alpha = 0
        t = grid(
            schedule,
            4,
            whole=schedule.alpha(schedule.t_max) > 0 or prediction not in ("eps", "edm"),
        )
        found = follow(
            case.plan(schedule, t, prediction),
            schedule,
            case.loop,
            case.loop_options(schedule, t),
            raw=True,
        )
        assert found.agrees(), f"{name}: {found}"


@pytest.mark.parametrize("schedule", SCHEDULES, ids=schedule_id)
def test_jump_is_the_first_order_step_between_any_two_times(schedule):
    """(a, b) with x' = a x + b x0, for arrays of times, the ends included."""
    t = grid(schedule, 6, whole=True)
    first, second = np.array([(i, j) for i in range(6) for j in range(i + 1, 7)]).T
    a, b = jump(schedule, t[first], t[second])
    for k, (s, e) in enumerate(
        (point(schedule, t[i]), point(schedule, t[j])) for i, j in zip(first, second, strict=True)
    ):
        assert abs(float(mp.mpf(float(a[k])) - d.transfer(s, e)[0])) <= 1e-12 * float(
            e.sigma / s.sigma
        )
        want = e.alpha * d.gain(s, e)
        assert abs(float(mp.mpf(float(b[k])) - want)) <= 1e-12 * float(want)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=schedule_id)
def test_levels_of_the_schedules(schedule):
    """alpha, sigma and half log-SNR of a thousand times against their definitions, near both ends
    too.
    """
    rng, low, high = np.random.default_rng(4), schedule.t_zero, schedule.t_max
    near = (high - schedule.t_min) * 10.0 ** rng.uniform(-7, 0, 60)
    times = np.concatenate(
        [
            [low, high, schedule.t_min],
            rng.uniform(schedule.t_min, high, 60),
            schedule.t_min + near,
            high - near,
        ]
    )
    for t in times:
        p, lam = point(schedule, t), float(schedule.half_log_snr(t))
        # the circle's alpha and sigma are functions of lambda: an error eps (1 + |lambda|) there is
        # one of as much, relatively, here
        room = 8 * EPS * (1 + (abs(float(p.lam)) if mp.isfinite(p.lam) else 0))
        for have, want in ((schedule.alpha(t), p.alpha), (schedule.sigma(t), p.sigma)):
            assert abs(float(mp.mpf(float(have)) - want)) <= room * float(want), f"t = {t!r}"
        assert (
            lam == float(p.lam)
            if not mp.isfinite(p.lam)
            else abs(float(mp.mpf(lam) - p.lam)) <= room
        ), f"t = {t!r}"


@pytest.mark.parametrize("h", [0.001, 0.1, 1.0, 6.0])
@pytest.mark.parametrize("rate", [1, 1.3, 2])
def test_derived_weights_equal_quadrature_of_the_integral(h, rate):
    nodes = [mp.mpf(0), -0.7 * mp.mpf(h), -1.9 * mp.mpf(h)]
    for n in (1, 2, 3):
        where = (nodes[:n], nodes[0], mp.mpf(h), rate)
        assert (
            max(
                abs(a - b)
                for a, b in zip(d.exact_weights(*where), d.quadrature_weights(*where), strict=True)
            )
            < mp.mpf(10) ** -30
        )


@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("corrector", [False, True])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc_system_equals_lagrange_weights(variant, corrector, order):
    """UniPC's own R rho = b/B, and its limit when the oldest node goes to alpha = 0: B cancels but
    for the published halves.
    """
    past = [Point(None, *_circle(lam)) for lam in ("0.3", "-0.2", "-1.1")][:order]
    t = Point(None, *_circle("0.9"))
    system = d.unipc_system([p.lam for p in past], t.lam, variant, corrector)
    assert (
        max(
            abs(a - b)
            for a, b in zip(system, d.unipc_weights(past, t, variant, corrector), strict=True)
        )
        < mp.mpf(10) ** -40
    )
    if order + corrector > 2:
        far = d.unipc_system(
            [*(p.lam for p in past[:-1]), mp.mpf(-10) ** 25], t.lam, variant, corrector
        )
        limit = d.unipc_weights(
            [*past[:-1], Point(None, mp.mpf(0), mp.mpf(1))], t, variant, corrector
        )
        assert max(abs(a - b) for a, b in zip(far, limit, strict=True)) < mp.mpf(10) ** -20


def _circle(lam: str) -> tuple:
    lam = mpmath.mpf(lam)
    return 1 / mp.sqrt(1 + mp.exp(-2 * mp.mpf(lam))), 1 / mp.sqrt(1 + mp.exp(2 * mp.mpf(lam)))
