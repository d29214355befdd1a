"""What a plan was made for and found with: another model is refused by name at every door, another
shape, guidance or identity is said once.
"""

import hashlib
import sys
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import fastsample as fs
from fastsample import cli, grids, metrics, schedules, solvers
from fastsample.interop import k_sample
from fastsample.plan import provenance
from fastsample.trajectories import record

FLOW, SHAPE = schedules.Flow(3.0), (1, 4, 4)
Z = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))
NET = lambda x, t, **cond: 0.3 * x + sum(cond.values())
MODEL = fs.Model(NET, FLOW, "flow", time=1000)
BELOW = grids.uniform(FLOW, 5)[1:]  # from alpha > 0
TABLE, EDM = schedules.DiscreteVP.scaled_linear(), schedules.EDM()


def plan_for(schedule, prediction, make=solvers.euler, **words):
    return make(fs.Model(None, schedule, prediction, **words), grids.uniform(schedule, 4))


# -- another model ---------------------------------------------------------------------------------
def two(prediction):
    """A plan that asks two models in turn, the second of which predicts v."""
    several = [fs.Model(NET, TABLE, prediction), fs.Model(NET, TABLE, "v")]
    b = solvers.Builder(several, grids.uniform(TABLE, 2))  # the second near the data: alike
    for i in range(2):
        b.row(b.t[i], to=b.t[i + 1], x=solvers.M, call=i)
    return b.build("two", consistent=False), several


UNLIKE = {
    "shift": (plan_for(schedules.Flow(1.0), "flow", time=1000), MODEL, "schedule"),
    "a churned plan's shift": (
        solvers.heun(
            fs.Model(None, schedules.Flow(1.0), "flow", time=1000), BELOW, s_churn=1.0, space="rho"
        ),
        MODEL,
        "schedule",
    ),
    "kind": (plan_for(EDM, "eps"), fs.Model(NET, TABLE, "eps"), "schedule"),
    "table": (
        plan_for(TABLE, "eps"),
        fs.Model(NET, schedules.DiscreteVP.linear(), "eps"),
        "schedule",
    ),
    "prediction": (plan_for(TABLE, "eps"), fs.Model(NET, TABLE, "v"), "prediction"),
    "time": (plan_for(FLOW, "flow"), MODEL, "time"),
    "sigma_data": (plan_for(EDM, "edm"), fs.Model(NET, EDM, "edm", sigma_data=1.0), "sigma_data"),
    "input_scale": (
        plan_for(EDM, "eps"),
        fs.Model(NET, EDM, "eps", input_scale="vp"),
        "input_scale",
    ),
}


def by_engine(plan, model):
    fs.Engine(model, SHAPE).submit(plan, seed=1)


def by_sampler(mode, **words):
    return lambda plan, model: fs.Sampler(plan, model, mode, **words)


DOORS = {
    "Sampler": by_sampler("eager"),
    "Sampler, one graph": by_sampler("compile-loop"),
    "Sampler, gradients": by_sampler("eager", differentiable=True),
    "Sampler, a plan after another": lambda plan, model: fs.Sampler(
        solvers.euler(model, grids.uniform(model.schedule, 3)), model
    ).for_plan(plan),
    "Engine.submit": by_engine,
    "trajectories": lambda plan, model: record(plan, model, Z),
    "Sampler, of metrics": lambda plan, model: metrics.run(plan, model, Z),
}


@pytest.mark.parametrize("kind", UNLIKE)
@pytest.mark.parametrize("door", DOORS)
def test_another_model_is_refused_by_name(door, kind):
    plan, model, word = UNLIKE[kind]
    where = door.split(",")[0]
    sentence = rf"^{where}: the plan was made for {word} = .* and the model's is .*; make it for"
    for made in (plan, fs.Plan.from_bytes(plan.to_bytes())):
        with pytest.raises(ValueError, match=sentence):
            DOORS[door](made, model)
    # the rows decide: a note that says nothing hides nothing, but what only the grid shows
    bare = plan.with_note(schedule=None, prediction=None, model=None)
    with pytest.raises(ValueError, match=f"^{where}: the plan was made for "):
        DOORS[door](bare, model)


@pytest.mark.parametrize("door", DOORS)
def test_its_own_model_is_accepted(door):
    heun = solvers.heun(MODEL, BELOW, s_churn=1.0, space="rho")
    for plan in (heun, plan_for(FLOW, "flow", solvers.dpmpp_2s, time=1000)):
        DOORS[door](plan, MODEL)
    # the same schedules, one with another end, one rounded; churned points are off the grid
    louder = fs.Model(NET, schedules.EDM(sigma_max=120.0), "edm")
    rounded = schedules.DiscreteVP(np.float32(TABLE.alphas_cumprod))
    for schedule, kind, model in ((EDM, "edm", louder), (TABLE, "v", fs.Model(NET, rounded, "v"))):
        own = fs.Model(None, schedule, kind)
        for words in ({}, {"s_churn": 1.0}):
            DOORS[door](solvers.heun(own, grids.karras(schedule, 4)[1:], **words), model)


