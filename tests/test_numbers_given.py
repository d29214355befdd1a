"""Numbers of NumPy and torch, of any dtype, are taken wherever a number or a list of them is; what
is no number is one sentence.
"""

from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch

import fastsample as fs
from fastsample import grids, guidance, solvers
from fastsample.plan import PlanError
from fastsample.plan.given import integer, numbers, plain, real, reals
from fastsample.schedules import EDM, VE, VP, DiscreteVP, Flow, TrigFlow, from_json

# of a number that every dtype has: 3
SCALARS = {
    "int": 3,
    "float": 3.0,
    "fraction": Fraction(3),
    "float32": np.float32(3),
    "float16": np.float16(3),
    "int64": np.int64(3),
    "array": np.array(3.0),
    "tensor": torch.tensor(3.0),
    "float64 tensor": torch.tensor(3.0, dtype=torch.float64),
    "bfloat16 tensor": torch.tensor(3.0, dtype=torch.bfloat16),
    "half tensor": torch.tensor(3.0, dtype=torch.half),
    "int tensor": torch.tensor(3),
    "Parameter": torch.nn.Parameter(torch.tensor(3.0)),
    "in a graph": torch.nn.Parameter(torch.tensor(1.5)) * 2,
}
WHOLE = {name: v for name, v in SCALARS.items() if integer(v) is not None}
NONE = {
    "bool": True,
    "numpy bool": np.True_,
    "tensor bool": torch.tensor(True),
    "text": "3",
    "nan": float("nan"),
    "nan tensor": torch.tensor(float("nan")),
    "complex": 3 + 0j,
    "complex tensor": torch.tensor(3 + 0j),
    "meta": torch.tensor(3.0, device="meta"),
    "list": [3.0],
    "one of a list": torch.tensor([3.0]),
    "Decimal": Decimal(3),
    "none": None,
}
each = pytest.mark.parametrize("value", SCALARS.values(), ids=SCALARS.keys())
none = pytest.mark.parametrize("value", NONE.values(), ids=NONE.keys())


@each
def test_a_number(value):
    assert real(value) == 3.0 and type(real(value)) is float
    assert plain(value) == 3 and not hasattr(plain(value), "dtype")


@none
def test_no_number(value):
    assert real(value) is None


def test_whole_numbers():
    assert set(WHOLE) == {"int", "int64", "int tensor"}
    assert integer(np.array(3)) == 3 and integer(torch.tensor(2**40)) == 2**40


SCHEDULE = {
    "Flow": lambda v: Flow(shift=v),
    "VE": lambda v: VE(sigma_max=v),
    "VP": lambda v: VP(beta_max=v),
    "EDM": lambda v: EDM(sigma_max=v),
    "TrigFlow": lambda v: TrigFlow(sigma_data=v),
}


@each
@pytest.mark.parametrize("make", SCHEDULE.values(), ids=SCHEDULE.keys())
def test_parameters_of_a_schedule(make, value):
    schedule = make(value)
    assert schedule == make(3.0) and hash(schedule) == hash(make(3.0))
    assert (
        from_json(
            fs.solvers.euler(schedule, grids.uniform(schedule, 2), prediction="x0").note["schedule"]
        )
        == schedule
    )
    assert "tensor" not in repr(schedule) and "np." not in repr(schedule)


@none
def test_no_parameter_of_a_schedule(value):
    for make in SCHEDULE.values():
        with pytest.raises(ValueError, match="a number between .*, ends excluded, is accepted"):
            make(value)


PLACES = {
    "time": lambda v: fs.Model(None, Flow(), "flow", time=v).to_json(),
    "sigma_data": lambda v: fs.Model(None, EDM(), "edm", sigma_data=v).to_json(),
    "rho": lambda v: grids.karras(EDM(), 4, rho=v).tolist(),
    "offset": lambda v: grids.leading(DiscreteVP.linear(), 4, offset=v).tolist(),
    "s_churn": lambda v: solvers.heun(EDM(), [9.0, 4, 0], prediction="x0", s_churn=v),
    "s_tmax": lambda v: solvers.heun(EDM(), [9.0, 4, 0], prediction="x0", s_churn=1, s_tmax=v),
    "clip": lambda v: solvers.ddim(EDM(), [9.0, 4, 0], prediction="x0", clip=v),
    "level": lambda v: solvers.ddim(EDM(), [9.0, 4, 0], prediction="x0", level=v),
    "order": lambda v: solvers.unipc(EDM(), [9.0, 4, 1, 0], prediction="x0", order=v),
    "alpha": lambda v: float(EDM().half_log_snr(v)),
}


