"""Making plans: a multistep solver's on a grid that it has not seen, and `set_timesteps` of an
FsScheduler for counts that were never asked for, beside the diffusers class it stands in for.

Nothing is remembered between the calls that are timed: every plan is made, packed, checked and
compared with its schedule. A scheduler's own making stands outside the clock on both sides; what
both tell as timesteps is compared first.
"""

import diffusers
import pytest
import torch
from measure import figure, interleaved

import fastsample as fs
from fastsample.interop.diffusers import FsScheduler, runs
from fastsample.solvers import SOLVERS

MULTISTEP = ("dpmpp_2m", "dpmpp_3m", "dpmpp_2m_sde", "dpmpp_3m_sde", "dpm_solver", "unipc", "deis")
MULTISTEP += ("lms", "ipndm", "ipndm_v", "adams_bashforth", "gradient_estimation", "pndm")
MULTISTEP += ("res_multistep", "sa_solver", "er_sde")
TARGETS = {10: 1.0, 1000: 50.0}  # ms
LONG = {10: None, 1000: 11}  # interleaved pairs
COUNTS = 10, 14, 17, 20, 25
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
KARRAS, EXPONENTIAL, BETA = ({f"use_{k}_sigmas": True} for k in ("karras", "exponential", "beta"))
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
SOURCES = {
    "DDIM": {"": SD},
    "DDPM": {"": SD},
    "EulerDiscrete": {"": SD, "karras": SD | KARRAS, "exponential": SD | EXPONENTIAL},
    "EulerAncestralDiscrete": {"": SD},
    "HeunDiscrete": {"": SD, "karras": SD | KARRAS},
    "DPMSolverMultistep": {"": SD, "karras": SD | KARRAS, "beta": SD | BETA, "flow": FLOW},
    "DPMSolverSinglestep": {"": SD},
    "UniPCMultistep": {"": SD, "karras": SD | KARRAS, "flow": FLOW},
    "FlowMatchEulerDiscrete": {"": {"shift": 3.0}, "karras": {"shift": 3.0} | KARRAS},
    "LCM": {"": SD},
    "PNDM": {"": SD | {"skip_prk_steps": True}},
}
EVERY = [(name, variant) for name, variants in SOURCES.items() for variant in variants]


@pytest.mark.parametrize("name", MULTISTEP)
@pytest.mark.parametrize("steps", TARGETS)
def bench_compile(benchmark, name, steps):
    benchmark.group = "compile"
    schedule, maker = fs.schedules.DiscreteVP.scaled_linear(), SOLVERS[name]
    grid = fs.grids.karras(schedule, steps)
    make = lambda: maker(schedule, grid, prediction="eps")
    plan = make()
    if plan.nfe != steps + (name == "pndm") or not plan.consistency() <= 1e-9:
        raise AssertionError(f"{name}: {plan!r} leaves the schedule by {plan.consistency():.1e}")
    own, _ = interleaved(benchmark, lambda: make, {}, LONG[steps])
    what, why = f"{name}: a plan of {steps:,} steps", "each row is a sum in symbols before it packs"
    values = [s * 1e3 for s in own]
    figure(benchmark, what, values, "ms", target=TARGETS[steps], better="lower", missed=why)


@pytest.mark.parametrize(("name", "variant"), EVERY, ids=["-".join(filter(None, e)) for e in EVERY])
def bench_new_counts(benchmark, name, variant):
    benchmark.group = "compile"
    source = getattr(diffusers, f"{name}Scheduler")
    theirs = lambda: source(**SOURCES[name][variant])

    def ours():
        runs._shared.clear()
        return FsScheduler.from_config(theirs())

    def asked(make):
        def work():
            for steps in COUNTS:
                scheduler.set_timesteps(steps)
            return scheduler.timesteps

        scheduler = make()
        return work

    if not torch.equal(asked(ours)(), asked(theirs)()):
        raise AssertionError(f"{name}: other timesteps than the peer's")
    others = {"diffusers": lambda: asked(theirs)}
    own, others = interleaved(benchmark, lambda: asked(ours), others)
    words = f" with {variant} levels" if variant else ""
    where = f"FsScheduler for {name}{words}: set_timesteps, a count never asked for"
    figure(benchmark, where, [s / len(COUNTS) * 1e6 for s in own], "µs")
    shares = [s / p for s, p in zip(own, others["diffusers"], strict=True)]
    why = "the plan itself is made and checked, and the class asks for no more than its timesteps"
    what = f"{where}, of diffusers' time"
    figure(benchmark, what, shares, "x", target=5.0, better="lower", missed=why)
