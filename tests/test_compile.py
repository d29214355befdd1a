"""Compiled modes: the same bits as eager, one graph for every plan of a program. Inductor compiles
once here; other cases are traced only.
"""

import traceback
from dataclasses import replace

import pytest
import torch
from cases import same
from torch._dynamo.utils import counters

import fastsample as fs
from fastsample import grids, schedules
from fastsample.guidance import guided
from fastsample.kernels import native
from fastsample.model import Model
from fastsample.runtime import step_op
from fastsample.runtime.sampler import Sampler
from fastsample.solvers import SOLVERS

SCHEDULE = schedules.Flow(shift=3.0)


def net(x, t, shift=0.0, label=None):
    label = 0.0 if label is None else label.view(-1, 1, 1) * 0.1
    return x * 0.3 + x * x * 0.05 * (t.view(-1, 1, 1) * 0.001 + 0.5) + shift + label


MODEL = Model(net, SCHEDULE, prediction="flow", time=1000)


def plan_of(name, n=4, **options):
    return SOLVERS[name](MODEL, grids.uniform(SCHEDULE, n), **options)


def unit(batch=2, seed=0):
    return torch.randn(batch, 3, 7, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def one_process():
    """Never torch._dynamo.reset(): a server has none. Every test compiles beside what the others
    left, at a limit soon reached.
    """
    counters.clear()
    with torch._dynamo.config.patch(recompile_limit=2):
        yield


@pytest.fixture
def traced(monkeypatch):
    """torch.compile without a code generator: what Dynamo captures, run as captured."""
    real = torch.compile
    monkeypatch.setattr(
        torch,
        "compile",
        lambda function, **options: real(function, **{**options, "backend": "eager"}),
    )


@pytest.mark.slow
def test_the_compiled_loop_gives_the_bits_of_eager_native_and_eager_reference(monkeypatch):
    plan, z, label = plan_of("dpmpp_2m_sde"), unit(), torch.tensor([1.0, 2.0])
    call = {
        "noise": z,
        "seed": 9,
        "cond": {"label": label},
        "uncond": {"label": label * 0},
        "guidance": torch.tensor([1.5, 4.0]),
    }
    compiled = Sampler(plan, MODEL, mode="compile-loop")
    x0, states = compiled(**call, trajectory=True)
    for backend in ["reference"] + ([] if native.MISSING else ["native"]):
        eager, eager_states = Sampler(plan, MODEL, backend=backend)(**call, trajectory=True)
        assert same(x0, eager) and same(states, eager_states)
    assert counters["stats"]["unique_graphs"] == 1
    other = SOLVERS["dpmpp_2m_sde"](MODEL, grids.uniform(SCHEDULE, 4) ** 1.5)
    assert other.program == plan.program
    call = {**call, "noise": unit(seed=3), "seed": 1, "guidance": 2.0}
    swapped, _ = compiled.for_plan(other)(**call, trajectory=True)
    assert same(swapped, Sampler(other, MODEL)(**call))
    assert counters["stats"]["unique_graphs"] == 1, (
        "a plan of the same program must not compile again"
    )
    bound, bind = [], step_op._bind
    monkeypatch.setattr(step_op, "_bind", lambda *a: (bound.append(a[2:6]), bind(*a))[1])
    assert same(compiled(**call), Sampler(plan, MODEL)(**call))
    (_, run), *_ = reversed(compiled._spares._idle)
    own, places = run._pool, [[v.data_ptr() for v in memory] for memory in bound]
    there = own.x, own.slots, own.model_input, own.status
    assert places == [[v.data_ptr() for v in there]], "in place, and bound once for all rows"


CASES = {
    "unipc": ("unipc", {}, {}),
    "heun": ("heun", {}, {}),
    "lcm": ("lcm", {}, {"noise_scale": 0.5}),
    "two calls": (
        "dpmpp_2m",
        {},
        {
            "cond": {"shift": 0.3},
            "uncond": {"shift": -0.2},
            "guidance": 3.0,
            "batched_guidance": False,
        },
    ),
    "mask": (
        "euler_ancestral",
        {"inpaint": True},
        {"mask": torch.rand(2, 3, 7), "known": unit(seed=4)},
    ),
    "image": ("dpmpp_2m", {"start": 2}, {"noise": None, "latent": unit(seed=4)}),
    "image and its noise": ("dpmpp_2m", {"start": 2}, {"latent": unit(seed=4)}),
    "entry": ("heun", {}, {"noise": None, "latent": unit(seed=4), "start": 5}),
    "drawn": ("ddim", {"eta": 1.0}, {"noise": None, "shape": (2, 3, 7)}),
    "noise source": ("ddim", {"eta": 1.0}, {"noise_source": [unit(seed=k) for k in range(3)]}),
    "noise of a call": ("ddim", {"eta": 1.0}, {"noise_source": lambda row, k: unit(seed=row)}),
    "mask of one": (
        "euler_ancestral",
        {"inpaint": True},
        {"mask": torch.rand(1, 1, 7), "known": unit(1, seed=4)},
    ),
    "stage": ("euler_ancestral", {}, {"stage": 5}),
    "lying otherwise": ("dpmpp_2m_sde", {}, {"noise": unit().transpose(1, 2).contiguous().mT}),
    "nobody": ("dpmpp_2m_sde", {}, {"noise": unit()[:0]}),
    "double": ("unipc", {}, {"noise": unit().double()}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_traced_loop_is_eager(case, traced):
    name, options, call = CASES[case]
    plan, call = plan_of(name, **options), {"noise": unit(), "seed": 2, **call}
    assert same(
        Sampler(plan, MODEL, mode="compile-loop")(**call),
        Sampler(plan, MODEL, backend="reference")(**call),
    )
    assert counters["stats"]["unique_graphs"] == 1


# c x is asked, and x itself
@pytest.mark.pairs(
    prediction=["edm", "x0"],
    model=[torch.float32, torch.bfloat16],
    apart=[False, True],
    batch=[1, 2],
)
def test_guidance_in_some_rows_and_a_model_input_of_its_own(
    prediction, model, apart, batch, traced
):
    """Rows that need one branch of the two ask for it alone; trajectories are those of eager."""

    def fn(x, t, label):
        return x * 0.3 + (t * 0.01 + label).view(-1, 1, 1).to(x.dtype)

    edm = schedules.EDM()
    plan = guided(SOLVERS["dpmpp_2m"](edm, grids.karras(edm, 5), prediction=prediction), 2)
    plan = replace(plan, branches=[3 if k % 2 else b & 1 for k, b in enumerate(plan.branches)])
    label = torch.linspace(0.5, 1.0, batch)
    call = {"noise": unit(batch), "cond": {"label": label}, "uncond": {"label": label * 0}}
    call |= {"guidance": 3.0, "batched_guidance": not apart, "trajectory": True}
    (x, states), (end, kept) = (
        Sampler(plan, fn, mode, model_dtype=model)(**call) for mode in ("compile-loop", "eager")
    )
    assert same(x, end) and same(states, kept)


def test_models_of_two_times(traced):
    plan = plan_of("dpmpp_2m").padded(E=2)
    model = lambda x, t: net(x, t[:, 0]) + t[:, 1].view(-1, 1, 1)
    agree(plan, model)(noise=unit())


def test_rows_that_ask_different_models_are_not_confused(traced):
    """Nested regions are re-used by their code; two models, and rows of different structure, must
    stay apart.
    """
    plan = plan_of("dpmpp_2m")
    call = plan.call.copy()
    call[3:5] = 1
    two, models = replace(plan, call=call), [MODEL, lambda x, t: net(x, t) * 0.5]
    assert same(
        Sampler(two, models, mode="compile-loop")(noise=unit()), Sampler(two, models)(noise=unit())
    )


def agree(plan, model):
    """A check that the compiled loop of one Sampler gives the bits of eager, call after call."""
    compiled = Sampler(plan, model, mode="compile-loop")
    eager = Sampler(plan, model, backend="reference")

    def check(**call):
        assert same(compiled(**call), eager(**call))

    return check


def scaled(factor):
    return lambda x, t: net(x, t) * factor


def test_plans_models_and_forms_of_guidance_live_in_one_process(traced):
    """torch keeps graphs by code: were it shared, the third plan would pass the limit, and one
    graph would get another's closures.
    """
    for n in range(1, 5):
        agree(plan_of("euler", n), MODEL)(noise=unit())
    check, label = agree(plan_of("euler", 2), MODEL), torch.tensor([1.0, 2.0])
    guidance = {"cond": {"label": label}, "uncond": {"label": label * 0}, "guidance": 3.0}
    for batched in (True, False, True):
        check(noise=unit(), **guidance, batched_guidance=batched)
    check(noise=unit())
    for factor in (0.3, 0.7, 0.9):
        agree(plan_of("euler", 2), scaled(factor))(noise=unit())


def test_one_sampler_takes_every_kind_of_call(traced):
    check, one = agree(plan_of("ddim", 3, eta=1.0), MODEL), unit(1)
    for call in ({}, {"noise_scale": 0.5}, {"noise_source": [unit(seed=k) for k in range(2)]}):
        check(noise=unit(), seed=2, **call)
    for z in (unit(3), unit(4), one):
        check(noise=z, seed=2)
    check(noise=one, seed=2, noise_scale=0.5)


def test_a_float_keyword_may_change_between_calls(traced):
    check = agree(plan_of("euler", 2), MODEL)
    for shift in (0.3, 0.5, 0.7, 0.3):
        check(noise=unit(), cond={"shift": shift})
    assert counters["stats"]["unique_graphs"] == 3, "one graph for each value"
    check = agree(plan_of("euler", 2), lambda x, t, size, how: net(x, t) * size[0] + how["shift"])
    for size in (0.5, 0.7):
        check(noise=unit(), cond={"size": (size, 2), "how": {"shift": size}})


def test_a_tree_of_conditions_is_one_form(traced):
    """Tensors below a keyword are inputs of the graph, strings and what is shared are part of
    it.
    """

    def fn(x, t, added, text, w):
        said = (
            added["maps"][0]
            + added["maps"][1][:, 0]
            + torch.tensor([float(len(word)) for word in text])
        )
        return net(x, t, label=said) * w["size"][0]

    def said(v, words=("a", "bcd"), size=2):
        return {
            "added": {"maps": [v, v[:, None]]},
            "text": list(words),
            "w": fs.shared({"size": (size, 3, 3)}),
        }

    check, v = agree(plan_of("euler", 1), fn), torch.tensor([1.0, 2.0])
    for k in range(2):
        check(noise=unit(), cond=said(v + k), uncond=said(v * 0), guidance=3.0)
    assert counters["stats"]["unique_graphs"] == 1
    # asked one after the other
    check(noise=unit(), cond=said(v), uncond=said(v * 0, ("ef", ""), size=1), guidance=3.0)
    assert counters["stats"]["unique_graphs"] == 2


def break_graph(x, t):
    torch._dynamo.graph_break()
    return x * 2


WRONG = {
    "batch 1": (
        lambda x, t: x[:1] * 2,
        r"the model returned \[1, 3, 7\] for a sample of \[2, 3, 7\]; .* nothing is broadcast",
    ),
    "dtype": (lambda x, t: x.double(), r"the model returned torch.float64, asked in torch.float32"),
    "nothing": (lambda x, t: None, r"the model returned None for branch 0, which row 1 uses"),
    "a tuple": (lambda x, t: (x, x), r"the model returned a tuple; a dense tensor of \[2, 3, 7\]"),
    "its input": (
        lambda x, t: x,
        "could not take the model as one graph .*; mode='compile-model' is accepted",
    ),
    "in place": (
        lambda x, t: x.mul_(0.5),
        "could not take the model as one graph .*; mode='compile-model' is accepted",
    ),
    "two graphs": (
        break_graph,
        "could not take the model as one graph .*; mode='compile-model' is accepted",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_model_that_does_not_fit_is_refused_in_one_sentence(case, traced):
    model, sentence = WRONG[case]
    with pytest.raises(ValueError, match=f"^Sampler: .*{sentence}[^\n]*$") as caught:
        Sampler(plan_of("euler"), model, mode="compile-loop")(noise=unit())
    assert "\n" not in str(caught.value) and isinstance(
        caught.value.__cause__, torch._dynamo.exc.TorchDynamoException
    )
    shown = "".join(traceback.format_exception(caught.value)).split("The above exception was")
    assert len(shown) == 2 and shown[0].count("\n") <= 2, "one line of torch's stands before ours"


def test_an_error_of_the_model_itself_and_a_bad_sample_are_reported(traced):
    def fails(x, t):
        raise KeyError("the model's own")

    with pytest.raises(KeyError, match="the model's own"):
        Sampler(plan_of("euler"), fails, mode="compile-loop")(noise=unit())
    poison = torch.tensor([0.0, torch.nan]).view(2, 1, 1)
    with pytest.raises(FloatingPointError, match="sample 1 became non-finite at row 1"):
        Sampler(plan_of("euler"), lambda x, t, p: x + p, mode="compile-loop")(
            noise=unit(), cond={"p": poison}
        )


def test_the_compiled_model_in_an_eager_loop(traced):
    plan, z = plan_of("unipc"), unit()
    sampler = Sampler(plan, MODEL, mode="compile-model")
    assert same(sampler(noise=z), Sampler(plan, MODEL)(noise=z))
    assert counters["stats"]["unique_graphs"] == 1
    for factor in (0.3, 0.7, 0.9):  # past the limit torch would run the model as it is, in silence
        other = Sampler(plan, scaled(factor), mode="compile-model")
        assert same(other(noise=z), Sampler(plan, scaled(factor))(noise=z))
    assert counters["stats"]["unique_graphs"] == 4
    gradients = Sampler(plan, MODEL, mode="compile-model", differentiable=True)
    assert same(gradients(noise=z.requires_grad_()).detach(), sampler(noise=z.detach()))


def test_a_loop_in_one_graph_takes_no_callback():
    with pytest.raises(
        ValueError, match="callback and progress need mode='eager' or 'compile-model'"
    ):
        Sampler(plan_of("euler"), MODEL, mode="compile-loop")(noise=unit(), callback=print)