@each
@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES.keys())
def test_every_place_for_a_number(place, value):
    found, right = place(value), place(3)
    assert found == right
    if isinstance(found, fs.Plan):
        assert found.to_bytes() == right.to_bytes()


# what means something else there: None is the default, alpha takes lists of numbers
MEANT = {name: {"none"} for name in ("time", "sigma_data", "level", "s_tmax")}
MEANT["alpha"] = {"list", "one of a list", "bool", "numpy bool", "tensor bool"}


@pytest.mark.parametrize(
    ("place", "kind"),
    [(place, kind) for place in PLACES for kind in NONE if kind not in MEANT.get(place, ())],
)
def test_what_is_no_number_is_a_sentence(place, kind):
    with pytest.raises(ValueError, match="accepted$") as caught:
        PLACES[place](NONE[kind])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", WHOLE.values(), ids=WHOLE.keys())
def test_numbers_of_steps(value):
    for make in (grids.uniform, grids.karras, grids.fine, grids.exponential):
        assert np.array_equal(make(EDM(), value), make(EDM(), 3))
    assert np.array_equal(
        grids.trailing(DiscreteVP.linear(value * 4), value),
        grids.trailing(DiscreteVP.linear(12), 3),
    )
    plan = solvers.euler(EDM(), grids.karras(EDM(), 4), prediction="x0")
    assert plan.remake(start=value) == plan.remake(start=3)
    assert guidance.guided(plan, value) == guidance.guided(plan, 3)


LISTS = {
    "tuple": lambda v: tuple(v),
    "array": np.array,
    "float32": np.float32,
    "tensor": torch.tensor,
    "bfloat16": lambda v: torch.tensor(v, dtype=torch.bfloat16),
    "half": lambda v: torch.tensor(v, dtype=torch.half),
    "Parameter": lambda v: torch.nn.Parameter(torch.tensor(v)),
    "of tensors": lambda v: [torch.tensor(x, dtype=torch.bfloat16) for x in v],
    "of Parameters": lambda v: [torch.nn.Parameter(torch.tensor(x)) for x in v],
    "of scalars": lambda v: [np.float16(x) for x in v],
    "of fractions": lambda v: [Fraction(x) for x in v],
    "strided": lambda v: torch.tensor(v).repeat_interleave(2)[::2],
}


@pytest.mark.parametrize("kind", LISTS.values(), ids=LISTS.keys())
def test_lists_of_numbers(kind):
    levels = [4.0, 2.0, 0.5, 0.0]  # every dtype has them
    assert np.array_equal(reals(kind(levels)), levels) and reals(kind(levels)).dtype == np.float64
    for make in (grids.from_sigmas, grids.from_timesteps, grids.check):
        assert np.array_equal(make(EDM(), kind(levels)), levels)
    wanted = solvers.dpmpp_2m(EDM(), levels, prediction="x0")
    assert solvers.dpmpp_2m(EDM(), kind(levels), prediction="x0").to_bytes() == wanted.to_bytes()
    assert np.array_equal(EDM().sigma(kind(levels)), levels)
    assert np.array_equal(fs.Model(None, EDM(), "x0").times(kind(levels)), levels)
    assert np.array_equal(EDM().time(kind(levels)), np.exp(-np.array(levels)))
    table = [0.75, 0.5, 0.25]
    assert DiscreteVP(kind(table)) == DiscreteVP(table)


WRONG = {
    "text": "abc",
    "texts": ["1", "0"],
    "ragged": [[1.0], [1.0, 0.0]],
    "none": None,
    "mapping": {"a": 1.0},
    "complex": torch.tensor([1j, 0]),
    "meta": torch.ones(3, device="meta"),
    "objects": [object(), object()],
}


@pytest.mark.parametrize("value", WRONG.values(), ids=WRONG.keys())
def test_lists_of_none(value):
    assert reals(value) is None
    for make in (grids.from_sigmas, grids.from_timesteps, grids.check):
        with pytest.raises(ValueError, match=r"grids\..*; a list of numbers is accepted"):
            make(EDM(), value)
    with pytest.raises(ValueError, match="x = .*; a number, or a list of numbers, is accepted"):
        numbers("x", value)
    with pytest.raises(ValueError, match="DiscreteVP: alphas_cumprod = .*; a list of numbers is"):
        DiscreteVP(value)


