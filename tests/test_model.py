"""Model: the maps between predictions, what a network is told, refusals."""

import itertools

import mpmath
import numpy as np
import pytest
import torch

from fastsample.model import PREDICTIONS, STORED, Model, from_x0, to_eps, to_kind, to_x0
from fastsample.schedules import EDM, VP, DiscreteVP, Flow, TrigFlow

EPS = np.finfo(np.float64).eps
POINTS = [
    (1.0, 0.002),
    (1.0, 80.0),
    (0.6, 0.8),
    (0.9999, 0.0141),
    (0.3, 0.7),
    (1e-3, 0.999),
    (0.0, 1.0),
    (0.07, 3.0),
]
SPREAD = 0.5


def outputs(alpha, sigma, x0, eps):
    """Every network's exact output for a point x = alpha x0 + sigma eps, in mpmath; edm and
    trigflow from their own definitions.
    """
    x = alpha * x0 + sigma * eps
    spread = mpmath.mpf(SPREAD)
    y, rho = (x / alpha, sigma / alpha) if alpha else (mpmath.inf, mpmath.inf)
    norm = mpmath.sqrt(alpha**2 + (sigma / spread) ** 2)
    skip, out = (
        (spread**2 / (rho**2 + spread**2), rho * spread / mpmath.sqrt(rho**2 + spread**2))
        if alpha
        else (mpmath.mpf(0), spread)
    )
    edm = (x0 - skip * y) / out if alpha else x0 / spread
    cos, sin = alpha / norm, sigma / spread / norm
    trigflow = (cos * x / norm - x0) / (sin * spread)
    return {
        "x0": x0,
        "eps": eps,
        "v": alpha * eps - sigma * x0,
        "flow": eps - x0,
        "edm": edm,
        "trigflow": trigflow,
    }


@pytest.mark.parametrize(("alpha", "sigma"), POINTS)
@pytest.mark.parametrize(("kind", "prediction"), list(itertools.product(STORED, PREDICTIONS)))
def test_every_kind_from_every_prediction(kind, prediction, alpha, sigma):
    mpmath.mp.dps = 50
    x0, eps, a, s = mpmath.mpf("1.3"), mpmath.mpf("-0.7"), mpmath.mpf(alpha), mpmath.mpf(sigma)
    if alpha == 0.0 and prediction == "eps" and kind in ("x0", "flow"):
        with pytest.raises(ValueError, match="prediction 'eps' at alpha = 0"):
            to_kind(kind, prediction, alpha, sigma, SPREAD)
        return
    p, q = to_kind(kind, prediction, alpha, sigma, SPREAD)
    values = (a * x0 + s * eps, outputs(a, s, x0, eps)[prediction])
    terms = [mpmath.mpf(float(c)) * value for c, value in zip((p, q), values, strict=True)]
    wanted = {"x0": x0, "eps": eps, "d": eps, "flow": eps - x0}[kind]
    # p and q each carry a few roundings of their own value (flow: of the two parts they are the
    # difference of)
    bound = 16 * EPS * (sum(abs(t) for t in terms) + abs(wanted))
    if kind == "flow":
        parts = [part(prediction, alpha, sigma, SPREAD) for part in (to_x0, to_eps)]
        bound += (
            16
            * EPS
            * sum(
                abs(float(c) * value)
                for part in parts
                for c, value in zip(part, values, strict=True)
            )
        )
    assert abs(sum(terms) - wanted) <= bound


@pytest.mark.parametrize(
    ("prediction", "p", "q"),
    [
        ("x0", 0.0, 1.0),
        ("eps", 1 / 0.6, -0.8 / 0.6),
        ("v", 0.6, -0.8),
        ("flow", 1 / 1.4, -0.8 / 1.4),
        ("edm", 0.15 / 0.73, 0.4 / 0.73**0.5),
        ("trigflow", 0.6 / 2.92, -0.8 / 2.92**0.5),
    ],
)
def test_literal(prediction, p, q):
    """alpha .6, sigma .8, sigma_data .5: edm n² = .64 + .09, trigflow n² = .36 + 2.56."""
    found = to_x0(prediction, 0.6, 0.8, 0.5)
    assert np.abs(np.subtract(found, (p, q))).max() <= 8 * EPS


