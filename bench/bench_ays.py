"""Align Your Steps on the embedded model at 10 steps, beside Karras' times: PSNR to the teacher and
the Fréchet distance on fashion-classifier features, on 256 noises no search saw.

The times are found once for each weighting of the bound, and a deterministic and two stochastic
solvers run on them: the gain depends on the solver, the metric and the weighting.
"""

import pytest
import torch
from bench_search import noise, subject
from measure import figure

import fastsample as fs
from fastsample import metrics
from fastsample.models.classifier import frechet_distance
from fastsample.optimize import ays

SOLVERS = ("dpmpp_2m", "dpmpp_2m_sde", "euler_ancestral")
# name -> what is searched, or None: Karras' times
TIMES = {
    "Karras": None,
    "the bound": {},
    "the bound's descent": {"method": "descent"},
    "the bound from 0.002": {"sigma_min": 0.002},
    "power 2": {"power": 2.0},
    "power 1": {"power": 1.0, "sigma_min": 0.01},
}
STEPS, SEARCHED, UNSEEN = 10, 32, 256


@pytest.fixture(scope="module")
def judged():
    """(model, words, teacher, unseen noise, its target)."""
    model, words = subject()
    fresh = noise(UNSEEN, 1_000_000)
    teacher = fs.solvers.dpmpp_3m(model, fs.grids.fine(model.schedule, 40))
    few, finer = words(16), fs.solvers.dpmpp_3m(model, fs.grids.fine(model.schedule, 80))
    ends = [metrics.run(plan, model, fresh[:16], **few) for plan in (teacher, finer)]
    if metrics.psnr(*ends) < 60:
        raise AssertionError(f"the teacher agrees to {metrics.psnr(*ends):.1f} dB; 60 are needed")
    return model, words, teacher, fresh, metrics.run(teacher, model, fresh, **words(UNSEEN))


@pytest.mark.parametrize("name", TIMES)
def bench_ays(benchmark, judged, name):
    benchmark.group = "ays"
    model, words, teacher, fresh, target = judged
    given, z = TIMES[name], noise(SEARCHED, 0)
    own = lambda: ays(model, z, STEPS, teacher=teacher, **given, **words(SEARCHED))
    if given is None:
        times = benchmark.pedantic(lambda: fs.grids.karras(model.schedule, STEPS), rounds=1)
    else:
        search = benchmark.pedantic(own, rounds=1)
        times = search.grid[search.indices[STEPS]]
        benchmark.extra_info.update(evaluations_per_sample=search.nfe)
        figure(benchmark, f"{name}: bound", search.error[STEPS], "nats", better="lower")
    benchmark.extra_info["times"] = ", ".join(f"{t:.3g}" for t in times)
    for solver in SOLVERS:
        plan = fs.solvers.SOLVERS[solver](model, times)
        end = metrics.run(plan, model, fresh, **words(UNSEEN))
        each = [metrics.psnr(a, b) for a, b in zip(end, target, strict=True)]
        mean = torch.tensor(each, dtype=torch.float64).mean().item()
        figure(benchmark, f"{name}, {solver}: PSNR of a sample", mean, "dB")
        distance = frechet_distance(end)
        figure(benchmark, f"{name}, {solver}: Fréchet distance", distance, better="lower")
