"""FsScheduler as servers and careless callers meet it: configs, plans, copies, threads, bad "
"input."""

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
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning"
)  # diffusers' own
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
        for other in (
            json.loads(peer.to_json_string()),
            ours.config,
            json.loads(ours.to_json_string()),
        ):
            made = FsScheduler.from_config(other)
            assert made.config.source == ours.config.source == type(peer).__name__
            assert all(made.config[k] == v for k, v in said.items())
        assert type(peer).from_config(ours.config).config.items() >= said.items()
        assert type(peer) in ours.compatibles or name == "FlowMatchEulerDiscrete"
    diffusers.HeunDiscreteScheduler(**SD).save_pretrained(tmp_path)
    assert FsScheduler.from_pretrained(tmp_path).config.source == "HeunDiscreteScheduler"
    bare = FsScheduler.from_config(
        {"_class_name": "HeunDiscreteScheduler"}
    )  # an old config that leaves defaults out: Heun's own, not ours
    assert bare.config.beta_start == 0.00085 and FsScheduler().config.beta_start == 0.0001
    pndm = diffusers.PNDMScheduler(**SD, steps_offset=1, skip_prk_steps=True)
    swapped = FsScheduler.from_config(
        pndm, source="DPMSolverMultistepScheduler", use_karras_sigmas=True
    )
    assert (
        swapped.config.steps_offset == 1
        and swapped.config.beta_schedule == "scaled_linear"
        and swapped.config.use_karras_sigmas
    )


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda: FsScheduler.from_config(diffusers.IPNDMScheduler()),
            "IPNDMScheduler is not reproduced; the closest is DPMSolverMultistep",
        ),
        (
            lambda: FsScheduler.from_config(diffusers.PNDMScheduler()),
            "skip_prk_steps = False of PNDMScheduler is not reproduced; True is",
        ),
        (lambda: FsScheduler.from_config(diffusers.TCDScheduler()), "the closest is LCMScheduler"),
        (
            lambda: FsScheduler.from_config(diffusers.LCMScheduler().config),
            "fits ['LCMScheduler', 'TCDScheduler']",
        ),
        (
            lambda: FsScheduler.from_config({"_class_name": "os.system"}),
            "os.system is not reproduced",
        ),
        (lambda: FsScheduler.from_config("folder"), "a str was given"),
        (
            lambda: FsScheduler.from_config(diffusers.DDIMScheduler(thresholding=True)),
            "thresholding = True",
        ),
        (
            lambda: FsScheduler.from_config(diffusers.UniPCMultistepScheduler(predict_x0=False)),
            "predict_x0 = False",
        ),
        (
            lambda: FsScheduler.from_config(
                diffusers.UniPCMultistepScheduler(disable_corrector=[0])
            ),
            "disable_corrector = [0]",
        ),
        (
            lambda: FsScheduler.from_config(
                diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
            ),
            "invert_sigmas = True",
        ),
        (
            lambda: FsScheduler(solver_order=3, algorithm_type="sde-dpmsolver++"),
            "wrong in diffusers",
        ),
        (
            lambda: FsScheduler.from_config(diffusers.DDPMScheduler(variance_type="fixed_large")),
            "variance_type = 'fixed_large'",
        ),
        (lambda: FsScheduler(beta_start=float("nan")), "beta_start = nan"),
        (lambda: FsScheduler(beta_end=-0.1), "beta_end = -0.1"),
        (lambda: FsScheduler(num_train_timesteps=10**9), "num_train_timesteps = 1000000000"),
        (lambda: FsScheduler(compat="k"), "compat = 'k'"),
        (lambda: FsScheduler(plan="AAAA"), "the config's plan cannot be read"),
        (lambda: FsScheduler(prediction_type="flow_prediction"), "on vp scale"),
        (lambda: FsScheduler().set_timesteps(0), "0 steps"),
        (lambda: FsScheduler().set_timesteps(-1), "-1 steps"),
        (lambda: FsScheduler().set_timesteps(2.5), "2.5 steps"),
        (lambda: FsScheduler().set_timesteps(), "one number of steps"),
        (lambda: FsScheduler().set_timesteps(2000), "at most 1000"),
        (lambda: FsScheduler().set_timesteps(timesteps=[1, 500]), "falling"),
        (lambda: FsScheduler().set_timesteps(timesteps=[5000, 10]), "from 999 down"),
        (lambda: FsScheduler().set_timesteps(sigmas=[1.0, 1.0, 0.0]), "strictly falling"),
        (lambda: FsScheduler().set_timesteps(sigmas=[float("nan"), 0.0]), "falling"),
        (lambda: FsScheduler().set_timesteps(sigmas=[]), "-1 steps"),
        (lambda: FsScheduler().set_timesteps(4, sigmas=[1.0, 0.5, 0.0]), "steps [2, 4]"),
        (
            lambda: FsScheduler(use_karras_sigmas=True).set_timesteps(timesteps=[9, 5]),
            "use_karras_sigmas",
        ),
        (
            lambda: FsScheduler(compat="diffusers").set_timesteps(sigmas=[1.0, 0.0]),
            "takes no sigmas",
        ),
        (lambda: FsScheduler(compat="diffusers").set_timesteps(1000), "repeats a noise level"),
        (
            lambda: FsScheduler(
                source="FlowMatchEulerDiscreteScheduler", use_dynamic_shifting=True
            ).set_timesteps(8),
            "mu = None",
        ),
        (
            lambda: FsScheduler().step(torch.zeros(1, 3), 999, torch.zeros(1, 3)),
            "call set_timesteps first",
        ),
        (
            lambda: FsScheduler(
                rescale_betas_zero_snr=True, timestep_spacing="trailing", compat=None
            ).set_timesteps(8),
            "'eps' at alpha = 0",
        ),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(make, sentence):
    with pytest.raises((ValueError, TypeError)) as error:
        make()
    assert sentence in str(error.value) and "\n" not in str(error.value)


