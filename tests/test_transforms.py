"""Transforms of torch: Sampler(..., differentiable=True) is right under each, whatever goes by
address is refused by name.
"""

import copy
import threading

import pytest
import torch
from test_sampler import MODEL, SCHEDULE, net, plan_of, unit
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from fastsample import grids, metrics, schedules
from fastsample.interop import k_sample
from fastsample.kernels import cost_gather, cost_matrix, moments, transforms
from fastsample.kernels.reference import step as definition
from fastsample.model import Model
from fastsample.runtime import pool as inplace
from fastsample.runtime.run import Run
from fastsample.runtime.sampler import Sampler
from fastsample.solvers import SOLVERS
from fastsample.trajectories import record

pytestmark = pytest.mark.filterwarnings(
    "ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning", "ignore::UserWarning"
)
Z, W = (unit(3, 2, seed=k, dtype=torch.float64) for k in (0, 1))


def guided(x):
    return {
        "cond": {"shift": 0.3},
        "uncond": {"shift": -0.2},
        "guidance": 1.0 + x[:, 0] ** 2,
        "batched_guidance": False,
        "seed": 3,
    }


CASES = {
    "euler": lambda x: {},
    "dpmpp_2m": lambda x: {},
    "unipc": guided,
    "euler_ancestral": guided,
}


class Wrapped(torch.nn.Module):
    def __init__(self, f):
        super().__init__()
        self.forward = f


def dual(f, x, along):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(f(forward_ad.make_dual(x, along))).tangent


def fake(f, x):
    with torch._subclasses.FakeTensorMode() as mode:
        return f(mode.from_tensor(x))


def exported(f, x):
    return torch.export.export(Wrapped(f), (x,)).module()


TRACED = {  # a function of another input, made from f and x
    "torch.jit.trace": torch.jit.trace,
    "torch.export": exported,
    "make_fx": lambda f, x: make_fx(lambda y: f(y))(x),
    "make_fx symbolic": lambda f, x: make_fx(lambda y: f(y), tracing_mode="symbolic")(x),
    "make_fx pre": lambda f, x: make_fx(lambda y: f(y), pre_dispatch=True)(x),
    r"torch.func \(functionalize\)": lambda f, x: torch.func.functionalize(f),
    r"torch.func \(vmap\)": lambda f, x: lambda y: torch.func.vmap(f)(torch.stack([x, y]))[1],
}
SLOPES = {  # derivative of f at x along v
    r"torch.func \(jvp\)": lambda f, x, v: torch.func.jvp(f, (x,), (v,))[1],
    "forward-mode differentiation": dual,
    r"torch.func \(grad\)": lambda f, x, v: torch.einsum("abcd,cd->ab", torch.func.jacrev(f)(x), v),
}
UNDER = {
    **{name: lambda f, x, make=make: make(f, x)(x) for name, make in TRACED.items()},
    **{name: lambda f, x, slope=slope: slope(f, x, x) for name, slope in SLOPES.items()},
    "FakeTensorMode": fake,
}


@pytest.mark.parametrize("name", UNDER)
def test_every_transform_has_its_name(name):
    seen = []
    UNDER[name](lambda x: (seen.append(transforms.active(x)), x * x)[1], Z.clone())
    assert seen[0] == name.replace("\\", "").removesuffix(" symbolic").removesuffix(" pre")
    assert transforms.active(Z) is None


@pytest.mark.alone
def test_what_hides_nothing_is_no_transform():
    with FlopCounterMode(display=False), forward_ad.dual_level():
        assert transforms.active(Z, torch.nn.Parameter(Z)) is None
        assert Sampler(plan_of(), MODEL, state_dtype=torch.float64)(noise=Z).shape == Z.shape
    seen = []

    def elsewhere(x):
        thread = threading.Thread(target=lambda: seen.append(transforms.active(Z)))
        thread.start(), thread.join()
        return x

    for name in UNDER:
        UNDER[name](elsewhere, Z.clone())
    assert len(seen) >= len(UNDER) and not any(seen), "another thread's transform is none of ours"


