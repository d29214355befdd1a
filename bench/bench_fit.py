"""fit on the embedded model, beside OSS: mean PSNR of each sample on 256 noises no search saw, to a
teacher that agrees with its double to 60 dB, and the time of a search.

The teacher of both searches is the same plan; what its agreement with its double costs is left out
on both sides.
"""

import pytest
import torch
from bench_search import noise, subject
from measure import figure

from fastsample import metrics
from fastsample.optimize import fit, oss

BUDGETS = (4, 5, 6, 8, 10)
# name -> (what is searched, dB to reach at BUDGETS, most of oss's time)
SEARCHES = {
    "fit, beam 1": ({"beam": 1}, (29, 32, 36, 40, 44), 1.0),
    "fit, beam 3": ({"beam": 3}, (29.5, 33, 36.5, 41, 46), 2.2),
    "fit, consistent rows, beam 1": ({"beam": 1, "rows": "consistent"}, None, None),
    "fit, rows of dpmpp_2m, beam 1": ({"beam": 1, "rows": "dpmpp_2m"}, None, None),
}
SEARCHED, UNSEEN = 16, 256


@pytest.fixture(scope="module")
def judged():
    """(model, words, the searches' teacher, unseen noise, its target, OSS's search)."""
    model, words = subject()
    fresh = noise(UNSEEN, 1_000_000)
    _, agreement, target = metrics.find_teacher(model, fresh, **words(UNSEEN))
    if agreement < 60:
        raise AssertionError(f"the teacher agrees to {agreement:.1f} dB; 60 are needed")
    first = oss(model, noise(SEARCHED, 0), 10, **words(SEARCHED))
    # A plan that its note does not make again is taken as it is.
    teacher = first.teacher.with_note(solver="the teacher")
    search = oss(model, noise(SEARCHED, 0), 10, teacher=teacher, **words(SEARCHED))
    return model, words, teacher, fresh, target, search


def samples_psnr(plan, judged):
    """Each unseen sample's PSNR in dB."""
    model, words, _, fresh, target, _ = judged
    end = metrics.run(plan, model, fresh, **words(UNSEEN))
    return [metrics.psnr(a, b) for a, b in zip(end, target, strict=True)]


def figures(benchmark, name, search, judged, reach=None):
    for k, m in enumerate(BUDGETS):
        each = torch.tensor(samples_psnr(search.plans[m], judged), dtype=torch.float64)
        low, high = each.quantile(0.25).item(), each.quantile(0.75).item()
        words = f"{name}, {m} evaluations: PSNR of a sample"
        figure(benchmark, words, each.mean().item(), "dB", target=reach and reach[k])
        benchmark.extra_info[f"quartiles at {m}"] = f"{low:.2f} to {high:.2f} dB"


def bench_oss_beside_fit(benchmark, judged):
    """OSS, with its amplitude, on the same noises."""
    benchmark.group = "fit"
    model, words, teacher, *_, search = judged
    own = lambda: oss(model, noise(SEARCHED, 0), 10, teacher=teacher, **words(SEARCHED))
    benchmark.pedantic(own, rounds=1)
    benchmark.extra_info.update(evaluations_per_sample=search.nfe)
    figures(benchmark, "OSS", search, judged)


@pytest.mark.parametrize("solver", ["dpmpp_2m", "unipc"])
def bench_oss_multistep(benchmark, judged, solver):
    """OSS over the times of a multistep solver."""
    benchmark.group = "fit"
    model, words, teacher, *_, beside = judged
    given = {"solver": solver, "teacher": teacher, **words(SEARCHED)}
    own = lambda: oss(model, noise(SEARCHED, 0), 10, **given)
    search = benchmark.pedantic(own, rounds=1)
    benchmark.extra_info.update(evaluations_per_sample=search.nfe)
    figures(benchmark, f"OSS, {solver}", search, judged)
    time = search.seconds / beside.seconds
    figure(benchmark, f"OSS, {solver}: time, of Euler's", time, "x", better="lower")


@pytest.mark.parametrize("name", SEARCHES)
def bench_fit(benchmark, judged, name):
    benchmark.group = "fit"
    given, reach, most = SEARCHES[name]
    model, words, teacher, *_, beside = judged
    own = lambda: fit(model, noise(SEARCHED, 0), 10, teacher=teacher, **given, **words(SEARCHED))
    search = benchmark.pedantic(own, rounds=1)
    benchmark.extra_info.update(evaluations_per_sample=search.nfe)
    figures(benchmark, name, search, judged, reach)
    time = search.seconds / beside.seconds
    figure(benchmark, f"{name}: time, of OSS's", time, "x", target=most, better="lower")