def bad_steps():
    """(what, (model output, timestep or its index, sample), sentence)"""
    x, f = torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)
    nan, inf = torch.full_like(x, torch.nan), torch.full_like(x, torch.inf)
    yield "NaN latents", (f, 0, nan), "latent holds NaN"
    yield "infinite output", (inf, 0, x), "no longer finite"
    yield "output of batch 1", (f[:1], 0, x), "nothing is broadcast"
    yield "output of one channel", (f[:, :1], 0, x), "nothing is broadcast"
    yield "integer latents", (f, 0, x.long()), "sample is torch.int64"
    yield "a number for an output", (0.0, 0, x), "model_output is float"
    yield "out of order", (f, 2, x), None
    yield "no such timestep", (f, None, x), "not in the schedule"
    yield "a batch of timesteps", (f, "batch", x), "one timestep for the whole batch"


@pytest.mark.parametrize(
    ("what", "given", "sentence"), list(bad_steps()), ids=[b[0] for b in bad_steps()]
)
def test_bad_steps_are_refused_and_leave_nothing_behind(what, given, sentence):
    scheduler = FsScheduler.from_config(diffusers.DPMSolverMultistepScheduler(**SD))
    scheduler.set_timesteps(5)
    good = loop(copy.deepcopy(scheduler), start(2, 3, 4, 4), 5)
    f, at, x = given
    times = scheduler.timesteps
    t = 1234 if at is None else times[:2] if at == "batch" else times[at]
    if sentence is None:  # a first step may start anywhere; a second may not
        scheduler.step(f, times[0], x)
        t, sentence = times[3], "is out of order; 799 is next"
    with pytest.raises((ValueError, TypeError), match=sentence.replace("[", "\\[")):
        scheduler.step(f, t, x)
    assert torch.equal(loop(scheduler, start(2, 3, 4, 4), 5), good)


def test_steps_past_the_end_and_other_shapes_are_refused():
    scheduler = FsScheduler.from_config(diffusers.UniPCMultistepScheduler())
    x = loop(scheduler, start(2, 3, 4, 4), 3)
    with pytest.raises(IndexError, match="step 3 of 3"):
        scheduler.step(x, scheduler.timesteps[-1], x)
    scheduler.set_timesteps(3)
    scheduler.step(x, scheduler.timesteps[0], x)
    with pytest.raises(ValueError, match="one shape for the whole run"):
        scheduler.step(x[:1], scheduler.timesteps[1], x[:1])