def test_numbers_of_a_plan():
    plan = solvers.euler(EDM(), [4.0, 2.0, 0.0], prediction="x0")
    M = plan.M.copy()
    M[1] *= 2.0
    given = torch.nn.Parameter(torch.tensor(M))
    for form in (given, given.bfloat16().double(), M.tolist(), torch.tensor(M).half()):
        right = np.asarray(torch.as_tensor(form).detach().double())
        assert np.array_equal(plan.with_numbers(M=form).M, right)
    with pytest.raises(PlanError, match="M is not a regular array of numbers"):
        plan.with_numbers(M=torch.tensor(plan.M) * 1j)


@pytest.mark.parametrize(
    "kind", [float, np.float32, torch.tensor, lambda v: torch.tensor(v).half()]
)
def test_numbers_of_a_run(kind):
    plan = guidance.guided(solvers.ddim(EDM(), [4.0, 2.0, 0.0], prediction="x0", eta=0.5))
    z = torch.randn(2, 8)
    words = {"cond": {}, "uncond": {}, "seed": 1}
    sampler = fs.Sampler(plan, lambda x, t: 0.5 * x)
    right = sampler(noise=z, guidance=2.0, noise_scale=0.5, **words)
    assert torch.equal(sampler(noise=z, guidance=kind(2.0), noise_scale=kind(0.5), **words), right)
    for copies in (0, 1.0, "1", None):
        with pytest.raises(ValueError, match="Run: copies is .*; a whole number of at least 1 is"):
            fs.Run(plan, noise=z, guidance=2.0, copies=copies)
    assert fs.Run(plan, noise=z, guidance=2.0, copies=torch.tensor(2)).model_input.shape == (4, 8)
    for seed in (1, np.int32(1), torch.tensor(1), np.array([1, 2])):
        again = sampler(noise=z, guidance=2.0, noise_scale=0.5, **words | {"seed": seed})
        assert torch.equal(again, right)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of NumPy, within diffusers
@pytest.mark.parametrize("source", ["FlowMatchEulerDiscreteScheduler", "EulerDiscreteScheduler"])
def test_numbers_of_a_scheduler(source):
    def points(*steps, compat=None, **words):
        scheduler = fs.FsScheduler(source=source, compat=compat)
        scheduler.set_timesteps(*steps, **words)
        return scheduler.sigmas.tolist(), scheduler.timesteps.tolist()

    levels = [1.0, 0.75, 0.5]
    for compat in (None, "diffusers"):
        for kind in LISTS.values():
            found = points(sigmas=kind(levels), compat=compat)
            assert found == points(sigmas=levels, compat=compat)
        for value in WHOLE.values():
            assert points(value, compat=compat) == points(3, compat=compat)
    for value in (3.0, True, "3", torch.tensor(3.0)):
        with pytest.raises(ValueError, match="steps; a whole number from 1 up is accepted"):
            points(value)
    assert points(timesteps=[999.0001, 500, -1e-7])[1][-1] == 0.0
    with pytest.raises(ValueError, match="sigmas = .*; a number, or a list of numbers, is accept"):
        points(sigmas=["1", "0.5"])
    with pytest.raises(ValueError, match="numbers .* down to 0 are accepted"):
        points(sigmas=[1.0, 0.5, -1e-4])


@each
def test_numbers_of_k_sample(value):
    plan = solvers.euler_ancestral(EDM(), [80.0, 4.0, 1.0, 0.0], prediction="x0")
    x = 80 * torch.randn(2, 8, generator=torch.Generator().manual_seed(0))

    def ran(**words):
        torch.manual_seed(0)
        return fs.interop.k_sample(plan, lambda x, sigma: 0.5 * x, x, disable=True, **words)

    assert torch.equal(ran(eta=value), ran(eta=3.0)) and torch.equal(
        ran(s_noise=value), ran(s_noise=3.0)
    )


@pytest.mark.parametrize("kind", [kind for kind in NONE if kind != "none"])
def test_no_numbers_of_k_sample(kind):
    plan = solvers.euler_ancestral(EDM(), [80.0, 4.0, 1.0, 0.0], prediction="x0")
    for name in ("eta", "s_noise"):
        with pytest.raises(ValueError, match=f"^k_sample: {name} = .*; a number from 0 up is"):
            fs.interop.k_sample(
                plan, lambda x, s: 0.5 * x, 80 * torch.randn(2, 8), **{name: NONE[kind]}
            )
