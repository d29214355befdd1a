"""FsScheduler as servers meet it: configs, plans, lists of levels, copies, threads."""

import copy
import inspect
import json
import pickle
import threading

import numpy as np
import pytest
import torch

import fastsample
from fastsample import solvers
from fastsample.grids import from_sigmas, karras
from fastsample.schedules import DiscreteVP, Flow
from tests.oracle.pipelines import loop, network, start

diffusers = pytest.importorskip("diffusers")
diffusers.utils.logging.set_verbosity_error()
# diffusers' own
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
FsScheduler = fastsample.FsScheduler
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


# -- from and to configs ---------------------------------------------------------------------------
def test_from_config_keeps_what_the_config_says(tmp_path):
    """Live configs, configs as JSON, and there and back: an option left at one class's default is
    never read as another's.
    """
    for name, config in (
        ("DDIM", {}),
        ("HeunDiscrete", {}),
        ("EulerDiscrete", {**SD, "use_karras_sigmas": True}),
        ("DPMSolverMultistep", {**SD, "solver_order": 3}),
        ("FlowMatchEulerDiscrete", {"shift": 3.0}),
    ):
        peer = getattr(diffusers, f"{name}Scheduler")(**config)
        said = {k: v for k, v in peer.config.items() if not k.startswith("_")}
        ours = FsScheduler.from_config(peer.config)
        texts = [json.loads(s.to_json_string()) for s in (peer, ours)]
        for other in (ours.config, *texts):
            made = FsScheduler.from_config(other)
            assert made.config.source == ours.config.source == type(peer).__name__
            assert all(made.config[k] == v for k, v in said.items())
        assert type(peer).from_config(ours.config).config.items() >= said.items()
        assert set(ours.compatibles) == set(peer.compatibles)
    diffusers.HeunDiscreteScheduler(**SD).save_pretrained(tmp_path)
    assert FsScheduler.from_pretrained(tmp_path).config.source == "HeunDiscreteScheduler"
    # an old config that leaves defaults out: Heun's own, not ours
    bare = FsScheduler.from_config({"_class_name": "HeunDiscreteScheduler"})
    assert bare.config.beta_start == 0.00085 and FsScheduler().config.beta_start == 0.0001
    pndm = diffusers.PNDMScheduler(**SD, steps_offset=1, skip_prk_steps=True)
    source = "DPMSolverMultistepScheduler"
    swapped = FsScheduler.from_config(pndm, source=source, use_karras_sigmas=True).config
    assert swapped.steps_offset == 1 and swapped.beta_schedule == "scaled_linear"
    assert swapped.use_karras_sigmas


def test_one_eta_for_a_run_and_timesteps_that_are_not_read():
    """eta is DDIM's alone. A view of the scheduler's own timesteps says by its place which it is,
    and a device is not waited for.
    """
    x = start(2, 3, 4, 4)
    ddim = FsScheduler(source="DDIMScheduler", clip_sample=False, compat=None)
    euler = FsScheduler(source="EulerDiscreteScheduler", clip_sample=False)
    ddim.set_timesteps(4)
    ddim.step(x, ddim.timesteps[0], x, eta=0.5)
    with pytest.raises(ValueError, match="eta = 0.0 after 0.5"):
        ddim.step(x, ddim.timesteps[1], x)
    assert torch.equal(loop(euler, x, 4, eta=0.5), loop(euler, x, 4))
    ends = []
    for device in ("cpu", "meta"):  # a meta tensor has no value to read
        euler.set_timesteps(4, device=device)
        y = x
        for t in euler.timesteps:
            y = euler.step(0.3 * euler.scale_model_input(y, t), t, y).prev_sample
        ends.append(y)
    assert torch.equal(*ends)