def test_one_eta_for_a_run_and_timesteps_that_are_not_read():
    """eta is DDIM's alone. A view of the scheduler's own timesteps says by its place which it is: a
    device is not waited for.
    """
    x = start(2, 3, 4, 4)
    ddim, euler = (
        FsScheduler(source=f"{name}Scheduler", clip_sample=False)
        for name in ("DDIM", "EulerDiscrete")
    )
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
    schedule = Flow(shift=3.0)
    plan = solvers.dpmpp_2m(
        fastsample.Model(None, schedule, "flow", time=1000),
        from_sigmas(schedule, [1.0, 0.8, 0.5, 0.2, 0.0]),
    )
    scheduler = FsScheduler.from_plan(plan)
    assert (
        scheduler.config.use_flow_sigmas and scheduler.config.prediction_type == "flow_prediction"
    )
    scheduler.set_timesteps(
        4, sigmas=[1.0, 0.75, 0.5, 0.25], mu=1.15
    )  # what a pipeline would compute; the plan stays
    assert (
        torch.allclose(scheduler.timesteps, torch.tensor([1000.0, 800.0, 500.0, 200.0]))
        and scheduler.timesteps.dtype == torch.float32
    )
    assert (
        torch.allclose(scheduler.sigmas, torch.tensor([1.0, 0.8, 0.5, 0.2, 0.0]))
        and scheduler.init_noise_sigma == 1.0
    )
    with pytest.raises(
        ValueError, match="num_inference_steps asks for 5 steps and the plan makes 4 calls"
    ):
        scheduler.set_timesteps(5)
    scheduler.set_timesteps(4)
    scheduler.set_begin_index(2)
    x = start(1, 4, 8)
    y = scheduler.step(network(x, 500.0), scheduler.timesteps[2], x).prev_sample
    fresh = solvers.dpmpp_2m(
        fastsample.Model(None, schedule, "flow", time=1000), from_sigmas(schedule, [0.5, 0.2, 0.0])
    )
    run = fastsample.Run(fresh, latent=x, start=1)
    run.step(network(x, 500.0))
    assert torch.equal(y, run.x)
    edm = fastsample.schedules.EDM()
    with pytest.raises(ValueError, match="several guidance branches"):
        FsScheduler.from_plan(
            fastsample.guidance.guided(solvers.euler(edm, karras(edm, 4), prediction="edm"))
        )


def test_sigmas_and_timesteps_go_to_every_solver():
    """An optimised list feeds the multistep solvers too: the levels asked for, the labels that
    belong to them, and the end.
    """
    for source in (
        "DPMSolverMultistepScheduler",
        "UniPCMultistepScheduler",
        "EulerDiscreteScheduler",
        "HeunDiscreteScheduler",
    ):
        scheduler = FsScheduler(source=source, **SD, solver_type="midpoint", compat=None)
        scheduler.set_timesteps(sigmas=[14.0, 6.0, 2.0, 0.5, 0.0])
        levels = scheduler.sigmas[[0, *range(1, len(scheduler.timesteps), scheduler.order), -1]]
        assert torch.allclose(levels, torch.tensor([14.0, 6.0, 2.0, 0.5, 0.0]))
        told = (
            scheduler.timesteps[[0, *range(1, len(scheduler.timesteps), scheduler.order)]]
            .double()
            .numpy()
        )
        assert np.allclose(
            np.exp(-DiscreteVP.scaled_linear().half_log_snr(told)), [14.0, 6.0, 2.0, 0.5], rtol=1e-5
        )
        scheduler.set_timesteps(timesteps=[900, 500, 100])
        assert scheduler.timesteps.unique().tolist() == [100, 500, 900]
    assert {"timesteps", "sigmas", "mu"} <= inspect.signature(
        FsScheduler.set_timesteps
    ).parameters.keys()
    assert {"eta", "generator"} <= inspect.signature(FsScheduler.step).parameters.keys()


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
        (
            {
                "source": "EulerDiscreteScheduler",
                "rescale_betas_zero_snr": True,
                "timestep_spacing": "trailing",
            },
            8,
        ),
        (
            {
                "prediction_type": "v_prediction",
                "rescale_betas_zero_snr": True,
                "timestep_spacing": "trailing",
            },
            8,
        ),
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
    """At training timesteps, at schedule timesteps, at the begin index and in the middle of a "
    "run."""
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
        pairs = [
            (s.add_noise(x, n, s.timesteps[[2, 5]]), s.add_noise(x, n, s.timesteps[[3]]))
            for s in (peer, ours)
        ]
        if hasattr(peer, "set_begin_index"):
            for scheduler in (peer, ours):
                scheduler.set_begin_index(4)
            pairs.append(
                (peer.add_noise(x, n, peer.timesteps[:2]), ours.add_noise(x, n, ours.timesteps[:2]))
            )
        assert all(
            torch.allclose(a, b, rtol=2e-6, atol=2e-6)
            for a, b in [*zip(*pairs[:2], strict=True), *pairs[2:]]
        )
    flow = [
        make(diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0))
        for make in (lambda s: s, FsScheduler.from_config)
    ]
    for scheduler in flow:
        scheduler.set_timesteps(8)
    a, b = (s.scale_noise(x, s.timesteps[[3]], n) for s in flow)
    assert torch.allclose(a, b, rtol=1e-6, atol=1e-6)
    trained = FsScheduler(**SD).add_noise(x, n, torch.tensor([10, 990]))
    assert torch.allclose(
        trained,
        diffusers.DDIMScheduler(**SD).add_noise(x, n, torch.tensor([10, 990])),
        rtol=1e-6,
        atol=1e-6,
    )
    with pytest.raises(ValueError, match="one shape"):
        ours.add_noise(x, n[:1], torch.tensor([10]))


