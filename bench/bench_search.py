"""The search on the embedded model: joint OSS beside the best usual grid, the best of any solver,
and the published per-sample search, on noises none has seen.

python bench/bench_search.py prints the whole table; under pytest-benchmark the gains are figures
with their targets.
"""

import argparse
import time

import numpy as np
import torch
from measure import figure
from published_oss import sample, search

import fastsample as fs
from fastsample import metrics, models, report
from fastsample.kernels import normal
from fastsample.optimize import oss

BUDGETS = (5, 6, 8, 10)
STEPS, SEARCHED, UNSEEN = 40, 16, 128


def subject(analytic=False):
    """(model, words): the embedded model with its classes in turn, or a mixture of 28x28 Gaussians
    with low-rank, image-like means.
    """
    if not analytic:
        return models.fashion(), lambda count: {"cond": {"label": torch.arange(count) % 10}}
    draw, axis = np.random.default_rng(0), np.linspace(0, np.pi, 28)
    cosines = [np.cos(i * axis) for i in range(5)]
    waves = np.stack([high[:, None] * wide for high in cosines for wide in cosines])
    weights = draw.standard_normal((40, 25)) / (1 + np.arange(25) / 4)
    means = np.einsum("kn,nhw->khw", weights, waves)[:, None] * 0.35
    law = models.analytic.GaussianMixture(means, np.ones(40), 0.05)
    return law.model(fs.schedules.EDM(), "x0"), lambda count: {}


def noise(count, seed):
    seeds = torch.arange(count, dtype=torch.int64) + seed
    return normal(seeds, torch.zeros(count, dtype=torch.int64), 784).reshape(count, 1, 28, 28)


def compare(
    model,
    words,
    searched=SEARCHED,
    unseen=UNSEEN,
    steps=STEPS,
    budgets=BUDGETS,
    more=0,
    log=lambda text: None,
):
    """Every figure of the comparison: {agreement, teacher, rows: {budget: {...dB, seconds}},
    joint/published seconds and evaluations}.

    more: a further joint search with that many noises (0: none), to show what a larger search
    brings.
    """
    z, fresh = noise(searched, 0), noise(unseen, 1_000_000)
    teacher, agreement, target = metrics.find_teacher(model, fresh, **words(unseen))
    agrees = f"{agreement:.1f} dB to twice as many"
    log(f"teacher: {teacher.note['solver']}, {teacher.nfe} evaluations, {agrees}")
    begin = time.perf_counter()
    joint = oss(model, z, max(budgets), solver="euler", teacher=steps, **words(searched))
    out = {"agreement": agreement, "teacher": teacher, "joint": joint, "rows": {}}
    out["joint_seconds"] = time.perf_counter() - begin
    plans = {m: plans_of(joint, model, m) for m in budgets}
    if more:
        z_more = noise(more, 0)
        larger = oss(model, z_more, max(budgets), solver="euler", teacher=steps, **words(more))
        plans = {m: {**plans[m], "larger": larger.plans[m]} for m in budgets}
    for m in budgets:
        published = search(model, z, joint.grid, m, words(searched).get("cond", {}))
        end = sample(model, fresh, joint.grid, published.path, words(unseen).get("cond", {}))
        row = {name: db(plan, model, fresh, target, words) for name, plan in plans[m].items()}
        row |= by_hand(model, fresh, m, target, words(unseen))
        row |= {"published": metrics.psnr(end, target), "published_seconds": published.seconds}
        out["rows"][m] = row | {"published_rows": published.rows}
        log(f"{m} evaluations done; the published search took {published.seconds:.1f} s")
    for name in ("published_seconds", "published_rows"):
        out[name] = sum(row[name] for row in out["rows"].values())
    return out


def plans_of(joint, model, m):
    """{name: plan} of m evaluations: the search's own, its times alone, and Karras' grid."""
    return {
        "joint": joint.plans[m],
        "times": fs.solvers.euler(model, joint.grid[joint.indices[m]]),
        "karras": fs.solvers.euler(model, fs.grids.karras(model.schedule, m)),
    }


def by_hand(model, fresh, m, target, words):
    """The best usual grid and the best of any solver, chosen on the noises they are judged on."""
    options = {"screen": 16, "finalists": 6, **words}
    hand = metrics.best_hand_made(model, fresh, m, target, **options).note["found"]
    best = metrics.best_hand_made(model, fresh, m, target, solver=None, **words).note["found"]
    return {
        "any": best["psnr"],
        "any_grid": f"{best['solver']}, {best['grid']}",
        "hand": hand["psnr"],
        "hand_grid": hand["grid"],
    }