# -- plans, copies, threads ------------------------------------------------------------------------
def test_a_plan_is_its_own_schedule():
    schedule, levels = Flow(shift=3.0), torch.tensor([1.0, 0.8, 0.5, 0.2, 0.0])
    model = fastsample.Model(None, schedule, "flow", time=1000)
    plan = solvers.dpmpp_2m(model, from_sigmas(schedule, [1.0, 0.8, 0.5, 0.2, 0.0]))
    scheduler = FsScheduler.from_plan(plan)
    assert scheduler.config.use_flow_sigmas
    assert scheduler.config.prediction_type == "flow_prediction"
    # what a pipeline would compute; the plan stays
    scheduler.set_timesteps(4, sigmas=[1.0, 0.75, 0.5, 0.25], mu=1.15)
    assert torch.allclose(scheduler.timesteps, 1000.0 * levels[:-1])
    assert scheduler.timesteps.dtype == torch.float32
    assert torch.allclose(scheduler.sigmas, levels) and scheduler.init_noise_sigma == 1.0
    told = "num_inference_steps asks for 5 steps and the plan makes 4 calls"
    with pytest.raises(ValueError, match=told):
        scheduler.set_timesteps(5)
    scheduler.set_timesteps(4)
    scheduler.set_begin_index(2)
    x = start(1, 4, 8)
    y = scheduler.step(network(x, 500.0), scheduler.timesteps[2], x).prev_sample
    fresh = solvers.dpmpp_2m(model, from_sigmas(schedule, [0.5, 0.2, 0.0]))
    run = fastsample.Run(fresh, latent=x, start=1)
    run.step(network(x, 500.0))
    assert torch.equal(y, run.x)
    edm = fastsample.schedules.EDM()
    guided = fastsample.guidance.guided(solvers.euler(edm, karras(edm, 4), prediction="edm"))
    with pytest.raises(ValueError, match="several guidance branches"):
        FsScheduler.from_plan(guided)


def test_sigmas_and_timesteps_go_to_every_solver():
    """An optimised list feeds the multistep solvers too: the levels asked for, the labels that
    belong to them, and the end.
    """
    asked = [14.0, 6.0, 2.0, 0.5, 0.0]
    for name in ("DPMSolverMultistep", "UniPCMultistep", "EulerDiscrete", "HeunDiscrete"):
        source = f"{name}Scheduler"
        scheduler = FsScheduler(source=source, **SD, solver_type="midpoint", compat=None)
        scheduler.set_timesteps(sigmas=asked)
        points = [0, *range(1, len(scheduler.timesteps), scheduler.order)]
        assert torch.allclose(scheduler.sigmas[[*points, -1]], torch.tensor(asked))
        told = scheduler.timesteps[points].double().numpy()
        levels = np.exp(-DiscreteVP.scaled_linear().half_log_snr(told))
        assert np.allclose(levels, asked[:-1], rtol=1e-5)
        scheduler.set_timesteps(timesteps=[900, 500, 100])
        assert scheduler.timesteps.unique().tolist() == [100, 500, 900]
    arguments = lambda method: inspect.signature(method).parameters.keys()
    assert {"timesteps", "sigmas", "mu"} <= arguments(FsScheduler.set_timesteps)
    assert {"eta", "generator"} <= arguments(FsScheduler.step)


TRAILING = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}


@pytest.mark.parametrize(
    ("config", "steps"),
    [
        *(
            ({"solver_order": 3, "final_sigmas_type": "sigma_min", f"use_{kind}_sigmas": True}, n)
            for kind in ("karras", "exponential")
            for n in (14, 15, 40)
        ),
        ({}, 1000),
        ({"source": "UniPCMultistepScheduler"}, 1000),
        ({"beta_schedule": "squaredcos_cap_v2", "use_karras_sigmas": True}, 20),
        ({"source": "UniPCMultistepScheduler", "solver_type": "bh1"}, 9),
        (TRAILING | {"source": "EulerDiscreteScheduler"}, 8),
        (TRAILING | {"prediction_type": "v_prediction"}, 8),
        ({"source": "UniPCMultistepScheduler", "solver_order": 3, "lower_order_final": False}, 9),
    ],
)
def test_grids_that_break_the_peers_are_whole_here(config, steps):
    """NaN at n >= 15, at n = 1000, an IndexError, a singular system, a wasted last call: levels are
    distinct here, results finite.
    """
    scheduler = FsScheduler(**config, compat=None)
    scheduler.set_timesteps(steps)
    assert len(scheduler.timesteps) == steps and (scheduler.sigmas.diff() < 0).all()
    assert torch.isfinite(loop(scheduler, start(1, 4), steps, lambda x, t: 0.3 * x)).all()


