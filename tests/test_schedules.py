"""Noise schedules: formulas against mpmath, inverses, exact ends, JSON, refusals."""

import json

import mpmath
import numpy as np
import pytest

from fastsample.schedules import (
    EDM,
    SCHEDULES,
    VE,
    VP,
    Cosine,
    CosmosRFlow,
    DiscreteVP,
    Flow,
    TrigFlow,
    from_json,
)

EPS = np.finfo(np.float64).eps
TABLE = DiscreteVP([0.75, 0.25])
ALL = {
    "VP": VP(),
    "VE": VE(),
    "EDM": EDM(),
    "Flow": Flow(),
    "Flow(3)": Flow(3.0),
    "TrigFlow": TrigFlow(),
    "TrigFlow(.5)": TrigFlow(0.5),
    "linear": DiscreteVP.linear(),
    "scaled_linear": DiscreteVP.scaled_linear(),
    "cosine": DiscreteVP.cosine(),
    "zero_snr": DiscreteVP.scaled_linear().zero_terminal_snr(),
    "table": TABLE,
    "Cosine": Cosine(),
    "CosmosRFlow": CosmosRFlow(),
    "exp": DiscreteVP.exp(),
    "sigmoid": DiscreteVP.sigmoid(),
    "laplace": DiscreteVP.laplace(),
    "VP shifted": VP().shifted(-2.0),
    "VE shifted": VE().shifted(-1.5),
    "TrigFlow shifted": TrigFlow(0.5).shifted(1.0),
    "Cosine shifted": Cosine().shifted(2.0),
    "SD shifted": DiscreteVP.scaled_linear().shifted(-np.log(3.0)),
    "SD shifted, zero_snr": DiscreteVP.scaled_linear().shifted(-1.0).zero_terminal_snr(),
}
every_schedule = pytest.mark.parametrize("schedule", ALL.values(), ids=ALL.keys())


def inner(schedule, count=257):
    return np.linspace(schedule.t_min, schedule.t_finite, count)


def near_the_end(schedule):
    """Times where alpha may be anything down to 1e-9."""
    t = schedule.t_max - np.geomspace(1e-9, 0.1, 30) * (schedule.t_max - schedule.t_min)
    return t[t <= schedule.t_finite]


def close(value, wanted, ulps=8.0):
    return abs(value - wanted) <= ulps * EPS * max(abs(value), abs(wanted), 1e-300)


@pytest.mark.parametrize(
    ("schedule", "t", "alpha", "sigma"),
    [
        # 19.9/16 + 0.1/4 = 1.26875
        (VP(0.1, 20.0), 0.5, np.exp(-1.26875), np.sqrt(1.0 - np.exp(-2.5375))),
        (VE(0.01, 100.0), 0.5, 1.0, 1.0),
        (VE(0.01, 100.0), -0.25, 1.0, 0.0075),
        (EDM(), 3.0, 1.0, 3.0),
        (Flow(), 0.25, 0.75, 0.25),
        (Flow(3.0), 0.25, 0.5, 0.5),  # 3·0.25/(1 + 2·0.25)
        (TrigFlow(0.5), np.pi / 6, np.sqrt(0.75), 0.25),
        # the cosine of 5/8 of pi/2 over that of a half: its square is ½
        (Cosine(1.0), 1 / 3, 1 / np.sqrt(2.0), 1 / np.sqrt(2.0)),
        # alpha/sigma of a half, halved
        (Cosine(1.0).shifted(-2 * np.log(2.0)), 1 / 3, np.sqrt(0.2), np.sqrt(0.8)),
        (Flow().shifted(-2 * np.log(3.0)), 0.25, 0.5, 0.5),
        (EDM().shifted(2 * np.log(4.0)), 3.0, 1.0, 3.0),
        (VE(0.01, 100.0).shifted(2 * np.log(4.0)), 0.5, 1.0, 0.25),
        (TABLE.shifted(np.log(3.0)), 1.0, np.sqrt(0.5), np.sqrt(0.5)),
        (TABLE, 0.0, np.sqrt(0.75), 0.5),
        (TABLE, 1.0, 0.5, np.sqrt(0.75)),
        (TABLE, 0.5, np.sqrt(0.5), np.sqrt(0.5)),  # lambda from ln(3)/2 to -ln(3)/2
        (TABLE, -0.5, np.sqrt(12.0 / 13.0), np.sqrt(1.0 / 13.0)),  # sigma/alpha half of 1/sqrt(3)
    ],
)
def test_literal_levels(schedule, t, alpha, sigma):
    assert close(schedule.alpha(t), alpha)
    assert close(schedule.sigma(t), sigma)
    assert abs(schedule.half_log_snr(t) - np.log(alpha / sigma)) <= 8 * EPS