def test_a_strange_note_hides_nothing_and_stops_nothing():
    own = plan_for(EDM, "edm")
    louder = fs.Model(NET, schedules.EDM(sigma_max=120.0), "edm")
    for times in ("mine", None, {}, [["a"]], 3.0):
        assert fs.Sampler(own.with_note(times=times), louder).plan.nfe == own.nfe
        with pytest.raises(ValueError, match="made for prediction"):
            fs.Sampler(own.with_note(times=times), fs.Model(NET, EDM, "eps"))


def test_every_model_of_several_is_held_to_its_own_words():
    plan, several = two("eps")
    assert fs.Sampler(plan, several).plan is plan
    with pytest.raises(ValueError, match="made for prediction = 'v' and the model's is 'eps'"):
        fs.Sampler(plan, several[:1] * 2)


def test_what_was_replaced_is_not_compared():
    plan = plan_for(FLOW, "flow", time=1000)
    taught = plan.with_numbers(t=plan.t * 1.1)
    assert fs.Sampler(taught, MODEL).plan is taught
    with pytest.raises(ValueError, match="made for time"):
        fs.Sampler(taught.with_note(changed=None), MODEL)


def test_the_command_line_refuses(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "mine", SimpleNamespace(make=lambda: MODEL))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    words = ["--model", "mine:make", "--shape", "1,4,4", "--samples", "2", "--out", "a.npy"]
    for plan, word in ((UNLIKE["shift"][0], "schedule"), (UNLIKE["time"][0], "time")):
        plan.save("a.fsplan")
        assert cli.main(["sample", "a.fsplan", *words]) == 2
        assert f"the plan was made for {word} = " in capsys.readouterr().err


def test_k_sample_takes_a_denoiser():
    """Whatever the plan was made for, it is asked for x0 at sigma; a Model says what it is."""
    plan = plan_for(TABLE, "eps")
    x = Z * plan.init_scale / plan.alpha[1]
    ours = fs.Model(lambda x, t: 0.3 * x, EDM, "x0")
    want = k_sample(plan, lambda x, sigma: 0.3 * x, x, disable=True)
    assert torch.equal(k_sample(plan, ours, x, disable=True), want)
    for other in (fs.Model(NET, TABLE, "eps"), fs.Model(NET, EDM, "eps"), MODEL):
        with pytest.raises(
            ValueError, match=r"^k_sample: model is Model\(.*; a denoiser\(x, sigma"
        ):
            k_sample(plan, other, x, disable=True)


# -- found elsewhere -------------------------------------------------------------------------------
def network(kind=torch.float32, first=0.5, bias=False):
    made = torch.nn.Conv2d(1, 1, 1, bias=bias)
    torch.nn.init.constant_(made.weight, first)

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.made = made

        def forward(self, x, t, y=0.0):
            return self.made(x.to(self.made.weight.dtype)).to(x.dtype) + y

    return fs.Model(Network().to(kind), FLOW, "flow", time=1000)


def found_plan(model, **found):
    return solvers.euler(model, grids.uniform(FLOW, 4)).with_note(found={"method": "oss", **found})


def said_by(calls):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for call in calls:
            call()
    return [str(one.message) for one in caught], [one.filename for one in caught]


GUIDED = {"cond": {"y": 0.1}, "uncond": {"y": -0.1}}


@pytest.mark.parametrize(
    ("found", "model", "call", "sentence"),
    [
        ({"shape": [1, 8, 8]}, network(), {}, "samples of [1, 8, 8], here [1, 4, 4]"),
        ({"guidance": 3.0}, network(), {"guidance": 2.0, **GUIDED}, "guidance 3.0, here 2.0"),
        ({"guidance": 3.0}, network(), {}, "guidance 3.0, here None"),
        ({"guidance": None}, network(), {"guidance": 2.0, **GUIDED}, "guidance None, here 2.0"),
        (
            {"guidance": 3.0},
            network(),
            {"guidance": torch.tensor([3.0, 5.0]), **GUIDED},
            "guidance 3.0, here 3.0, 5.0",
        ),
        ({}, network(torch.bfloat16), {}, "in bfloat16 instead of float32, as after quantising"),
        ({}, network(first=0.25), {}, "the same parameter names and shapes with other numbers"),
        ({}, network(bias=True), {}, ", another one"),
        ({"shape": [1, 8, 8]}, network(first=0.25), {}, "[1, 4, 4]; model sha256:"),
    ],
)
@pytest.mark.parametrize("differentiable", [False, True])
def test_a_plan_found_elsewhere_says_so_once(found, model, call, sentence, differentiable):
    sampler = fs.Sampler(found_plan(network(), **found), model, differentiable=differentiable)
    run = lambda z: lambda: sampler(noise=z, **call)
    messages, files = said_by([run(Z), run(Z), run(torch.randn(2, 1, 6, 6))])
    assert len(messages) == 1 and files == [__file__]
    assert messages[0].startswith("Sampler: the plan was found with ") and sentence in messages[0]


