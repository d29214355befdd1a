"""Time grids: literal cases, ends, monotony, refusals."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastsample import grids
from fastsample.model import Model
from fastsample.schedules import EDM, VE, VP, Cosine, DiscreteVP, Flow, TrigFlow, from_functions

EPS = np.finfo(np.float64).eps
SD = DiscreteVP.scaled_linear()
ALL = {
    "VP": VP(),
    "VE": VE(),
    "EDM": EDM(),
    "Flow": Flow(),
    "Flow(3)": Flow(3.0),
    "TrigFlow": TrigFlow(0.5),
    "linear": DiscreteVP.linear(),
    "SD": SD,
    "cosine": DiscreteVP.cosine(),
    "zero_snr": SD.zero_terminal_snr(),
    "Cosine": Cosine(),
    "VP shifted": VP().shifted(-1.0),
    "functions": from_functions(lambda t: 1.0 - t, lambda t: t),
}
EVERY = (grids.uniform, grids.uniform_half_log_snr, grids.karras, grids.exponential)
INDEXED = (grids.trailing, grids.leading, grids.linspace)


def near(grid, wanted, ulps=64):
    wanted = np.asarray(wanted, dtype=np.float64)
    return (
        grid.shape == wanted.shape and (np.abs(grid - wanted) <= ulps * EPS * np.abs(wanted)).all()
    )


@pytest.mark.parametrize(
    ("grid", "wanted"),
    [
        (grids.uniform(Flow(3.0), 4), [1.0, 0.75, 0.5, 0.25, 0.0]),
        (grids.uniform(Flow(t_min=0.2), 4, end="min"), [1.0, 0.8, 0.6, 0.4, 0.2]),
        (grids.uniform(EDM(sigma_max=8.0), 4), [8.0, 6.0, 4.0, 2.0, 0.0]),
        (grids.uniform(VE(), 3), [1.0, 0.5, 0.0, -1.0]),
        (grids.uniform(SD, 1), [999.0, -1.0]),
        (grids.uniform_half_log_snr(EDM(0.25, 4.0), 5), [4.0, 2.0, 1.0, 0.5, 0.25, 0.0]),
        (grids.uniform_half_log_snr(EDM(0.25, 4.0), 4, end="min"), [4.0, 2.0, 1.0, 0.5, 0.25]),
        # lambda ln(1/4), 0, ln 4; the first moved to t = 1
        (grids.uniform_half_log_snr(Flow(t_min=0.2), 3), [1.0, 0.5, 0.2, 0.0]),
        (grids.exponential(EDM(0.25, 4.0), 5), [4.0, 2.0, 1.0, 0.5, 0.25, 0.0]),
        (grids.exponential(Flow(t_min=0.25), 3), [1.0, 0.5, 0.25, 0.0]),  # evenly in ln(sigma)
        (grids.karras(EDM(1.0, 27.0), 3, rho=3.0), [27.0, 8.0, 1.0, 0.0]),
        (grids.karras(EDM(1.0, 27.0), 2, rho=3.0, end="min"), [27.0, 8.0, 1.0]),
        # in sigma, since sigma/alpha is infinite at t = 1
        (grids.karras(Flow(t_min=0.25), 3, rho=2.0), [1.0, 0.5625, 0.25, 0.0]),
        (grids.karras(EDM(), 1), [80.0, 0.0]),
        (grids.trailing(SD, 4), [999.0, 749.0, 499.0, 249.0, -1.0]),
        (grids.trailing(SD, 10, rounded=True), [*range(999, 0, -100), -1.0]),
        (grids.trailing(SD, 3), [999.0, 1000.0 * 2 / 3 - 1, 1000.0 / 3 - 1, -1.0]),
        (grids.leading(SD, 4, offset=1), [751.0, 501.0, 251.0, 1.0, -1.0]),
        (grids.leading(SD, 10), [*range(900, -1, -100), -1.0]),
        (grids.linspace(SD, 4), [999.0, 666.0, 333.0, 0.0, -1.0]),
        (grids.linspace(SD, 3, rounded=True), [999.0, 500.0, 0.0, -1.0]),
        (grids.from_sigmas(EDM(), [80, 0.821, 0]), [80.0, 0.821, 0.0]),
        (grids.from_sigmas(Flow(3.0), [1.0, 0.9, 0.5, 0.0]), [1.0, 0.75, 0.25, 0.0]),
        (grids.from_sigmas(TrigFlow(0.5), [np.inf, 0.5, 0.0]), [np.pi / 2, np.pi / 4, 0.0]),
        (grids.from_sigmas(VE(1.0, 100.0), [100.0, 10.0, 0.25]), [1.0, 0.5, -0.75]),
        (grids.from_timesteps(SD, [999, 749, 499, 249]), [999.0, 749.0, 499.0, 249.0, -1.0]),
        (grids.from_timesteps(SD, [999, 499, -1]), [999.0, 499.0, -1.0]),
        (grids.from_timesteps(Flow(), [0.75, 0.5], end="keep"), [0.75, 0.5]),
    ],
)
def test_literal(grid, wanted):
    assert grid.dtype == np.float64
    assert near(grid, wanted)


def test_karras_of_the_paper():
    """sigma 80 -> .002 with rho 7 at 18 levels: the second level as the formula of Karras et al.
    2022, eq. 5 gives it.
    """
    wanted = (80 ** (1 / 7) + 1 / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    assert abs(grids.karras(EDM(), 18)[1] - wanted) <= 64 * EPS * wanted


@pytest.mark.parametrize("schedule", ALL.values(), ids=ALL.keys())
@pytest.mark.parametrize("make", EVERY)
@pytest.mark.parametrize("n", [1, 2, 3, 50, 1000])
def test_ends_and_order(schedule, make, n):
    for end, last in (("zero", schedule.t_zero), ("min", schedule.t_min)):
        grid = make(schedule, n, end=end)
        assert len(grid) == n + 1
        assert (grid[0], grid[-1]) == (schedule.t_max, last)
        assert (np.diff(grid) < 0).all()
        assert (np.diff(schedule.half_log_snr(grid)) > 0).all()


@pytest.mark.parametrize("schedule", [s for s in ALL.values() if isinstance(s, DiscreteVP)])
@pytest.mark.parametrize("make", INDEXED)
@pytest.mark.parametrize("n", [1, 7, 20, 999, 1000])
def test_indexed_grids_of_every_size(schedule, make, n):
    """Up to n = 1000 no level is repeated, rounded or not: the last evaluation is never wasted."""
    for rounded in (False, True):
        grid = make(schedule, n, rounded=rounded)
        assert len(grid) == n + 1
        assert grid[-1] == -1.0
        assert not rounded or (grid == np.round(grid)).all()


def test_spacing_is_what_its_name_says():
    for schedule in (VP(), EDM(), SD):
        levels = schedule.half_log_snr(grids.uniform_half_log_snr(schedule, 12, end="min"))
        assert np.ptp(np.diff(levels)) <= 256 * EPS * np.abs(levels).max()
        assert near(
            grids.exponential(schedule, 12), grids.uniform_half_log_snr(schedule, 12), ulps=4096
        )
        rho = (schedule.sigma(g := grids.karras(schedule, 9, end="min")) / schedule.alpha(g)) ** (
            1 / 7
        )
        assert np.ptp(np.diff(rho)) <= 1024 * EPS * rho.max()


def test_a_rounded_published_list_is_taken():
    # 14.615 is above the table's 14.61464
    published = [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.0]
    grid = grids.from_sigmas(SD, published)
    assert np.round(grid[:-1]).tolist() == [999, 850, 736, 645, 545, 455, 343, 233, 125, 24]
    assert grid[-1] == -1.0


def test_a_repeated_level_of_a_list_is_left_out():
    grid = grids.from_sigmas(EDM(), [14.6, 14.6, 3.0, 1.5, 1.5, 1.5, 0.0, 0.0])
    assert grid.tolist() == [14.6, 3.0, 1.5, 0.0]


@given(st.integers(1, 400), st.sampled_from(sorted(ALL)), st.sampled_from(EVERY))
@settings(derandomize=True, deadline=None, max_examples=50)
def test_from_sigmas_gives_a_grid_back(n, name, make):
    schedule = ALL[name]
    grid = make(schedule, n)
    with np.errstate(divide="ignore"):
        alpha = 1.0 if isinstance(schedule, Flow) else schedule.alpha(grid)
        sigmas = schedule.sigma(grid) / alpha
    again = grids.from_sigmas(schedule, sigmas)
    level, wanted = schedule.half_log_snr(again[1:-1]), schedule.half_log_snr(grid[1:-1])
    # t is rounded, and near the noise end of Flow a step of t moves lambda by
    # 1/alpha = 1 + e^{-lambda}
    assert (np.abs(level - wanted) <= 64 * EPS * (1.0 + np.abs(wanted) + np.exp(-wanted))).all()
    assert (again[0], again[-1]) == (grid[0], grid[-1])


@pytest.mark.parametrize("n", [0, -1, 2.0, 2.5, True, "8", None, 10**9])
@pytest.mark.parametrize("make", [*EVERY, *INDEXED])
def test_a_number_of_steps_that_is_none(make, n):
    accepted = "a whole number of steps from 1 to 65534 is accepted"
    with pytest.raises(ValueError, match=rf"grids\.{make.__name__}: n = .*; {accepted}"):
        make(SD, n)


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (Model(None, SD), "a Model; pass model.schedule"),
        (None, "a NoneType; a"),
        (VP, "the class VP; a"),
        ("vp", "a str; a"),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize(
    "make", [*EVERY, *INDEXED, grids.from_sigmas, grids.from_timesteps, grids.check]
)
def test_what_is_no_schedule_is_refused(make, value, sentence):
    with pytest.raises(ValueError, match=rf"grids\.{make.__name__}: schedule is {sentence}"):
        make(value, 8 if make in (*EVERY, *INDEXED) else [2.0, 1.0])


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda: grids.check(EDM(), [1, 2, 3]),
            "grid: the numbers rise from 1 to 3; the same list from noise to data is accepted",
        ),
        (lambda: grids.check(EDM(), [3, 3, 1]), "grid: entry 1 is 3 after 3"),
        (lambda: grids.check(EDM(), [3, np.nan, 1]), "1 NaN"),
        (lambda: grids.check(EDM(), [np.inf, 1]), "entry 0 is inf"),
        (lambda: grids.check(EDM(), []), r"shape \[0\]"),
        (lambda: grids.check(EDM(), [1]), "grid: 1 times; 2 to 65535"),
        (lambda: grids.check(EDM(), np.linspace(1, 0, 70000)), "grid: 70000 times"),
        (lambda: grids.check(EDM(), [[1, 2]]), r"shape \[1, 2\]"),
        (lambda: grids.check(EDM(), "abc"), "'abc'"),
        (lambda: grids.check(EDM(), [1, -1]), "EDM.half_log_snr: t = -1"),
        (lambda: grids.check(Flow(), [2, 1]), "Flow.half_log_snr: t = 2"),
        (lambda: grids.from_timesteps(SD, [5000, 1]), "t = 5000; -1 <= t <= 999"),
        (lambda: grids.from_timesteps(SD, [1, 999]), "entry 1 is 999 after 1"),
        (lambda: grids.from_timesteps(SD, [9], end="min"), "end = 'min'; 'zero' or 'keep'"),
        (
            lambda: grids.from_sigmas(SD, [5000, 1]),
            "5000 is above the schedule's largest level; up to 14.6146",
        ),
        (lambda: grids.from_sigmas(SD, [np.inf, 1]), "inf is above"),
        (lambda: grids.from_sigmas(EDM(), [3, -1]), "-1 is negative"),
        (lambda: grids.from_sigmas(EDM(), [3, 1, 2]), "entry 2 is 2 after 1"),
        (
            lambda: grids.from_sigmas(EDM(), [0, 1, 3]),
            r"grids.from_sigmas: the numbers rise from 0 to 3; the same list .*, \[3, 1, 0\]$",
        ),
        (lambda: grids.check(VP(), np.linspace(0, 1, 99)), r"\[1, 0.989\d+, .*, \.\.\.\]$"),
        (
            lambda: grids.check(Flow(3.0), [1, 0.5, 0.5, 0]),
            "grid: entry 2 is 0.5 after 0.5",
        ),
        (lambda: grids.leading(SD, 4, offset="a"), "grids.leading: offset = 'a'; a number"),
        (lambda: grids.trailing(EDM(), 3), "schedule is a EDM; a DiscreteVP is accepted"),
        (lambda: grids.leading(SD, 2000), "n = 2000 for a table of 1000 levels"),
        (lambda: grids.leading(SD, 2, offset=600), "t = 1100"),
        (lambda: grids.linspace(SD, 1500, rounded=True), "1500 times rounded to whole ones repeat"),
        (lambda: grids.karras(EDM(), 4, rho=0), "rho = 0; a number > 0"),
        (lambda: grids.karras(EDM(), 4, rho=np.nan), "rho = nan"),
        (lambda: grids.karras(EDM(), 4, rho=10**400), "rho = 1000"),
        (lambda: grids.leading(SD, 4, offset=np.float32(np.inf)), "offset = .*inf"),
        (lambda: grids.refined(EDM(), [4.0, 0.0], 0), "grids.refined: parts = 0; a whole number"),
        (lambda: grids.uniform(VP(), 3, end="x"), "end = 'x'; 'zero' or 'min'"),
        (lambda: grids.exponential(VP(), 3, end=None), "end = None; 'zero' or 'min'"),
        (
            lambda: grids.check(EDM(), [1e-300, np.nextafter(1e-300, 0.0)]),
            "are one noise level in float64",
        ),
    ],
)
def test_a_bad_grid_is_refused(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


@pytest.mark.parametrize("name", list(ALL))
@pytest.mark.parametrize("parts", [1, 2, 3, 8])
def test_refined_grids_hold_every_node(name, parts):
    """Equal parts of one variable between the grid's own times, kept bit for bit; the step to
    sigma = 0 starts at t_min or below.
    """
    schedule = ALL[name]
    given = (
        grids.fine(schedule, 9),
        grids.uniform(schedule, 5),
        grids.exponential(schedule, 1),
        grids.uniform(schedule, 3, end="min"),
    )
    for grid in given:
        whole = grid[-1] == schedule.t_zero and grid[-2] <= schedule.t_min
        times = grids.refined(schedule, grid, parts)
        assert len(times) - 1 == parts * (len(grid) - 1) - (parts - 1) * whole
        assert np.isin(grid, times).all() and (parts > 1 or (times == grid).all())
        assert (
            parts <= 2 or grid[-1] > schedule.t_zero or times[-2] == min(schedule.t_min, grid[-2])
        )
        assert len(grids.refined(schedule, times, 2)) > len(times)  # what was cut can be cut again
        level = schedule.half_log_snr(times)
        variable = level if schedule.half_log_snr(schedule.t_max) == -np.inf else np.exp(-level / 7)
        inside = range(1, len(grid) - 1 - (grid[-1] == schedule.t_zero))
        for i in inside:  # the first may start at alpha = 0
            cut = np.diff(variable[i * parts : (i + 1) * parts + 1])
            assert np.abs(cut - cut.mean()).max() <= 1e4 * EPS * max(
                1.0, np.abs(variable[i * parts])
            )


def test_fine_is_karras_where_its_variable_is_finite():
    for schedule in ALL.values():
        usual = grids.karras if schedule.alpha(schedule.t_max) > 0 else grids.uniform_half_log_snr
        np.testing.assert_array_equal(grids.fine(schedule, 12), usual(schedule, 12))


def test_a_cut_from_alpha_0_begins_at_t_finite():
    """lambda -ln 4 (t = .8) to 0 in two: t = 1/(1 + e^(-ln 2))."""
    assert near(
        grids.refined(Flow(t_min=0.2), [1.0, 0.5, 0.2, 0.0], 2), [1.0, 2 / 3, 0.5, 1 / 3, 0.2, 0.0]
    )
    assert near(grids.refined(EDM(1.0, 2.0**7), [2.0**7, 0.0], 3), [2.0**7, 1.5**7, 1.0, 0.0])
    # not 1, which the first step would end at
    assert near(grids.refined(EDM(1.0, 2.0**7), [2.0**7, 0.0], 2), [2.0**7, 1.5**7, 0.0])