@pytest.mark.parametrize("name", TRACED)
def test_traced_calls_give_what_eager_gives(name):
    """Traced at Z and run on W: bits of a module of the same operations in the same order."""
    for solver in (
        CASES
        if name == "torch.jit.trace"
        else ("unipc",)
        if "make_fx" in name
        else ("euler_ancestral",)
    ):
        sampler = Sampler(plan_of(solver, 2), MODEL, differentiable=True, state_dtype=torch.float64)
        traced = TRACED[name](lambda x, c=CASES[solver], s=sampler: s(noise=x, **c(x)), Z.clone())
        assert torch.equal(
            traced(W),
            Sampler(sampler.plan, MODEL, state_dtype=torch.float64)(noise=W, **CASES[solver](W)),
        )


def test_a_trace_keeps_its_seeds_for_its_own_batch():
    sampler = Sampler(plan_of("euler_ancestral", 2), MODEL, differentiable=True)
    seeds = torch.tensor([7, 8, 9])
    traced = torch.jit.trace(lambda x, s: sampler(noise=x, seed=s), (unit(3, 2), torch.arange(3)))
    assert torch.equal(
        traced(unit(3, 2, seed=5), seeds), sampler(noise=unit(3, 2, seed=5), seed=seeds)
    )
    many = torch.func.vmap(lambda s: sampler(shape=(3, 2), seed=s))(torch.stack([seeds, seeds + 3]))
    assert torch.equal(many[1], sampler(shape=(3, 2), seed=10))
    for made, given in (((3, 2), (1, 2)), ((1, 2), (3, 2)), ((2, 4), (4, 2))):
        traced = torch.jit.trace(lambda x: sampler(noise=x, seed=3), unit(*made))
        with pytest.raises(RuntimeError):
            traced(unit(*given))


@pytest.mark.parametrize("name", TRACED)
def test_a_trace_is_given_its_seed(name):
    """Without one a single draw would be kept in the traced module, for every later call."""
    sampler = Sampler(
        plan_of("euler_ancestral", 2), MODEL, differentiable=True, state_dtype=torch.float64
    )
    under = name.split(" symbolic")[0].split(" pre")[0]
    for call in (lambda x: sampler(noise=x), lambda x: sampler(shape=(3, 2)) + x):
        with pytest.raises(ValueError, match=f"no seed is given under {under}, .*pass seed="):
            TRACED[name](call, Z.clone())(W)


def central(f, x, v, h=2.0**-17):
    return (f(x + h * v) - f(x - h * v)) / (2 * h)


def near(got, want):
    # h^2 f'''/6 and rounding / h are both below 1e-9
    return (got - want).abs().max() <= 1e-8 * max(1.0, want.abs().max())


EVERY = {**dict.fromkeys(SOLVERS, guided), **CASES}


@pytest.mark.parametrize("solver", EVERY)
def test_derivatives_are_the_central_differences(solver):
    sampler = Sampler(plan_of(solver, 3), MODEL, differentiable=True, state_dtype=torch.float64)
    run = lambda x: sampler(noise=x, **EVERY[solver](x))
    loss = lambda x: run(x).square().sum()
    slope, curve = central(run, Z, W), central(torch.func.grad(loss), Z, W)
    assert all(near(s(run, Z, W), slope) for s in SLOPES.values())
    assert near((torch.func.vjp(run, Z)[1](W)[0] * Z).sum(), (central(run, Z, Z) * W).sum())
    assert near(torch.autograd.functional.jvp(run, Z, W)[1], slope)  # two backward passes
    assert near(torch.autograd.functional.hvp(loss, Z, W)[1], curve)
    assert near(torch.func.jvp(torch.func.grad(loss), (Z,), (W,))[1], curve)
    lanes = torch.func.vmap(torch.func.grad(loss))(torch.stack([Z, W]))
    assert near(lanes[1], torch.func.grad(loss)(W))
    x = Z.clone().requires_grad_()
    again = torch.utils.checkpoint.checkpoint(loss, x, use_reentrant=False)
    asked = Sampler(
        sampler.plan, MODEL, differentiable=True, checkpoint=True, state_dtype=torch.float64
    )
    leaner = asked(noise=x, **EVERY[solver](x)).square().sum()
    once, *others = (torch.autograd.grad(v, x)[0] for v in (loss(x), again, leaner))
    assert all(torch.equal(once, other) for other in others)