@pytest.mark.parametrize(
    ("plan", "call"),
    [
        (found_plan(network(), shape=[1, 4, 4], guidance=None), {}),
        (found_plan(network(), shape=[1, 4, 4], guidance=2.0), {"guidance": 2, **GUIDED}),
        (found_plan(network(), guidance=2.0), {"guidance": torch.full((2,), 2.0), **GUIDED}),
        (found_plan(network()).with_note(found=None), {}),
        (found_plan(network(first=0.25)).with_note(found=[1]), {"guidance": 2.0, **GUIDED}),
        (found_plan(network()).with_note(found={"shape": 3, "guidance": "much"}), {}),
        (found_plan(MODEL), {}),
    ],
)
def test_nothing_is_said_where_nothing_differs(plan, call):
    sampler = fs.Sampler(plan, network())
    assert said_by([lambda: sampler(noise=Z, **call)] * 2)[0] == []


def test_a_later_call_of_another_shape_says_so_too():
    sampler = fs.Sampler(found_plan(network(), shape=[1, 4, 4]), network())
    calls = [lambda n=n: sampler(noise=torch.randn(2, 1, n, n)) for n in (4, 4, 6, 7)]
    assert len(said_by(calls)[0]) == 1


def test_an_engine_says_so_once_a_plan():
    engine = fs.Engine(network(), SHAPE)
    plans = [found_plan(network(), shape=[1, 8, n]) for n in (8, 9)]
    messages, files = said_by([lambda p=p: engine.submit(p, seed=0) for p in plans * 2])
    assert len(messages) == 2 and set(files) == {__file__}
    assert messages[0].startswith("Engine.submit: the plan was found with samples of [1, 8, 8]")


def test_the_parameters_are_waited_for_once(monkeypatch):
    waits, real = [], torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda v: waits.append(v.shape) or real(v))
    model = fs.Model(torch.nn.Sequential(*(torch.nn.Linear(3, 3) for _ in range(9))), FLOW, "flow")
    assert model.identity.endswith("/float32") and waits == [torch.Size([9 * 7])]


def test_notes_of_an_older_hash_are_told_apart():
    model = network()
    text = b"made.weight (1, 1, 1, 1) torch.float32 [0.5]\n"
    older = f"sha256:{hashlib.sha256(text).hexdigest()[:32]}"
    assert provenance.other(older, model.identity) is None
    assert "another one" in provenance.other(older, network(first=0.25).identity)


def test_parameters_that_cannot_be_read_are_told_by_their_form():
    class Packed(torch.nn.Parameter):
        """As libraries that quantise have their own."""

    ours = network().identity
    for kind in ("meta", "packed"):
        model, packed = network(), Packed(torch.ones(1, 1, 1, 1))
        model.fn.made.weight = packed if kind == "packed" else model.fn.made.to("meta").weight
        assert model.identity.startswith("sha256:unread/")
        said = provenance.other(ours, model.identity)
        if kind == "meta":
            assert said is None
        else:
            assert "in Packed-float32 instead of float32, as after quantising" in said

    unread = [f"sha256:unread/{form}/float32" for form in ("a", "b")]
    assert "another one" in provenance.other(*unread)
    assert provenance.other("\x1b[2J", "mine") == "mine, another one"
    hostile = found_plan(network()).with_note(model={"model_id": "\x1b[2J"})
    assert r"model \x1b[2J, here" in provenance.elsewhere(hostile, SHAPE, None, [network()])


def test_what_warm_said_is_not_said_again():
    sampler = fs.Sampler(found_plan(network(), shape=[1, 8, 8]), network())
    calls = [lambda: sampler.warm([Z.shape]), lambda: sampler(noise=Z[:1])]
    assert len(said_by(calls)[0]) == 1


# -- the scale of the note -------------------------------------------------------------------------
def test_the_scale_it_was_found_with_is_used():
    plan = found_plan(MODEL, guidance=3.0)
    want = fs.Sampler(plan, MODEL)(noise=Z, guidance=3.0, **GUIDED)
    for made in (plan, fs.guidance.guided(plan)):
        sampler = fs.Sampler(made, MODEL)
        assert all(torch.equal(sampler(noise=Z, **GUIDED), want) for _ in range(2))
        other = sampler(noise=Z, guidance=1.0, **GUIDED)
        assert not torch.equal(other, want)
    engine, shift = fs.Engine(MODEL, SHAPE), torch.full((1, 1, 1, 1), 0.1)
    call = {"noise": Z[:1], "cond": {"y": shift}, "uncond": {"y": -shift}}
    tickets = [engine.submit(plan, **call, **scale) for scale in ({}, {"guidance": 3.0})]
    engine.run()
    assert torch.equal(*(ticket.result() for ticket in tickets))
    with pytest.raises(ValueError, match="given without guidance; pass guidance="):
        fs.Sampler(found_plan(MODEL, guidance=None), MODEL)(noise=Z, **GUIDED)
