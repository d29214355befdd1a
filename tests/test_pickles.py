"""Foreign hands: pickle, torch.save, copies and spawned workers of a Sampler, a Run and a Model."""

import copy
import io
import multiprocessing
import pickle
from functools import partial

import numpy as np
import pytest
import torch
from cases import same
from choosing import FLOW, finish, inpainting, net, plan_of, unit

import fastsample as fs
from fastsample import guidance, models, schedules
from fastsample.schedules import EDM, VE, VP, DiscreteVP, Flow, TrigFlow


def by_torch(value):
    held = io.BytesIO()
    torch.save(value, held)
    held.seek(0)
    return torch.load(held, weights_only=False)


def by_pickle(value, protocol=pickle.HIGHEST_PROTOCOL):
    return pickle.loads(pickle.dumps(value, protocol))


ROADS = {
    "pickle": by_pickle,
    "pickle, protocol 2": partial(by_pickle, protocol=2),
    "torch.save": by_torch,
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
}


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor(0.3))

    def forward(self, x, t, y=0.0):
        return net(x, t) * self.w + 0.1 * y


def rounding(x, t):
    return net(x, t).to(x.dtype)


def told(times):
    pass


def noises(row, name):
    return unit(3, 8, seed=row)


@pytest.mark.parametrize("road", ROADS)
def test_a_sampler_travels_with_its_plan_model_and_options(road):
    model = fs.Model(Net(), schedules.Flow(shift=3.0), "flow", time=1000)
    z = unit(3, 8)
    for sampler in (
        fs.Sampler(plan_of("dpmpp_2m", model=FLOW), model),
        fs.Sampler(plan_of("lcm"), rounding, state_dtype=torch.float64, backend="reference"),
        fs.Sampler(plan_of("unipc"), net, differentiable=True, checkpoint=True),
        fs.Sampler(plan_of("unipc"), Net(), prepare=told, model_dtype=torch.bfloat16),
        fs.Sampler(plan_of("unipc"), Net(), "compile-loop"),
    ):
        twin = ROADS[road](sampler)
        assert twin.plan == sampler.plan and twin.mode == sampler.mode
        assert twin._options == sampler._options and twin._capture == sampler._capture
        assert (twin.differentiable, twin.checkpoint) == (
            sampler.differentiable,
            sampler.checkpoint,
        )
        assert twin._prepare is sampler._prepare
        if sampler.mode == "eager" and sampler._prepare is None:
            assert same(twin(noise=z, seed=4), sampler(noise=z, seed=4))
    several = plan_of("dpmpp_2m").with_numbers(call=[-1, 0, 0, 0, 1, 1, 1, -1])
    sampler = fs.Sampler(several, [net, Net()])
    assert same(ROADS[road](sampler)(noise=z), sampler(noise=z))


def runs():
    inpaint, words = inpainting()
    plan = plan_of("euler_ancestral", n=4)
    return {
        "multistep": (plan_of("dpmpp_2m_sde"), {"seed": 3, "stage": 2}),
        "deterministic, a seed nobody drew from": (plan_of("unipc"), {"seed": 3}),
        "guided": (
            guidance.guided(plan_of("unipc")),
            {"guidance": torch.tensor([1.0, 2.0, 3.0]), "copies": 2},
        ),
        "inpainting": (inpaint, {name: v[:3] for name, v in words.items()} | {"seed": 3}),
        "noise scales": (plan, {"seed": [1, 2, 3], "noise_scale": [0.0, 1.0, 2.0]}),
        "a window": (plan, {"noise_source": fs.window((5, 3, 9), np.s_[:3, :, :8]), "seed": 4}),
        "draws of a function": (plan, {"noise_source": noises}),
        "channels_last": (
            plan,
            {"noise": unit(3, 4, 2, 5).to(memory_format=torch.channels_last), "seed": 1},
        ),
        "half": (plan, {"model_dtype": torch.float16, "seed": 1, "preview": False}),
        "asked for": (plan, {"backend": "reference", "seed": 1}),
    }