def test_add_noise_is_the_peers():
    """At training timesteps, at schedule timesteps and at the begin index."""
    x, n = start(2, 3, 4, 4), start(2, 3, 4, 4, seed=1)
    for name, config in (
        ("DDIMScheduler", SD),
        ("DPMSolverMultistepScheduler", SD),
        ("EulerDiscreteScheduler", SD),
        ("UniPCMultistepScheduler", {}),
    ):
        peer = getattr(diffusers, name)(**config)
        ours = FsScheduler.from_config(peer, compat="diffusers")
        for scheduler in (peer, ours):
            scheduler.set_timesteps(8)
        noised = [
            [s.add_noise(x, n, s.timesteps[at]) for at in ([2, 5], [3])] for s in (peer, ours)
        ]
        pairs = list(zip(*noised, strict=True))
        if hasattr(peer, "set_begin_index"):
            for scheduler in (peer, ours):
                scheduler.set_begin_index(4)
            pairs.append(tuple(s.add_noise(x, n, s.timesteps[:2]) for s in (peer, ours)))
        assert all(torch.allclose(a, b, rtol=2e-6, atol=2e-6) for a, b in pairs)
    peer = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    flow = (peer, FsScheduler.from_config(peer))
    for scheduler in flow:
        scheduler.set_timesteps(8)
    a, b = (s.scale_noise(x, s.timesteps[[3]], n) for s in flow)
    assert torch.allclose(a, b, rtol=1e-6, atol=1e-6)
    at = torch.tensor([10, 990])
    a, b = (s(**SD).add_noise(x, n, at) for s in (FsScheduler, diffusers.DDIMScheduler))
    assert torch.allclose(a, b, rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match="noise"):
        ours.add_noise(x, torch.cat([n, n[:1]]), torch.tensor([10]))


@pytest.mark.parametrize("name", ["EulerAncestralDiscrete", "UniPCMultistep"])
def test_copies_share_tables_and_nothing_else(name):
    """Servers deep-copy one scheduler for each request and step them in turns, or copy one in the
    middle of its run.
    """
    first = FsScheduler.from_config(getattr(diffusers, f"{name}Scheduler")(**SD))
    first.set_timesteps(6)
    starts = [start(1, 3, 4, 4, seed=s) for s in range(3)]
    draws, again = ([torch.Generator().manual_seed(s) for s in range(3)] for _ in range(2))
    alone = [
        loop(copy.deepcopy(first), x, 6, generator=g) for x, g in zip(starts, again, strict=True)
    ]
    copies, xs = [copy.deepcopy(first) for _ in starts], list(starts)
    assert all(c.plan is first.plan and c.config is first.config for c in copies)
    for k, t in enumerate(first.timesteps):
        if k == 3:  # their history comes along, and what the copies do then is their own
            others = copy.deepcopy(copies)
        for i, c in enumerate(copies):
            output = network(c.scale_model_input(xs[i], t), t)
            xs[i] = c.step(output, t, xs[i], generator=draws[i], return_dict=False)[0]
            if k == 3:
                others[i].step(starts[i], t, xs[i - 1])
    assert all(torch.equal(a, b) for a, b in zip(alone, xs, strict=True))
    loaded = pickle.loads(pickle.dumps(first))
    end = loop(loaded, starts[0], 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(end, alone[0])


@pytest.mark.alone
def test_threads_on_one_scheduler():
    """Each thread that sets timesteps has its own loop."""
    scheduler = FsScheduler.from_config(diffusers.UniPCMultistepScheduler(**SD))
    starts = [start(2, 3, 8, 8, seed=s) for s in range(4)]
    alone = [loop(scheduler, x, 5 + s) for s, x in enumerate(starts)]
    together, gate = [None] * 4, threading.Barrier(4)

    def work(s):
        gate.wait()
        for _ in range(3):
            together[s] = loop(scheduler, starts[s], 5 + s)

    threads = [threading.Thread(target=work, args=(s,)) for s in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


@pytest.mark.alone
def test_a_thread_without_a_loop_is_given_the_only_one_or_told_what_to_do():
    scheduler, seen = FsScheduler(**SD), []
    scheduler.set_timesteps(3)

    def look():
        try:
            seen.append(scheduler.timesteps)
        except ValueError as error:
            seen.append(str(error))

    def visit():
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()

    def drive():
        scheduler.set_timesteps(4)
        ready.set()
        over.wait()

    visit()
    assert seen[-1] is scheduler.timesteps  # one loop, driven by worker threads in turn
    ready, over = threading.Event(), threading.Event()
    second = threading.Thread(target=drive)
    second.start()
    ready.wait()
    visit()
    over.set()
    second.join()
    told = "this one has none; call set_timesteps in the thread that steps"
    assert f"2 other threads have a loop and {told}" in seen[-1]
