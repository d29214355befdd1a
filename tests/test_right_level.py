"""A model's answer that is right but for its wrapping or its width is taken by every door alike,
bit for bit as the plain one; what cannot be taken has one sentence everywhere, and an input that
float16 does not hold is not said to be the model's fault.
"""

import dataclasses
import re
from collections import OrderedDict

import numpy as np
import pytest
import torch

import fastsample as fs
from fastsample import optimize
from fastsample.interop.k_diffusion import k_sample
from fastsample.trajectories import record

D = 600
SCHEDULE = fs.schedules.EDM()
WIDE = fs.schedules.EDM(sigma_max=40000.0)  # noise beyond 65504


@dataclasses.dataclass
class Output:
    sample: torch.Tensor


class Mapped(OrderedDict):
    """As transformers and diffusers have it: a mapping whose keys are attributes too."""

    @property
    def sample(self):
        return self["sample"]


WRAPPED = {
    "tuple": lambda f: (f,),
    "list": lambda f: [f],
    "dict": lambda f: {"sample": f, "hidden": None},
    "dataclass": Output,
    "mapping": lambda f: Mapped(sample=f),
}


def noise(dtype=torch.float32):
    return torch.randn(3, D, generator=torch.Generator().manual_seed(5)).to(dtype)


def network(x, t):
    return 0.5 * x / (1.0 + x.square().mean(1, keepdim=True).sqrt())


def plan_of(model, steps=5):
    return fs.solvers.dpmpp_2m(model, fs.grids.karras(model.schedule, steps))


def stepped(model, z):
    run = fs.Run(plan_of(model), noise=z)
    while not run.done:
        run.step(model(run.model_input, run.t))
    run.check("Run")
    return run.x


def ticked(model, z):
    engine = fs.Engine(model, z.shape[1:], model_dtype=z.dtype)
    ticket = engine.submit(plan_of(model), noise=z[:1].float())
    engine.run()
    return ticket.result()


def denoised(model, z):
    plan = plan_of(model)
    x = z * plan.init_scale
    return k_sample(plan, lambda x, t, **k: model(x, t, **k), x, disable=True)


def searched(name):
    def run(model, z):
        found = getattr(optimize, name)(model, z, 3, **TEACHERS[name])
        return torch.as_tensor(found.plan.table(np.float64)[0])

    return run


TEACHERS = {"oss": {"teacher": 12}, "fit": {"teacher": 12}, "gits": {}}
LOOPS = {
    "Sampler": lambda model, z: fs.Sampler(plan_of(model), model)(noise=z),
    "differentiable": lambda model, z: fs.Sampler(plan_of(model), model, differentiable=True)(
        noise=z
    ),
    "Run": stepped,
    "Engine": ticked,
    "record": lambda model, z: record(plan_of(model), model, z).end,
    "metrics": lambda model, z: fs.metrics.run(plan_of(model), model, z),
}
SEARCHES = {name: searched(name) for name in TEACHERS}
DOORS = {**LOOPS, "k_sample": denoised, **SEARCHES}


def model(fn, schedule=SCHEDULE):
    return fs.Model(fn, schedule, "x0", model_id="the same")


def same(a, b):
    return a.dtype == b.dtype and torch.equal(a, b)


@pytest.mark.parametrize("door", DOORS)
def test_a_wrapped_answer_is_the_answer(door):
    run = DOORS[door]
    plain = run(model(network), noise())
    for wrap in WRAPPED.values():
        assert same(run(model(lambda x, t, wrap=wrap: wrap(network(x, t))), noise()), plain)
        if door in SEARCHES:
            break  # they share what asks


@pytest.mark.parametrize(
    ("door", "narrow"),
    [*((door, torch.bfloat16) for door in DOORS), *((door, torch.float16) for door in LOOPS)],
)
def test_a_narrower_answer_is_taken_to_the_bit(door, narrow):
    """float32 in, 16 bits out: what autocast does."""
    rounded = lambda x, t: network(x, t).to(narrow)
    run = DOORS[door]
    plain = run(model(lambda x, t: rounded(x, t).float()), noise())
    assert same(run(model(rounded), noise()), plain)
    if door in LOOPS:  # bits were lost, so it was not the float32 network's
        assert not same(run(model(network), noise()), plain)


@pytest.mark.parametrize("door", DOORS)
def test_under_autocast(door):
    layer = torch.nn.Linear(D, D).requires_grad_(False)

    def cast(x, t):
        with torch.autocast("cpu", torch.bfloat16):
            return layer(x / (1.0 + x.abs().amax()))

    assert cast(noise(), None).dtype == torch.bfloat16
    assert DOORS[door](model(cast), noise()).isfinite().all()


