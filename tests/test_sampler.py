"""Sampler: the loop is the Run's, conditions reach the model, callbacks and trajectories see every
step, gradients flow, bad input is refused.
"""

import sys
import threading

import numpy as np
import pytest
import torch
from cases import BACKENDS, same

from fastsample import grids, schedules
from fastsample.guidance import guided
from fastsample.model import Model
from fastsample.runtime import pool as inplace
from fastsample.runtime.run import Run
from fastsample.runtime.sampler import Sampler
from fastsample.solvers import SOLVERS

SCHEDULE = schedules.Flow(shift=3.0)


def net(x, t, shift=0.0, label=None):
    label = 0.0 if label is None else label.view(-1, *[1] * (x.dim() - 1)) * 0.1
    return x * 0.3 + x * x * 0.05 * (t.view(-1, *[1] * (x.dim() - 1)) * 0.001 + 0.5) + shift + label


MODEL = Model(net, SCHEDULE, prediction="flow", time=1000)


def plan_of(name="dpmpp_2m", n=5, **options):
    return SOLVERS[name](MODEL, grids.uniform(SCHEDULE, n), **options)


def unit(batch=3, *sizes, seed=0, dtype=torch.float32):
    return torch.randn(
        batch,
        *(sizes or (2, 5)),
        generator=torch.Generator().manual_seed(seed),
        dtype=torch.float64,
    ).to(dtype)


def by_hand(plan, z, model=net, **options):
    run = Run(plan, noise=z, **options)
    while not run.done:
        run.step(model(run.model_input, run.t))
    return run.x


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", SOLVERS)
def test_the_loop_is_the_runs(name, backend):
    plan, z = plan_of(name), unit()
    assert same(
        Sampler(plan, MODEL, backend=backend)(noise=z, seed=3),
        by_hand(plan, z, seed=3, backend=backend),
    )


def test_conditions_reach_the_model():
    plan, z, label = plan_of(), unit(), torch.tensor([1.0, 2.0, 3.0])
    expected = by_hand(plan, z, lambda x, t: net(x, t, shift=0.5, label=label))
    assert same(Sampler(plan, MODEL)(noise=z, cond={"shift": 0.5, "label": label}), expected)


@pytest.mark.parametrize("batched", [True, False])
def test_guidance_in_one_call_or_two(batched):
    plan, z, seen = plan_of(), unit(), []
    cond = torch.tensor([1.0, 2.0, 3.0])
    uncond = torch.zeros(3)
    scale = torch.tensor([1.0, 3.0, 5.0])

    def recording(x, t, label):
        seen.append((len(x), len(t), len(label)))
        return net(x, t, label=label)

    got = Sampler(plan, recording)(
        noise=z,
        cond={"label": cond},
        uncond={"label": uncond},
        guidance=scale,
        batched_guidance=batched,
    )
    run = Run(guided(plan), noise=z, guidance=scale)
    while not run.done:
        run.step([net(run.model_input, run.t, label=label) for label in (cond, uncond)])
    assert same(got, run.x)
    assert seen == ([(6, 6, 6)] * plan.nfe if batched else [(3, 3, 3)] * 2 * plan.nfe)


def test_rows_outside_the_interval_ask_one_branch():
    levels = plan_of().alpha[1:-1], plan_of().sigma[1:-1]
    plan = guided(plan_of(), interval=(-0.1 + float(np.log(levels[0][2] / levels[1][2])), np.inf))
    seen = []

    def recording(x, t, label):
        seen.append(len(x))
        return net(x, t, label=label)

    Sampler(plan, recording)(
        noise=unit(), cond={"label": torch.ones(3)}, uncond={"label": torch.zeros(3)}, guidance=3.0
    )
    assert seen == [3, 3, 6, 6, 6]