@pytest.mark.parametrize("road", [road for road in ROADS if road != "copy"])
@pytest.mark.parametrize("case", runs())
def test_a_run_goes_on_elsewhere_where_it_stood(case, road):
    plan, words = runs()[case]
    size = (3, 8) if "draws" in case else (3, 3, 8)
    run = fs.Run(plan, **({"noise": unit(*size)} | words))
    ask = rounding
    for _ in range(2):
        run.step(ask(run.model_input, run.t))
    twin = ROADS[road](run)
    assert (
        twin.row == run.row and same(twin.x, run.x) and twin.__dict__.keys() == run.__dict__.keys()
    )
    assert twin.x.stride() == run.x.stride() and twin._choice.name == run._choice.name
    assert (twin.seeds is None) == (run.seeds is None)
    assert run.seeds is None or torch.equal(twin.seeds, run.seeds)
    if run.x0 is not None:
        assert same(twin.x0, run.x0)
    before = run.x.clone()
    finish(twin, ask)
    assert same(run.x, before)  # memory of its own
    assert same(finish(run, ask).x, twin.x)
    if "noise" not in words and "draws" not in case:
        z = unit(*size, seed=5)
        for one in (run, twin):
            one.restart(z, seed=8)
        assert same(finish(run, ask).x, finish(twin, ask).x)


def test_a_run_that_was_chosen_among_travels():
    whole = finish(fs.Run(plan_of("dpmpp_2m_sde"), noise=unit(4, 8), seed=1)).x
    run = fs.Run(plan_of("dpmpp_2m_sde"), noise=unit(4, 8), seed=1)
    run.step(net(run.model_input, run.t))
    run.select([3, 1])
    run = by_pickle(run)
    run.step(net(run.model_input, run.t))
    run.select([1])
    assert same(finish(run).x, whole[[1]])


def unnamed():
    class Local:
        def __call__(self, x, t):
            return net(x, t)

        def method(self, x, t):
            return net(x, t)

    def inner(x, t):
        return net(x, t)

    return {
        "a lambda": lambda x, t: net(x, t),
        "a function made inside one": inner,
        "a partial of one": partial(inner, y=3),
        "an object of a class made inside a function": Local(),
        "a method of one": Local().method,
    }


@pytest.mark.parametrize("kind", unnamed())
def test_what_has_no_name_is_refused_in_one_sentence(kind):
    fn, plan = unnamed()[kind], plan_of("unipc")
    words = {"schedule": schedules.EDM(), "prediction": "edm"}
    for value, where in (
        (fs.Model(fn, **words), "Model: fn"),
        (fs.Model(net, **words, time=fn), "Model: time"),
        (fs.Model(net, **words, input_scale=fn), "Model: input_scale"),
        (fs.Sampler(plan, fn), "Sampler: model"),
        (fs.Sampler(plan, fs.Model(fn, **words)), "Model: fn"),
        (fs.Sampler(plan, net, prepare=fn), "Sampler: prepare"),
        (fs.Run(plan_of("lcm"), noise=unit(2, 8), noise_source=fn), "Run: noise_source"),
    ):
        for road in (by_pickle, by_torch):
            with pytest.raises(pickle.PicklingError) as error:
                road(value)
            text = str(error.value)
            assert text.startswith(f"{where} is ") and "top level of a module is accepted" in text
            assert "\n" not in text
        copy.deepcopy(value), copy.copy(value)  # in one process it needs no name