@pytest.mark.parametrize("name", ["EulerAncestralDiscrete", "UniPCMultistep"])
def test_copies_share_tables_and_nothing_else(name):
    """Servers deep-copy one scheduler for each request and step them in turns, or copy one in the
    middle of its run.
    """
    first = FsScheduler.from_config(getattr(diffusers, f"{name}Scheduler")(**SD))
    first.set_timesteps(6)
    starts, draws = (
        [start(1, 3, 4, 4, seed=s) for s in range(3)],
        [torch.Generator().manual_seed(s) for s in range(3)],
    )
    alone = [
        loop(copy.deepcopy(first), x, 6, generator=torch.Generator().manual_seed(s))
        for s, x in enumerate(starts)
    ]
    copies, xs = [copy.deepcopy(first) for _ in starts], list(starts)
    assert all(c.plan is first.plan and c.config is first.config for c in copies)
    for k, t in enumerate(first.timesteps):
        if k == 3:  # their history comes along, and what the copies do then is their own
            others = copy.deepcopy(copies)
        for i, c in enumerate(copies):
            xs[i] = c.step(
                network(c.scale_model_input(xs[i], t), t),
                t,
                xs[i],
                generator=draws[i],
                return_dict=False,
            )[0]
            if k == 3:
                others[i].step(starts[i], t, xs[i - 1])
    assert all(torch.equal(a, b) for a, b in zip(alone, xs, strict=True))
    again = pickle.loads(pickle.dumps(first))
    assert torch.equal(
        loop(again, starts[0], 6, generator=torch.Generator().manual_seed(0)), alone[0]
    )


def test_threads_on_one_scheduler():
    """Each thread that sets timesteps has its own loop; a thread without one is given the only one,
    or told what to do.
    """
    scheduler = FsScheduler.from_config(diffusers.UniPCMultistepScheduler(**SD))
    starts = [start(2, 3, 8, 8, seed=s) for s in range(4)]
    alone, together, gate = (
        [loop(scheduler, x, 5 + s) for s, x in enumerate(starts)],
        [None] * 4,
        threading.Barrier(4),
    )

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
    seen = []

    def look():
        try:
            seen.append(scheduler.timesteps)
        except ValueError as error:
            seen.append(str(error))

    def visit():
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()

    scheduler = FsScheduler(**SD)
    scheduler.set_timesteps(3)
    visit()
    assert seen[-1] is scheduler.timesteps  # one loop, driven by worker threads in turn
    other = threading.Event(), threading.Event()
    second = threading.Thread(
        target=lambda: (scheduler.set_timesteps(4), other[0].set(), other[1].wait())
    )
    second.start()
    other[0].wait()
    visit()
    other[1].set()
    second.join()
    assert (
        "2 other threads have a loop and this one has none; call set_timesteps in the thread that "
        "steps" in seen[-1]
    )