def test_three_branches():
    plan, z = plan_of(), unit()
    branches = [{"shift": v} for v in (0.1, -0.2, 0.3)]
    got = Sampler(plan, MODEL)(
        noise=z, branches=branches, guidance=[2.0, 0.5], batched_guidance=False
    )
    want = by_hand(
        plan,
        z,
        lambda x, t: (
            (b := net(x, t, 0.3)) + 2.0 * (net(x, t, 0.1) - b) + 0.5 * (net(x, t, -0.2) - b)
        ),
    )
    assert torch.allclose(got, want, rtol=0, atol=1e-5)


def test_the_callback_sees_and_may_change_the_state_and_may_stop():
    plan, z, seen = plan_of(), unit(), []
    Sampler(plan, MODEL)(
        noise=z, callback=lambda step, x, x0: seen.append((step, x.clone(), x0.clone()))
    )
    assert [s[0] for s in seen] == list(range(plan.nfe))
    run = Run(plan, noise=z)
    for _, x, x0 in seen:
        run.step(net(run.model_input, run.t))
        assert same(run.x, x) and same(run.x0, x0)
    changed = Sampler(plan, MODEL)(
        noise=z, callback=lambda step, x, x0: x * 0 if step == plan.nfe - 1 else None
    )
    assert not changed.any()

    class Enough(Exception):
        pass

    def stop(step, x, x0):
        if step == 2:
            raise Enough

    sampler = Sampler(plan, MODEL)
    with pytest.raises(Enough):
        sampler(noise=z, callback=stop)
    assert same(sampler(noise=z), by_hand(plan, z)), "a stopped call leaves nothing behind"


@pytest.mark.parametrize("options", [{}, {"differentiable": True}], ids=["eager", "differentiable"])
def test_the_trajectory_is_every_state(options):
    plan, z = plan_of(), unit()
    x0, states = Sampler(plan, MODEL, **options)(noise=z, trajectory=True)
    run, expected = Run(plan, noise=z), []
    while not run.done:
        expected.append(run.x.clone())
        run.step(net(run.model_input, run.t))
    assert same(states, torch.stack([*expected, run.x])) and same(x0, run.x)


def test_progress_shows_a_bar(capsys, monkeypatch):
    Sampler(plan_of(), MODEL)(noise=unit(), progress=True)
    assert "5/5" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with pytest.raises(ImportError, match=r"needs tqdm; pip install 'fastsample\[demo\]'"):
        Sampler(plan_of(), MODEL)(noise=unit(), progress=True)


@pytest.mark.parametrize("options", [{}, {"differentiable": True}], ids=["eager", "differentiable"])
def test_images_states_and_masks(options):
    image, z = unit(seed=5), unit()
    make = lambda plan: Sampler(plan, MODEL, **options)
    plan = plan_of(n=8, start=3)
    run = Run(plan, latent=image, noise=z)
    while not run.done:
        run.step(net(run.model_input, run.t))
    assert same(make(plan)(latent=image, noise=z), run.x)
    plan = plan_of()
    assert same(make(plan)(latent=z, start=1), by_hand(plan, z))
    plan = plan_of("euler_ancestral", inpaint=True)
    mask = torch.rand(3, 1, 5, generator=torch.Generator().manual_seed(1))
    assert same(
        make(plan)(noise=z, seed=4, mask=mask, known=image),
        by_hand(plan, z, seed=4, mask=mask, known=image),
    )


@pytest.mark.parametrize("name", ["unipc", "dpmpp_2m_sde", "heun"])
def test_the_differentiable_path_gives_the_same_bits(name):
    plan, z = plan_of(name), unit()
    assert same(
        Sampler(plan, MODEL, differentiable=True)(noise=z, seed=2), by_hand(plan, z, seed=2)
    )