@pytest.mark.parametrize("road", [by_pickle, by_torch])
def test_models_of_the_package_travel(road):
    """The embedded ones on every schedule, and the analytic ones in every word."""
    every = EDM(), VP(), DiscreteVP.linear(), VE(), Flow(3.0), TrigFlow(), DiscreteVP.cosine()
    ring = models.analytic.ring()
    made = [models.fashion(schedule=s, prediction="x0") for s in every] + [models.fashion_flow()]
    made += [ring.model(s, word) for s in every for word in ("x0", "edm", "trigflow")]
    for model in made:
        other, x = road(model), unit(2, *((2,) if model.identity[:4] == "anal" else (1, 28, 28)))
        t = np.array([0.3, 0.7]) * model.schedule.t_max
        assert same(torch.tensor(other.times(t)), torch.tensor(model.times(t)))
        assert same(torch.tensor(other.scales(t)), torch.tensor(model.scales(t)))
        told = torch.tensor(model.times(t))
        assert same(other(x, told), model(x, told))


def test_a_pickler_that_takes_lambdas_is_left_to(monkeypatch):
    """cloudpickle and dill write functions by value."""
    import sys
    import types

    model = fs.Model(lambda x, t: x, schedules.EDM(), "edm")
    monkeypatch.setitem(
        sys.modules, "joblib.externals.cloudpickle", types.ModuleType("cloudpickle")
    )
    assert model.__getstate__()["fn"] is model.fn
    with pytest.raises((pickle.PicklingError, AttributeError), match="lambda"):
        pickle.dumps(model)


def test_copies_of_a_model_are_as_they_were():
    model = fs.Model(Net(), schedules.EDM(), "edm", model_id="mine")
    shallow, deep, sent = copy.copy(model), copy.deepcopy(model), by_pickle(model)
    assert shallow.fn is model.fn and deep.fn is not model.fn and sent.fn is not model.fn
    x, t = unit(2, 8), torch.ones(2)
    for twin in (shallow, deep, sent):
        assert (
            twin.identity == "mine" and twin.prediction == "edm" and same(twin(x, t), model(x, t))
        )
    twice = copy.deepcopy([model, model])
    assert twice[0] is twice[1]


def test_what_stays_in_its_process_says_what_to_send():
    engine = fs.Engine(net, (8,))
    ticket = engine.submit(plan_of("unipc"), seed=1)
    for value, said in ((engine, "pickle the plans and the model"), (ticket, "pickle its result")):
        for road in (by_pickle, by_torch, copy.deepcopy):
            with pytest.raises(TypeError, match=said):
                road(value)


def work(sampler, run, results):
    z = unit(3, 8)
    end = sampler(noise=z, seed=4)
    results.put((end.numpy(), finish(run).x.numpy()))


@pytest.mark.slow
def test_a_spawned_worker_takes_them():
    sampler = fs.Sampler(plan_of("dpmpp_2m_sde"), Net().requires_grad_(False))
    run = fs.Run(plan_of("unipc"), noise=unit(3, 8))
    run.step(net(run.model_input, run.t))
    spawn = multiprocessing.get_context("spawn")
    results = spawn.Queue()
    worker = spawn.Process(target=work, args=(sampler, run, results))
    worker.start()
    ends = results.get(timeout=120)
    worker.join()
    assert torch.equal(torch.from_numpy(ends[0]), sampler(noise=unit(3, 8), seed=4))
    assert torch.equal(torch.from_numpy(ends[1]), finish(run).x)
    assert worker.exitcode == 0


def test_foreign_code_may_ask_for_any_name_at_any_time():
    plan = plan_of("euler_ancestral", n=3)
    run = fs.Run(plan, noise=unit(3, 8), seed=1, preview=False)
    engine = fs.Engine(net, (8,))
    held = [run, engine, engine.submit(plan, seed=1), engine.submit(plan, seed=2)]
    held += [fs.Sampler(plan, net), plan, fs.Model(net, schedules.EDM(), "edm")]

    def ask():
        assert not [name for one in held for name in dir(type(one)) if not hasattr(one, name)]

    ask()
    held[3].cancel()
    finish(run)
    engine.run()
    ask()
    assert run.calls.shape == (0,)