def test_the_same_kind_is_untouched():
    for prediction, kind in (("x0", "x0"), ("eps", "eps"), ("eps", "d"), ("flow", "flow")):
        p, q = to_kind(kind, prediction, np.array([0.3, 1.0]), np.array([0.7, 0.002]))
        assert (p == 0.0).all()
        assert np.abs(q - 1.0).max() <= 2 * EPS


def test_small_sigma_keeps_its_digits():
    """eps from an edm network at sigma = 1e-6: sigma/(sigma² + sd²), not (1 - c_skip)/sigma."""
    p, _ = to_kind("d", "edm", 1.0, 1e-6, 0.5)
    assert abs(p - 1e-6 / (1e-12 + 0.25)) <= 4 * EPS * p


def test_from_x0():
    a, b = from_x0("flow", 0.6, 0.8)
    assert np.abs([a - 1.25, b + 1.75]).max() <= 4 * EPS
    assert from_x0("x0", 0.6, 0.0) == (0.0, 1.0)
    for kind in ("eps", "d", "flow"):
        with pytest.raises(ValueError, match="at sigma = 0"):
            from_x0(kind, 1.0, 0.0)


@pytest.mark.parametrize(
    "call",
    [
        lambda: to_x0("noise", 1.0, 1.0),
        lambda: to_eps("noise", 1.0, 1.0),
        lambda: to_kind("noise", "x0", 1.0, 1.0),
        lambda: Model(None, VP(), "noise"),
    ],
)
def test_an_unknown_prediction(call):
    with pytest.raises(ValueError, match="'noise'; one of x0, eps"):
        call()


T = np.array([0.25, 0.5])


@pytest.mark.parametrize(
    ("model", "times"),
    [
        (Model(None, VP()), T),
        (Model(None, VP(), time=999), 999 * T),
        (Model(None, Flow(3.0), "flow"), T),
        (Model(None, Flow(3.0), "flow", time=1000), [500.0, 750.0]),
        (Model(None, EDM(), "edm"), np.log(T) / 4),
        (Model(None, EDM(), "edm", time=1), T),
        (Model(None, Flow(), "edm"), np.log([1 / 3, 1.0]) / 4),
        (Model(None, EDM(), "eps", time="log_sigma"), np.log(T) / 4),
        (Model(None, TrigFlow(0.5), "trigflow"), T),
        (Model(None, Flow(), "trigflow", sigma_data=1.0), np.arctan([1 / 3, 1.0])),
        (Model(None, VP(), time=lambda t: 1.0 - t), 1.0 - T),
    ],
)
def test_times(model, times):
    assert np.abs(model.times(T) - times).max() <= 8 * EPS * max(1.0, np.abs(times).max())


@pytest.mark.parametrize(
    ("model", "scales"),
    [
        (Model(None, VP()), [1.0, 1.0]),
        (Model(None, EDM(), "edm"), 1 / np.sqrt(T**2 + 0.25)),
        (Model(None, EDM(), "eps", input_scale="vp"), 1 / np.sqrt(1 + T**2)),
        (Model(None, Flow(), "edm", sigma_data=1.0), 1 / np.sqrt(T**2 + (1 - T) ** 2)),
        (Model(None, TrigFlow(0.5), "trigflow"), [2.0, 2.0]),
        (Model(None, VP(), input_scale=lambda t: 3 * t), 3 * T),
    ],
)
def test_scales(model, scales):
    assert np.abs(model.scales(T) - scales).max() <= 8 * EPS * max(scales)


def test_sigma_data_comes_from_the_schedule():
    assert Model(None, EDM(sigma_data=0.3), "edm").sigma_data == 0.3
    assert Model(None, VP(), "edm").sigma_data == 0.5
    assert Model(None, EDM(), "edm", sigma_data=2).sigma_data == 2.0


class _Time:
    """A stand-in for a tensor: remembers what was asked of it."""

    def __init__(self, log):
        self.log = log

    def round(self):
        self.log.append("round")
        return self

    def to(self, dtype):
        self.log.append(dtype.name)
        return self


class _Dtype:
    def __init__(self, name, is_floating_point):
        self.name, self.is_floating_point = name, is_floating_point