def test_gradients_reach_noise_conditions_and_the_plan():
    plan = plan_of("dpmpp_2m_sde", 3)
    z = unit(2, 3, dtype=torch.float64).requires_grad_()
    label = torch.tensor([0.5, 1.0], dtype=torch.float64, requires_grad=True)
    table = inplace.table(plan, torch.float64, torch.device("cpu")).f.clone()
    reads = torch.zeros_like(table)
    reads[1:-1, [0, plan.layout.at("p")]] = 1
    learned = torch.zeros_like(table, requires_grad=True)
    sampler = Sampler(plan, MODEL, differentiable=True, state_dtype=torch.float64)

    def run(z, label, learned):
        return sampler(noise=z, seed=3, cond={"label": label}, table=table + learned * reads)

    assert same(run(z, label, learned), sampler(noise=z, seed=3, cond={"label": label}))
    gradients = torch.autograd.grad(run(z, label, learned).square().sum(), (z, label, learned))
    assert all(bool(g.abs().sum() > 0) for g in gradients)
    step, direction = 1e-6, [torch.ones_like(v) for v in (z, label, learned)]
    for k, (value, along) in enumerate(zip((z, label, learned), direction, strict=True)):
        ends = []
        for sign in (1, -1):
            moved = [z, label, learned]
            moved[k] = value + sign * step * along
            ends.append(run(*moved).square().sum().item())
        slope = (ends[0] - ends[1]) / (2 * step)
        assert abs(slope - float((gradients[k] * along).sum())) <= 1e-6 * max(1.0, abs(slope)), (
            "central difference, error of order step^2"
        )


@pytest.mark.alone
def test_two_threads_on_one_sampler():
    plan, results = plan_of("unipc", 8), {}
    sampler = Sampler(plan, MODEL)
    noises = [unit(2, 4, 33, seed=k) for k in range(8)]

    def work(k):
        results[k] = sampler(
            noise=noises[k],
            seed=k,
            cond={"shift": 0.1},
            uncond={"shift": 0.0},
            guidance=2.0,
            batched_guidance=False,
        )

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k, z in enumerate(noises):
        alone = Sampler(plan, MODEL)(
            noise=z,
            seed=k,
            cond={"shift": 0.1},
            uncond={"shift": 0.0},
            guidance=2.0,
            batched_guidance=False,
        )
        assert same(results[k], alone)


def test_a_sampler_is_immutable():
    sampler = Sampler(plan_of(), MODEL)
    with pytest.raises(AttributeError, match="immutable; .*for_plan"):
        sampler.plan = plan_of()
    assert sampler.for_plan(plan_of(n=3)).plan.nfe == 3


def test_several_models():
    """Rows name the model they ask: here the second half asks another."""
    from dataclasses import replace

    plan, z = plan_of(n=4), unit()
    call = plan.call.copy()
    call[3:5] = 1
    two = replace(plan, call=call)
    other = lambda x, t: net(x, t) * 0.5
    run = Run(plan, noise=z)
    while not run.done:
        run.step((net if run.row < 3 else other)(run.model_input, run.t))
    assert same(Sampler(two, [MODEL, other])(noise=z), run.x)
    with pytest.raises(TypeError, match=r"1 model\(s\) for a plan that asks model 1"):
        Sampler(two, MODEL)


