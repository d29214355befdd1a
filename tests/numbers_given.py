"""Every public argument that is a number, each as a call of it alone: what is made, told apart by
`outcome`. For tests.
"""

from functools import partial

import numpy as np
import torch

import fastsample as fs
from fastsample import grids, guidance, metrics, optimize, schedules, solvers
from fastsample.plan import Plan
from fastsample.schedules import EDM, VP, DiscreteVP, Flow
from fastsample.trajectories import Trajectory, record

SD = DiscreteVP.scaled_linear()
GRID = [9.0, 4.0, 1.0, 0.0]
Z = torch.randn(2, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
MODEL = fs.Model(lambda x, t: torch.tanh(0.5 * x), EDM(), "x0")


def plan(maker="euler", **words):
    return solvers.SOLVERS[maker](EDM(), GRID, prediction="x0", **words)


DRAWS, GUIDED = plan("euler_ancestral"), guidance.guided(plan("ddim", eta=0.5))


def sampled(made=DRAWS, **words):
    return fs.Sampler(made, MODEL.fn)(**{"noise": Z, "seed": 3, **words})


def guided(**words):
    given = {"noise": Z, "seed": 3, "guidance": 3.0, "cond": {}, "uncond": {}, **words}
    return fs.Sampler(GUIDED, MODEL.fn)(**given)


def ran(made=DRAWS, restart=None, **words):
    run = fs.Run(made, **{"noise": Z, "seed": 3, **words})
    if restart is not None:
        run.restart(noise=Z, **restart)
    while run.row < run.end:
        run.step(0.5 * run.model_input[: len(run.x)])
    return run.x.clone()


def served(capacity=4, **words):
    options = {k: words.pop(k) for k in ("pad_to", "waiting", "overtakes") if k in words}
    engine = fs.Engine(MODEL.fn, (8,), capacity=capacity, **options)
    ticket = engine.submit(DRAWS, **{"noise": Z[:1].float(), "seed": 3, **words})
    engine.run()
    return ticket.result().clone()


def k_sampled(**words):
    torch.manual_seed(0)
    return fs.interop.k_sample(DRAWS, lambda x, s: 0.5 * x, 9 * Z, disable=True, **words)


def scheduled(source="EulerDiscreteScheduler", steps=3, **words):
    config = {"compat": None, **words}
    scheduler = fs.FsScheduler(source=source, **config)
    scheduler.set_timesteps(steps)
    return scheduler.sigmas, scheduler.timesteps


def searched(search, budget=3, z=Z, **words):
    found = search(MODEL, z, budget, **{"teacher": 9, **words})
    return [found.plans[m].numbers() for m in sorted(found.plans)]  # a note says the words as given


def _schedules():
    for name, words in (
        ("VP", ("beta_max",)),
        ("VE", ("sigma_max",)),
        ("EDM", ("sigma_max", "sigma_data")),
        ("Flow", ("shift",)),
        ("TrigFlow", ("sigma_data",)),
        ("CosmosRFlow", ("sigma_max", "sigma_data")),
    ):
        for word in words:
            yield f"{name}.{word}", lambda v, n=name, w=word: getattr(schedules, n)(**{w: v})
    yield "Shifted.log_snr", lambda v: schedules.Shifted(Flow(), v)
    yield "sigma(t)", lambda v: EDM().sigma(v)


def _grids():
    for name, word, on in (
        ("karras", "rho", EDM()),
        ("polyexponential", "rho", EDM()),
        ("time_quadratic", "rho", EDM()),
        ("beta_diffusers", "alpha", EDM()),
        ("beta_diffusers", "beta", EDM()),
        ("beta_comfyui", "alpha", SD),
        ("laplace", "mu", EDM()),
        ("laplace", "beta", EDM()),
        ("leading", "offset", SD),
        ("vp", "beta_d", VP()),
    ):
        made = getattr(grids, name)
        yield f"grids.{name}.{word}", lambda v, f=made, w=word, s=on: f(s, 4, **{w: v})
    yield "grids.starting_at.level", lambda v: grids.starting_at(EDM(), GRID, v)
    yield "grids.shifted.log_snr", lambda v: grids.shifted(Flow(), [1.0, 0.5, 0.0], v)


def _makers():
    for maker, words in (
        ("ddim", ("clip", "level")),
        ("euler_ancestral", ("eta", "s_noise")),
        ("heun", ("s_churn", "s_noise")),
        ("lcm", ("timestep_scaling", "sigma_data")),
        ("dpmpp_2m_sde", ("eta", "s_noise")),
        ("cm", ("sigma_min", "s_noise")),
    ):
        for word in words:
            made = lambda v, m=maker, w=word: plan(m, **{w: v})
            yield f"{maker}.{word}", made
    yield "heun.s_tmin", lambda v: plan("heun", s_churn=1.0, s_tmin=v)
    yield "heun.s_tmax", lambda v: plan("heun", s_churn=1.0, s_tmax=v)
    yield "remake.level", lambda v: plan().remake(level=v)
    yield "Model.time", lambda v: fs.Model(None, Flow(), "flow", time=v).to_json()
    yield "Model.sigma_data", lambda v: fs.Model(None, EDM(), "edm", sigma_data=v).to_json()
    yield "guided.interval", lambda v: guidance.guided(plan(), 2, (0.0, v))


def _runs():
    yield "Sampler.guidance", lambda v: guided(guidance=v)
    yield "Sampler.noise_scale", lambda v: sampled(noise_scale=v)
    yield "Sampler.level", lambda v: sampled(noise=None, latent=Z, level=v)
    yield "Run.noise_scale", lambda v: ran(noise_scale=v)
    yield "Engine.level", lambda v: served(noise=None, latent=Z[:1].float(), level=v)
    yield "Engine.deadline", lambda v: served(deadline=v)
    yield "k_sample.eta", lambda v: k_sampled(eta=v)
    yield "k_sample.s_noise", lambda v: k_sampled(s_noise=v)
    yield "metrics.psnr.data_range", lambda v: metrics.psnr(Z, Z + 0.1, data_range=v)
    yield "FsScheduler.flow.shift", lambda v: scheduled("FlowMatchEulerDiscreteScheduler", shift=v)
    yield "FsScheduler.sigma_max", lambda v: scheduled(use_karras_sigmas=True, sigma_max=v)


def _searches():
    for name, words in (("oss", ("p",)), ("gits", ("gamma",))):
        for word in words:
            made = getattr(optimize, name)
            yield f"{name}.{word}", lambda v, f=made, w=word: searched(f, **{w: v})


# of 3, or of as much as a number means there
REALS = dict([*_schedules(), *_grids(), *_makers(), *_runs()])
SEARCHED = dict(_searches())


ON_LEVELS = """
    uniform uniform_half_log_snr karras exponential polyexponential time_quadratic kl_optimal
    beta_diffusers bong_tangent laplace fine
"""
ON_A_TABLE = "trailing leading linspace simple normal sgm_uniform ddim_uniform beta57"


def _counted():
    for names, schedule in ((ON_LEVELS, EDM()), (ON_A_TABLE, SD)):
        for name in names.split():
            yield f"grids.{name}.n", partial(getattr(grids, name), schedule)
    yield "grids.refined.parts", lambda v: grids.refined(EDM(), GRID, v)
    yield "grids.linear_quadratic.n", lambda v: grids.linear_quadratic(Flow(), v)
    for name in ("linear", "scaled_linear", "cosine"):
        yield f"DiscreteVP.{name}", lambda v, n=name: getattr(DiscreteVP, n)(v)
    yield "unipc.order", lambda v: plan("unipc", order=v)
    yield "er_sde.order", lambda v: plan("er_sde", order=v)
    long = solvers.euler(EDM(), grids.karras(EDM(), 6), prediction="x0")
    yield "maker.start", lambda v: solvers.euler(EDM(), long.note["grid"], prediction="x0", start=v)
    yield "remake.start", lambda v: long.remake(v)
    yield "padded", lambda v: long.padded(S=v)
    yield "guided.branches", lambda v: guidance.guided(long, v)
    yield "Run.seed", lambda v: ran(seed=v)
    yield "Run.stage", lambda v: ran(stage=v)
    yield "Run.copies", lambda v: ran(copies=v)
    yield "Run.start", lambda v: ran(long, noise=None, latent=Z, start=v)
    yield "restart.seed", lambda v: ran(restart={"seed": v})
    yield "Sampler.seed", lambda v: sampled(seed=v)
    yield "Sampler.stage", lambda v: sampled(stage=v)
    yield "Sampler.start", lambda v: sampled(long, noise=None, latent=Z, start=v)
    yield "Engine.capacity", lambda v: served(capacity=v)
    yield "Engine.pad_to", lambda v: served(pad_to=v)
    yield "Engine.waiting", lambda v: served(waiting=v)
    yield "Engine.overtakes", lambda v: served(overtakes=v)
    yield "Engine.every", lambda v: served(every=v)
    yield "Engine.seed", lambda v: served(seed=v)
    yield "Engine.stage", lambda v: served(stage=v)
    yield "k_sample.seed", lambda v: k_sampled(seed=v)
    yield "k_sample.stage", lambda v: k_sampled(seed=1, stage=v)
    yield "metrics.run.batch_size", lambda v: metrics.run(DRAWS, MODEL, Z, seed=1, batch_size=v)
    yield "metrics.run.seed", lambda v: metrics.run(DRAWS, MODEL, Z, seed=v)
    yield "record.seed", lambda v: record(DRAWS, MODEL, Z, seed=v)
    yield "record.batch_size", lambda v: record(DRAWS, MODEL, Z, seed=1, batch_size=v)
    yield "FsScheduler.set_timesteps", lambda v: scheduled(steps=v)
    yield "FsScheduler.solver_order", lambda v: scheduled("UniPCMultistepScheduler", solver_order=v)
    yield "FsScheduler.steps_offset", lambda v: scheduled(steps_offset=v)
    yield "FsScheduler.train", lambda v: scheduled(num_train_timesteps=v)


def _searches_counted():
    yield "oss.budget", lambda v: searched(optimize.oss, budget=v)
    yield "gits.budget", lambda v: searched(optimize.gits, budget=v)
    yield "fit.beam", lambda v: searched(optimize.fit, beam=v)
    yield "fit.history", lambda v: searched(optimize.fit, beam=1, history=v)
    yield "oss.teacher", lambda v: searched(optimize.oss, budget=2, teacher=v)
    yield "oss.batch_size", lambda v: searched(optimize.oss, batch_size=v)
    yield "oss.seed", lambda v: searched(optimize.oss, seed=v)
    yield "oss.seed of a shape", lambda v: searched(optimize.oss, z=(2, 8), seed=v)
    yield "hand_made.nfe", lambda v: metrics.hand_made(EDM(), v)


COUNTS = dict(_counted())
SEARCHED_COUNTS = dict(_searches_counted())


def outcome(made):
    """What was made, as what compares by ==."""
    if isinstance(made, Plan):
        return made.to_bytes()
    if isinstance(made, Trajectory):
        return outcome([made.x, made.x0])
    if isinstance(made, (np.ndarray, torch.Tensor)):
        return np.asarray(made).tolist()
    if isinstance(made, (list, tuple)):
        return [outcome(each) for each in made]
    if isinstance(made, dict):
        return {key: outcome(each) for key, each in made.items()}
    return made