@every_schedule
def test_ends_are_exact(schedule):
    assert schedule.sigma(schedule.t_zero) == 0.0
    assert schedule.alpha(schedule.t_zero) == 1.0
    assert schedule.half_log_snr(schedule.t_zero) == np.inf
    assert schedule.time(np.inf) == schedule.t_zero
    if schedule.alpha(schedule.t_max) == 0.0:
        assert schedule.half_log_snr(schedule.t_max) == -np.inf
        assert schedule.time(-np.inf) == schedule.t_max
        assert schedule.t_finite < schedule.t_max
    else:
        assert schedule.t_finite == schedule.t_max
    assert schedule.sigma(schedule.t_min) > 0.0
    assert schedule.alpha(schedule.t_finite) > 0.0


@pytest.mark.parametrize("name", ["Flow", "Flow(3)", "TrigFlow", "TrigFlow(.5)", "zero_snr"])
def test_alpha_reaches_zero(name):
    assert ALL[name].alpha(ALL[name].t_max) == 0.0


@every_schedule
def test_half_log_snr_is_the_logarithm(schedule):
    t = np.union1d(inner(schedule), near_the_end(schedule))
    level = schedule.half_log_snr(t)
    assert (np.diff(level) < 0.0).all()
    # ln of a quotient of two rounded numbers: a few ulp of 1 from each, and of the result
    assert (
        np.abs(level - np.log(schedule.alpha(t) / schedule.sigma(t)))
        <= 8 * EPS * (1.0 + np.abs(level))
    ).all()


@every_schedule
def test_time_is_the_inverse(schedule):
    t = inner(schedule)
    level = schedule.half_log_snr(t)
    # an error of a few ulp in lambda moves t by that over |d lambda / d t|, and lambda itself
    # carries as much
    slope = np.abs(np.gradient(level, t))
    assert (
        np.abs(schedule.time(level) - t) <= 16 * EPS * ((1.0 + np.abs(level)) / slope + np.abs(t))
    ).all()


def test_levels_against_mpmath():
    mpmath.mp.dps = 40
    for t in (1e-3, 0.02, 0.3, 0.77, 0.9999):
        u = mpmath.mpf(t)
        decay = u * u / 4 * (mpmath.mpf(20.0) - mpmath.mpf(0.1)) + u / 2 * mpmath.mpf(0.1)
        sigma = mpmath.sqrt(-mpmath.expm1(-2 * decay))
        assert close(VP().sigma(t), float(sigma))
        assert abs(VP().half_log_snr(t) - float(-decay - mpmath.log(sigma))) <= 8 * EPS * 8
        shifted = 3 * u / (1 + 2 * u)
        assert close(Flow(3.0).sigma(t), float(shifted))
        assert close(Flow(3.0).alpha(t), float(1 - shifted))
        assert (
            abs(Flow(3.0).half_log_snr(t) - float(mpmath.log((1 - shifted) / shifted)))
            <= 8 * EPS * 10
        )
        assert (
            abs(TrigFlow(0.5).half_log_snr(t) - float(-mpmath.log(mpmath.tan(u) / 2)))
            <= 8 * EPS * 8
        )