@pytest.mark.parametrize("options", [{}, {"differentiable": True}], ids=["eager", "differentiable"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_non_finite_sample_is_named_at_the_end(options, value):
    plan, z, rows = plan_of(), unit(4), []

    def broken(x, t):
        rows.append(1)
        f = net(x, t)
        return torch.where((torch.arange(4) % 2 == 1).view(4, 1, 1) & (len(rows) == 3), value, f)

    with pytest.raises(
        FloatingPointError, match="sample 1, 3 became non-finite at row 3; the model returned"
    ):
        Sampler(plan, broken, **options)(noise=z)
    assert len(rows) == plan.nfe


@pytest.mark.parametrize("options", [{}, {"differentiable": True}], ids=["eager", "differentiable"])
@pytest.mark.parametrize(
    "f",
    [
        torch.zeros(1, 2, 5),
        torch.zeros(3, 1, 5),
        torch.zeros(3, 2, 5, dtype=torch.float64),
        torch.zeros(3, 2, 5).numpy(),
        None,
        (torch.zeros(3, 2, 5),) * 2,
    ],
)
def test_outputs_that_do_not_fit_are_refused(options, f):
    with pytest.raises((ValueError, TypeError), match="the model returned"):
        Sampler(plan_of(), lambda x, t: f, **options)(noise=unit())


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        ({"guidance": 2.0}, ValueError, "guidance is given without uncond"),
        ({"uncond": {}}, ValueError, "given without guidance"),
        ({"branches": [{}, {}]}, ValueError, "given without guidance"),
        ({"branches": [{}], "cond": {}}, ValueError, "stand alone"),
        ({"branches": []}, ValueError, "one dict or more"),
        ({"cond": torch.zeros(3)}, TypeError, "cond is a Tensor; a dict"),
        (
            {"cond": {"label": torch.zeros(3)}, "uncond": {}, "guidance": 2.0},
            ValueError,
            "have keywords",
        ),
        (
            {"cond": {"label": torch.zeros(2)}},
            ValueError,
            r'cond\["label"\] has 2 samples for a batch of 3; 3, or fs.shared\(value\)',
        ),
        ({"table": torch.zeros(2, 2)}, ValueError, "table= is given without differentiable=True"),
        ({"noise": unit() * torch.nan}, ValueError, "noise holds NaN"),
        ({"noise": unit().requires_grad_()}, RuntimeError, "differentiable=True"),
    ],
)
def test_what_does_not_fit_is_refused(change, error, sentence):
    with pytest.raises(error, match=sentence):
        Sampler(plan_of(), MODEL)(**{"noise": unit(), **change})


def test_modes_and_arguments_of_a_sampler():
    with pytest.raises(
        ValueError, match="mode='graphs'; accepted are eager, compile-model, compile-loop, graph"
    ):
        Sampler(plan_of(), MODEL, mode="graphs")
    for mode in ("compile-loop", "graph"):
        with pytest.raises(ValueError, match=f"differentiable=True with mode='{mode}'"):
            Sampler(plan_of(), MODEL, mode=mode, differentiable=True)
    with pytest.raises(ValueError, match="made for prediction = 'flow' and the model's is 'x0'"):
        Sampler(plan_of(), Model(net, SCHEDULE, prediction="x0"))
    with pytest.raises(TypeError, match="plan is a str"):
        Sampler("plan", MODEL)
    with pytest.raises(ValueError, match="the plan reads 2 branches and 1 are given"):
        Sampler(guided(plan_of()), MODEL)(noise=unit(), guidance=2.0)
    with pytest.raises(ValueError, match="callback and progress need"):
        Sampler(plan_of(), MODEL, differentiable=True)(noise=unit(), callback=print)
    with pytest.raises(ValueError, match="table is"):
        Sampler(plan_of(), MODEL, differentiable=True)(noise=unit(), table=torch.zeros(2, 2))


def test_warm_calls_each_shape_once_and_draws_nothing():
    asked, state = [], torch.random.get_rng_state()

    def model(x, t, label):
        asked.append((tuple(x.shape), label.tolist()))
        return x * 0.5

    sampler = Sampler(plan_of("euler", 2), model)
    sampler.warm([(2, 3), (1, 3)], cond={"label": torch.tensor([7, 8])})
    assert asked == [((2, 3), [7, 8])] * 2 + [((1, 3), [7])] * 2
    assert torch.equal(torch.random.get_rng_state(), state)
    sampler.warm(
        [(2, 3)], uncond={"label": torch.zeros(2)}, guidance=2.0, cond={"label": torch.ones(2)}
    )
    assert asked[-1] == ((4, 3), [1, 1, 0, 0])
    with pytest.raises(
        ValueError, match=r'Sampler.warm: cond\["label"\] has 3 samples for a batch of 2'
    ):
        sampler.warm([(2, 3)], cond={"label": torch.ones(3)})