@pytest.mark.parametrize("solver", SOLVERS)
def test_second_derivatives_reach_noise_conditions_scale_and_the_plan(solver):
    plan = plan_of(solver, 2)
    sampler = Sampler(plan, MODEL, differentiable=True, state_dtype=torch.float64)
    hot = torch.zeros_like(inplace.table(sampler._plan_for(2, 1.0)[0], torch.float64, Z.device).f)
    hot[1:-1, 0] = 1
    table = inplace.table(sampler._plan_for(2, 1.0)[0], torch.float64, Z.device).f

    def run(z, label, scale, learned):
        return sampler(
            noise=z,
            cond={"label": label},
            uncond={"label": 0 * label},
            guidance=scale,
            seed=3,
            table=table + learned * hot,
        )

    given = [Z[:2], torch.ones(2), torch.tensor([1.0, 2.0]), torch.tensor(0.0)]
    given = [v.double().clone().requires_grad_() for v in given]
    assert torch.autograd.gradcheck(run, given, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(run, given)


def held():
    """A run, its x and its plan's other doors, made outside; each is tried under a transform."""
    run = Run(plan_of(), noise=Z, state_dtype=torch.float64)
    other = Run(plan_of("euler"), noise=Z, state_dtype=torch.float64, backend="reference")
    denoiser = SOLVERS["euler"](
        Model(None, schedules.EDM(), "x0"), grids.uniform(schedules.EDM(), 2)
    )
    return run, {
        "Run": lambda x: Run(plan_of(), noise=x, state_dtype=torch.float64).x,
        "Sampler ": lambda x: Sampler(plan_of(), MODEL, state_dtype=torch.float64)(noise=x),
        "Sampler": lambda x: Sampler(plan_of(), MODEL, "compile-loop", state_dtype=torch.float64)(
            noise=x
        ),
        "Run.step": lambda x: run.step(x * 1.0),
        "Run.step ": lambda x: other.step(x * 1.0),
        "Run.step  ": lambda x: run.step([x * 1.0]),
        "seed of the noise": lambda x: metrics.run(plan_of("euler_ancestral", 2), MODEL, x),
        "seed of the noise ": lambda x: record(plan_of("euler_ancestral", 2), MODEL, x).end,
        "Run.mean": lambda x: run.mean(x * 1.0),
        "Run.x": lambda x: setattr(run, "x", x * 1.0),
        "k_sample": lambda x: k_sample(denoiser, lambda a, s: a * 0.5, x * 80, disable=True),
    }


FEW = ("torch.jit.trace", "make_fx pre", *SLOPES)


@pytest.mark.parametrize(
    ("door", "name"),
    [(d, n) for d in held()[1] for n in UNDER if d in ("Sampler ", "Run.step") or n in FEW],
)
def test_what_goes_by_address_is_refused(door, name):
    run, doors = held()
    before = run.x.clone()
    where, called = door.strip(), name.removesuffix(" symbolic").removesuffix(" pre")
    sentence = rf"{where}: called under {called}, which cannot see .*"
    with pytest.raises(RuntimeError, match=sentence + r"differentiable=True\) is accepted"):
        UNDER[name](doors[door], Z.clone())
    assert run.row == 1 and torch.equal(run.x, before)
    run.step(net(run.model_input, run.t))


def test_what_holds_no_memory_and_what_hides_in_an_argument_is_refused():
    run = Run(plan_of(), noise=Z, state_dtype=torch.float64)
    nowhere = torch._subclasses.FakeTensorMode().from_tensor(Z)
    for call in (lambda: run.step(nowhere), lambda: Run(plan_of(), noise=nowhere)):
        with pytest.raises(RuntimeError, match="Run.*: called under FakeTensor, which"):
            call()
    with pytest.raises(RuntimeError, match="Run: a copy: called under torch.jit.trace"):
        torch.jit.trace(lambda x: copy.deepcopy(run).x + x, Z)
    plan = plan_of("euler_ancestral", 2)
    with forward_ad.dual_level():
        moving = forward_ad.make_dual(torch.ones(3).double(), torch.ones(3).double())
        source = lambda row, k: Z * moving[:, None]
        for where, given in (
            ("Sampler", {"noise_scale": moving}),
            ("Run: noise_source", {"noise_source": source}),
            ("Sampler", {"cond": {"label": moving}}),
        ):
            with pytest.raises(
                RuntimeError, match=f"{where}: called under forward-mode differentiation"
            ):
                Sampler(plan, MODEL, state_dtype=torch.float64)(noise=Z, **given)


def test_a_scheduler_is_refused_under_a_trace_and_under_tangents():
    scheduler = pytest.importorskip("fastsample.interop.diffusers").FsScheduler()
    scheduler.set_timesteps(3)
    t = scheduler.timesteps[0]
    doors = {
        "step": lambda x: scheduler.step(x * 0.1, t, x).prev_sample,
        "scale_model_input": lambda x: scheduler.scale_model_input(x, t),
        "": lambda x: scheduler.add_noise(x, x, t[None]),
    }
    for door, call in doors.items():
        with pytest.raises(
            RuntimeError, match=f"FsScheduler.?{door}: called under torch.jit.trace, which"
        ):
            torch.jit.trace(call, Z)
    with pytest.raises(
        RuntimeError, match="FsScheduler.step: called under forward-mode differentiation, which"
    ):
        dual(doors["step"], Z, W)
    assert doors["step"](Z).isfinite().all(), "nothing is left behind"


def test_a_table_made_under_a_transform_does_not_outlive_it():
    for under in (
        UNDER["FakeTensorMode"],
        UNDER[r"torch.func \(vmap\)"],
        UNDER["make_fx symbolic"],
    ):
        plan = plan_of()
        under(
            lambda x, plan=plan: Sampler(
                plan, MODEL, differentiable=True, state_dtype=torch.float64
            )(noise=x),
            Z.clone(),
        )
        assert type(inplace.table(plan, torch.float64, Z.device).f) is torch.Tensor
        assert Sampler(plan, MODEL, state_dtype=torch.float64)(noise=Z).isfinite().all()


def ops():
    """f(x) of each kernel, through its function and as the op; the step is its definition alone."""
    own = inplace.table(plan_of(), torch.float64, Z.device)
    o, at = torch.ops.fastsample, own.layout
    c = torch.linspace(0.5, 1.5, 12, dtype=torch.float64).view(1, 3, 4)
    row = lambda x: definition.row(
        own.shapes[2], at, own.f[2], x, [x * 0.5] * at.S, [x * x], [None] * at.L
    )
    band, star = torch.tensor([[0, 4]], dtype=torch.int32).expand(3, 2), torch.tensor([0, 2, 1, 0])
    wide = lambda x: (x.sum(0) * torch.ones_like(c[0].T[:, :1]))[None]
    return {
        "step": (lambda x: row(x)[0],),
        "moments": (
            lambda x: moments([x, x * x], [x])[0],
            lambda x: o.moments([x, x * x], [x], None)[0],
        ),
        "cost_matrix": (
            lambda x: cost_matrix([x[None]], c, wide(x)),
            lambda x: o.cost_matrix([x[None]], c, wide(x), band, 2.0, None),
        ),
        "cost_gather": (
            lambda x: cost_gather([x[None] ** 2], c, star),
            lambda x: o.cost_gather([x[None] ** 2], c, star, None),
        ),
    }


@pytest.mark.parametrize("name", ops())
def test_derivatives_of_the_ops(name):
    f, *op = ops()[name]
    loss = lambda x: f(x).square().sum()
    slope, curve = central(f, Z, W), central(torch.func.grad(loss), Z, W)
    assert slope.abs().sum() > 0 and near(dual(f, Z, W), slope)
    for g in (f, *op):
        assert near(torch.func.jvp(g, (Z,), (W,))[1], slope)
        assert near(
            torch.autograd.functional.hvp(lambda x, g=g: g(x).square().sum(), Z, W)[1], curve
        )
        assert torch.autograd.gradgradcheck(g, Z.clone().requires_grad_())
        assert near(torch.func.vmap(g)(torch.stack([Z, W]))[1], f(W))
        assert torch.equal(torch.jit.trace(g, Z.clone())(W), f(W))
    sentence = f"fastsample::{name}: an input has a forward-mode tangent, .*; "
    for g in op:
        with pytest.raises(RuntimeError, match=f"{sentence}fastsample.kernels.{name} is"):
            dual(g, Z, W)


def test_clip_away_from_its_kink():
    plan = SOLVERS["euler"](MODEL, grids.uniform(SCHEDULE, 3), clip=0.4)
    sampler = lambda: Sampler(plan, MODEL, differentiable=True, state_dtype=torch.float64)
    run = lambda x: sampler()(noise=x, trajectory=True)[1]
    slope = central(run, Z, W)
    assert near(dual(run, Z, W), slope)
    assert not near(
        slope,
        central(
            lambda x: Sampler(plan_of("euler", 3), MODEL, state_dtype=torch.float64)(noise=x), Z, W
        ),
    )