def test_published_tables():
    stable_diffusion = DiscreteVP.scaled_linear()
    rho = stable_diffusion.sigma([0, 999]) / stable_diffusion.alpha([0, 999])
    assert np.round(rho, 4).tolist() == [0.0292, 14.6146]
    assert DiscreteVP.linear().alphas_cumprod[0] == 1.0 - 1e-4
    cosine = DiscreteVP.cosine().alphas_cumprod
    g = np.cos((np.array([0, 500]) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
    assert abs(cosine[499] - g[1] / g[0]) <= 2000 * EPS  # a product of 500 quotients telescopes
    assert abs(1.0 - cosine[999] / cosine[998] - 0.999) <= 8 * EPS


def test_zero_terminal_snr():
    table, zero = DiscreteVP.scaled_linear(), ALL["zero_snr"]
    assert abs(zero.alphas_cumprod[0] - table.alphas_cumprod[0]) <= 8 * EPS
    assert zero.alphas_cumprod[-1] == 0.0
    ratio = zero.alpha([998, 998.75]) / zero.sigma([998, 998.75])
    assert close(ratio[1], ratio[0] / 4)  # alpha/sigma is linear in the last interval
    assert zero.alpha(998.75) > 0.0


@every_schedule
def test_shapes(schedule):
    t = inner(schedule, 6).reshape(2, 3)
    for function in (schedule.alpha, schedule.sigma, schedule.half_log_snr, schedule.label):
        assert function(t).shape == (2, 3)
        assert isinstance(function(float(t[0, 1])), float)
        # NumPy's vector and scalar pow differ by an ulp
        assert close(function(float(t[0, 1])), function(t)[0, 1])
    assert schedule.time(schedule.half_log_snr(t)).shape == (2, 3)


def test_label_is_sigma_on_flow_and_t_elsewhere():
    assert Flow(3.0).label(0.25) == 0.5
    assert VP().label(0.25) == 0.25
    assert EDM().label(3.0) == 3.0


@every_schedule
def test_json_round_trip(schedule):
    text = json.dumps(schedule.to_json(), allow_nan=False)
    again = from_json(text)
    assert again == schedule
    assert type(again).from_json(schedule.to_json()) == schedule
    assert hash(again) == hash(schedule)
    assert schedule.to_json()["name"] in SCHEDULES


def test_unequal():
    assert Flow(3.0) != Flow(2.0)
    assert DiscreteVP.linear() != DiscreteVP.cosine()
    assert DiscreteVP.linear() != VP()


@every_schedule
@pytest.mark.parametrize("what", ["alpha", "sigma", "half_log_snr"])
def test_times_outside_are_refused(schedule, what):
    outside = [np.nan, np.inf, schedule.t_zero - 1e-3] + (
        [] if isinstance(schedule, EDM) else [schedule.t_max + 1e-3]
    )
    for t in outside:
        with pytest.raises(
            ValueError, match=rf"{type(schedule).__name__}\.{what}: t = .*is accepted"
        ):
            getattr(schedule, what)([schedule.t_max, t])


@every_schedule
def test_level_nan_is_refused(schedule):
    with pytest.raises(ValueError, match="half_log_snr = nan"):
        schedule.time([0.0, np.nan])


def test_a_level_above_the_table_is_refused():
    with pytest.raises(ValueError, match=r"DiscreteVP\.time: half_log_snr = -9"):
        TABLE.time(-9.0)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: VP(0.0, 20.0), "VP: beta_min = 0.0"),
        (lambda: VP(1.0, 0.5), "VP: beta_max = 0.5"),
        (lambda: VP(t_min=1.0), "VP: t_min = 1.0"),
        (lambda: VE(1.0, 0.5), "VE: sigma_max = 0.5"),
        (lambda: VE(-1.0), "VE: sigma_min = -1.0"),
        (lambda: EDM(sigma_data=0.0), "EDM: sigma_data = 0.0"),
        (lambda: EDM(sigma_max=np.inf), "EDM: sigma_max = inf"),
        (lambda: EDM(sigma_min="0.1"), "EDM: sigma_min = '0.1'"),
        (lambda: Flow(0.0), "Flow: shift = 0.0"),
        (lambda: Flow(-3.0), "Flow: shift = -3.0"),
        (lambda: Flow(np.nan), "Flow: shift = nan"),
        (lambda: Flow(True), "Flow: shift = True"),
        (lambda: TrigFlow(0.0), "TrigFlow: sigma_data = 0.0"),
        (lambda: DiscreteVP([0.5, 0.5]), r"alphas_cumprod\[1\] = 0.5 after \[0.5\]"),
        (lambda: DiscreteVP([0.2, 0.5]), r"alphas_cumprod\[1\] = 0.5 after \[0.2\]"),
        (lambda: DiscreteVP([1.0, 0.5]), r"alphas_cumprod\[0\] = 1 after \[\];"),
        (lambda: DiscreteVP([1.5, 0.5]), r"alphas_cumprod\[0\] = 1.5"),
        (lambda: DiscreteVP([0.5, 0.0, -0.1]), r"alphas_cumprod\[2\] = -0.1 after \[0.\]"),
        (lambda: DiscreteVP([0.5, 0.0, 0.0]), r"alphas_cumprod\[2\] = 0 after \[0.\]"),
        (lambda: DiscreteVP([0.5, np.nan]), r"alphas_cumprod\[1\] = nan"),
        (lambda: DiscreteVP([]), r"shape \[0\]"),
        (lambda: DiscreteVP([[0.5, 0.4]]), r"shape \[1, 2\]"),
        (lambda: DiscreteVP.linear(10**9), "steps = 1000000000"),
        (lambda: DiscreteVP.linear(1000.0), "steps = 1000.0"),
        (lambda: DiscreteVP.linear(1000, -0.1), "beta_start = -0.1"),
        (lambda: DiscreteVP.scaled_linear(1000, 0.1, 1.5), "beta_end = 1.5"),
        (lambda: DiscreteVP.cosine(beta_max=np.nan), "beta_max = nan"),
        (lambda: DiscreteVP("abc"), "alphas_cumprod = 'abc'; a list of numbers is accepted"),
        (lambda: Flow(10**400), "Flow: shift = 1000"),
    ],
)
def test_bad_parameters_are_refused(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ({"name": "os.system"}, "'os.system'}; a dict whose name is one of VP,"),
        ({"name": ["Flow"]}, "a dict whose name is one of"),
        (None, "None; a dict whose name"),
        (
            {"name": "Flow", "shfit": 3.0},
            "argument 'shfit'.*; the parameters that to_json writes are accepted",
        ),
        ({"name": "Flow", "kind": "linear"}, "unexpected keyword argument 'kind'"),
        (
            {"name": "Flow", "zero_terminal_snr": True},
            "unexpected keyword argument 'zero_terminal_snr'",
        ),
        (
            {"name": "DiscreteVP", "kind": "zero_terminal_snr"},
            "a kind, zero_terminal_snr or table that to_json writes is accepted",
        ),
        (
            {"name": "DiscreteVP", "kind": "linear", "zero_terminal_snr": 1},
            "a kind, zero_terminal_snr or table",
        ),
        (
            {"name": "DiscreteVP", "alphas_cumprod": [0.5, 0.2], "recipe": [1]},
            "a kind, zero_terminal_snr or table",
        ),
        ({"name": "DiscreteVP", "alphas_cumprod": {}}, "alphas_cumprod = {}"),
        ({"name": "VP", "beta_min": float("nan")}, "VP: beta_min = nan"),
        ('{"name": "VP", "beta_min": NaN}', "JSON holds NaN"),
        ('{"name": "Flow", "shift": 1, "shift": 2}', "repeats a key"),
        ("[" * 100_000, "nested more than 32 deep"),
        ("null", "the JSON is a NoneType"),
        ("x", "not sound UTF-8 JSON"),
        ("\ud800", "not sound UTF-8 JSON"),
    ],
)
def test_json_that_to_json_did_not_write_is_refused(data, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        from_json(data)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_repr_is_short():
    recipe = "{'kind': 'linear', 'steps': 9, 'beta_start': 0.0001, 'beta_end': 0.02}"
    assert repr(DiscreteVP.linear(9)) == f"DiscreteVP(recipe={recipe})"


def test_the_table_is_read_only():
    with pytest.raises(ValueError, match="read-only"):
        TABLE.alphas_cumprod[0] = 0.5