def test_ays():
    plan = lambda fn: optimize.ays(model(fn), noise(), 3).plan
    assert plan(lambda x, t: Output(network(x, t).bfloat16())) == plan(
        lambda x, t: network(x, t).bfloat16().float()
    )


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_with_guidance(wrap, batched):
    told = lambda x, t, c: network(x, t) * c.view(-1, 1)
    c = {"cond": {"c": torch.tensor([1.0, 2.0, 3.0])}, "uncond": {"c": torch.zeros(3)}}
    words = {"noise": noise(), "guidance": 2.0, "batched_guidance": batched, **c}
    ours = fs.Sampler(plan_of(model(network)), lambda x, t, c: wrap(told(x, t, c).bfloat16()))
    theirs = fs.Sampler(plan_of(model(network)), lambda x, t, c: told(x, t, c).bfloat16().float())
    assert same(ours(**words), theirs(**words))


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(
    ("fn", "sentence"),
    [
        (
            lambda x, t: {"logits": x},
            "the model returned a dict; a tensor, or what holds one alone or as `sample`, is",
        ),
        (
            lambda x, t: (x, x),
            "the model returned a tuple of 2; a tensor, or what holds one alone or as `sample`, is",
        ),
        (lambda x, t: Output(x[:, :1]), "the model returned [3, 1] for a sample of [3, 600]"),
        (lambda x, t: {"sample": x.long()}, "the model returned torch.int64, asked in torch.float"),
    ],
    ids=["dict", "two", "shape", "whole"],
)
def test_what_cannot_be_taken_has_one_sentence(door, fn, sentence):
    if door == "k_sample" and "int64" in sentence:
        pytest.skip("k_sample takes any real dtype, as k-diffusion's loops do")
    sentence = sentence.replace("3,", "1,") if door == "Engine" else sentence
    match = f"^[A-Za-z.]+: {re.escape(sentence)}"
    with pytest.raises((TypeError, ValueError), match=match) as said:
        DOORS[door](model(fn), noise())
    assert "model_dtype" not in str(said.value)  # of whole numbers there is none


@pytest.mark.parametrize("door", [*LOOPS, *SEARCHES])
def test_an_answer_is_never_rounded(door):
    sentence = "the model returned torch.float32, asked in torch.bfloat16; cast its output or"
    with pytest.raises(TypeError, match=sentence):
        DOORS[door](model(lambda x, t: network(x, t).float()), noise(torch.bfloat16))


@pytest.mark.parametrize("door", [*LOOPS, *SEARCHES])
def test_an_input_beyond_float16_is_not_the_outputs_fault(door):
    large = "its input, noise of 4e+04 there, is too large for torch.float16 (up to 65504); "
    with pytest.raises((FloatingPointError, ValueError), match=re.escape(large)):
        DOORS[door](model(network, WIDE), noise(torch.float16))
    theirs = lambda x, t: network(x, t) * float("nan")
    with pytest.raises((FloatingPointError, ValueError), match="the model returned NaN, Inf"):
        DOORS[door](model(theirs), noise(torch.float16))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_advised_for_float16_is_followed(dtype):
    own, half = model(network, WIDE), noise(torch.float16)
    plan = plan_of(own)
    assert fs.Sampler(plan, own, model_dtype=dtype)(noise=half).isfinite().all()
    assert record(plan, own, half, model_dtype=dtype).end.isfinite().all()
    assert optimize.oss(own, half, 3, teacher=12, model_dtype=dtype).plan.nfe == 3
    scaled = dataclasses.replace(own, input_scale="vp")
    assert fs.Sampler(plan_of(scaled), scaled)(noise=half).isfinite().all()


def test_a_denoiser_of_many_states_names_the_input():
    """The same where the states are a search's own, asked at levels of its own choice."""
    own = model(network, WIDE)
    grid = fs.grids.karras(WIDE, 5)
    ask = fs.trajectories.Denoiser(own, grid, noise(torch.float16))
    states = 40000.0 * noise()[:, None]
    with pytest.raises(
        ValueError, match="the model's input in torch.float16 at its time .* is not"
    ):
        ask(states, np.zeros(1, int))
    theirs = model(lambda x, t: x * float("nan"))
    ask = fs.trajectories.Denoiser(theirs, fs.grids.karras(SCHEDULE, 5), noise(torch.float16))
    with pytest.raises(ValueError, match="the model's output at its time .* is not finite"):
        ask(noise()[:, None], np.zeros(1, int))


@pytest.mark.slow
@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
@pytest.mark.parametrize("mode", ["compile-model", "compile-loop"])
def test_compiled(mode, wrap):
    own, z = model(lambda x, t: wrap(network(x, t).bfloat16())), noise()
    eager = fs.Sampler(plan_of(own), own)(noise=z)
    compiled = fs.Sampler(plan_of(own), own, mode)(noise=z)
    assert (compiled - eager).abs().max() < 1e-2 * eager.abs().max()