def db(plan, model, z, target, words):
    return metrics.psnr(metrics.run(plan, model, z, **words(len(z))), target)


def bench_search(benchmark):
    """Targets: 3 dB over the best usual Euler grid, at most 1 dB under the published form, in an
    eighth of its time for all budgets.
    """
    benchmark.group = "search"
    model, words = subject()
    found = compare(model, words)
    if found["agreement"] < 60:
        raise AssertionError(
            f"the teacher agrees with its double to {found['agreement']:.1f} dB; 60 are needed "
            "before anything is compared with it"
        )
    z = noise(SEARCHED, 0)
    own = lambda: oss(model, z, max(BUDGETS), solver="euler", teacher=STEPS, **words(SEARCHED))
    benchmark.pedantic(own, rounds=3, iterations=1)
    benchmark.extra_info.update(
        evaluations_per_sample=found["joint"].nfe,
        published_evaluations_per_sample=found["published_rows"] / SEARCHED,
        teacher=f"{found['teacher'].note['solver']}, {found['teacher'].nfe} evaluations",
        teacher_agreement=f"{found['agreement']:.1f} dB",
        search_teacher_agreement=f"{found['joint'].agreement:.1f} dB",
        best_by_hand_of_any_solver={str(m): row["any_grid"] for m, row in found["rows"].items()},
    )
    for m, row in found["rows"].items():
        what = f"OSS at {m} evaluations, over the best usual Euler grid"
        figure(benchmark, what, row["joint"] - row["hand"], "dB", target=3)
        what = f"OSS, with Euler, at {m} evaluations, over the best by hand of any solver"
        figure(benchmark, what, row["joint"] - row["any"], "dB")
        what = f"OSS at {m} evaluations, over the published per-sample search"
        figure(benchmark, what, row["joint"] - row["published"], "dB", target=-1)
    times = [found["published_seconds"] / seconds for seconds in benchmark.stats.stats.data]
    settling = found["joint"].agreement_nfe / found["joint"].nfe
    missed = f"the teacher's agreement with its double takes {settling:.0%} of the search, "
    missed += "and a row of a large batch little less than one alone"
    what = "OSS for every budget to 10, speed against four published searches"
    figure(benchmark, what, times, "x", target=8, missed=missed)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    about = "a mixture of Gaussians in place of the embedded model"
    parser.add_argument("--analytic", action="store_true", help=about)
    parser.add_argument("--searched", type=int, default=SEARCHED)
    parser.add_argument("--unseen", type=int, default=UNSEEN)
    about = "noises of a second, larger joint search (0: none)"
    parser.add_argument("--more", type=int, default=64, help=about)
    parser.add_argument("--steps", type=int, default=STEPS)
    args = parser.parse_args()
    log = lambda text: print(text, flush=True)
    sizes = (args.searched, args.unseen, args.steps)
    found = compare(*subject(args.analytic), *sizes, more=args.more, log=log)
    columns = {
        "Karras": "karras",
        "best by hand": "hand",
        "which": "hand_grid",
        "of any solver": "any",
        "which one": "any_grid",
        "published": "published",
        "joint, times alone": "times",
        "joint": "joint",
        f"joint, {args.more} noises": "larger",
    }
    rows = []
    for m, r in found["rows"].items():
        r["larger"] = r.get("larger", np.nan)
        cells = [r[key] if isinstance(r[key], str) else f"{r[key]:.2f}" for key in columns.values()]
        gains = [f"{r['joint'] - r[key]:+.2f}" for key in ("hand", "any", "published")]
        rows.append((m, *cells, *gains, f"{r['published_seconds']:.1f}"))
    noises = f"{args.unseen} unseen noises; searched with {args.searched} noises"
    print(f"PSNR in dB on {noises} on a grid of {args.steps} steps")
    header = ("evaluations", *columns, "over hand", "over any", "over published", "its seconds")
    print(report.table(header, rows))
    seconds, other = found["joint_seconds"], found["published_seconds"]
    print(f"joint, every budget: {seconds:.1f} s, {found['joint'].nfe:g} evaluations a sample")
    each = f"{found['published_rows'] / args.searched:g} evaluations a sample"
    longer = f"{other / seconds:.1f} times as long"
    print(f"published, {len(rows)} budgets: {other:.1f} s, {each}; {longer}")


if __name__ == "__main__":
    main()