@pytest.mark.parametrize(
    ("dtype", "log"),
    [(None, []), (_Dtype("half", True), ["half"]), (_Dtype("long", False), ["round", "long"])],
)
def test_calling_casts_the_time(dtype, log):
    seen = []
    model = Model(lambda x, t, **cond: (x, cond), VP(), time_dtype=dtype)
    assert model("x", _Time(seen), label=3) == ("x", {"label": 3})
    assert seen == log


def test_calling_with_numpy_rounds_to_whole_times():
    model = Model(lambda x, t: t, DiscreteVP.linear(), time_dtype=np.int64)
    assert model(None, np.array([998.9999, 0.2])).tolist() == [999, 0]


def test_identity():
    assert Model(lambda x, t: x, VP()).identity == "unknown"
    assert Model(lambda x, t: x, VP(), model_id="mine").identity == "mine"

    def identity(first, width=3, kind=torch.float32):
        network = torch.nn.Linear(2, width)
        with torch.no_grad():
            network.weight[:], network.bias[:] = torch.arange(2.0), first
        return Model(network.to(kind), VP()).identity

    one, same, other = map(identity, (0.5, 0.5, 0.25))
    assert one == same != other
    assert one.startswith("sha256:")
    # first numbers and dtypes, names and shapes, the dtypes
    parts = [name.split("/") for name in (one, other, identity(0.5, kind=torch.bfloat16))]
    assert len({first for first, _, _ in parts}) == 3 and len({form for _, form, _ in parts}) == 1
    assert [kinds for _, _, kinds in parts] == ["float32", "float32", "bfloat16"]
    assert identity(0.5, width=4).split("/")[1] != parts[0][1]


def test_repr_names_the_network_and_does_not_print_it():
    class Network:
        def __call__(self, x, t):
            return x

        def __repr__(self):
            return "layer\n" * 90

    assert repr(Model(Network(), Flow(3.0), "flow", time=1000)) == (
        "Model(Network, Flow(shift=3.0, t_min=0.001), 'flow', time=1000, sigma_data=0.5)"
    )
    assert repr(Model(None, VP())).startswith("Model(None, VP(")


def test_to_json():
    words = Model(
        None, EDM(), "edm", time=np.float64(2), input_scale=lambda t: t, model_id="m"
    ).to_json()
    assert words == {
        "prediction": "edm",
        "time": 2.0,
        "input_scale": "callable",
        "sigma_data": 0.5,
        "model_id": "m",
    }


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: Model(3, VP()), "fn is a int"),
        (lambda: Model(None, "vp"), "schedule is a str"),
        (lambda: Model(None, VP), r"schedule is the class VP; VP\(...\) is accepted"),
        (lambda: Model(None, VP(), T), "prediction = array"),
        (lambda: Model(None, VP(), time=T), "time = array"),
        (lambda: Model(None, VP(), input_scale=T), "input_scale = array"),
        (
            lambda: Model(None, VP(), time_dtype="zz"),
            "time_dtype = 'zz'; None, or a torch or NumPy dtype of numbers",
        ),
        (lambda: Model(None, VP(), time_dtype=str), "time_dtype = <class 'str'>"),
        (lambda: Model(None, VP(), time="sigma"), "time = 'sigma'"),
        (lambda: Model(None, VP(), time=np.nan), "time = nan"),
        (lambda: Model(None, VP(), time=True), "time = True"),
        (lambda: Model(None, VP(), input_scale=2.0), "input_scale = 2.0"),
        (lambda: Model(None, VP(), time=10**400), "time = 1000"),
        (lambda: Model(None, VP(), sigma_data=0.0), "sigma_data = 0.0"),
        (lambda: Model(None, VP(), sigma_data=10**400), "sigma_data = 1000"),
        (lambda: Model(None, VP(), sigma_data=np.float32(np.inf)), "sigma_data = .*inf"),
        (lambda: Model(None, VP())(None, None), "fn is None"),
        (
            lambda: Model(None, Flow(), "edm").times(np.array([1.0])),
            "Model.times: time gives inf at t = 1",
        ),
        (
            lambda: Model(None, VP(), time=lambda t: t[:1]).times(T),
            r"time returned shape \[1\] for \[2\] times",
        ),
        (
            lambda: Model(None, VP(), input_scale=lambda t: t / 0).scales(T),
            "Model.scales: input_scale gives inf",
        ),
    ],
)
def test_bad_words_are_refused(call, sentence):
    with pytest.raises(ValueError, match=sentence), np.errstate(divide="ignore"):
        call()
