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
from fastsample.kernels.noise import normal
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
    waves = np.stack(
        [np.cos(i * axis)[:, None] * np.cos(j * axis) for i in range(5) for j in range(5)]
    )
    means = (
        np.einsum("kn,nhw->khw", draw.standard_normal((40, 25)) / (1 + np.arange(25) / 4), waves)[
            :, None
        ]
        * 0.35
    )
    return models.analytic.GaussianMixture(means, np.ones(40), 0.05).model(
        fs.schedules.EDM(), "x0"
    ), lambda count: {}


def noise(count, seed):
    seeds = torch.arange(count, dtype=torch.int64) + seed
    return normal(seeds, torch.zeros(count, dtype=torch.int64), 784).reshape(count, 1, 28, 28)


def ask_in_batches(plan, model, z, words):
    return metrics.run(plan, model, z, **words)


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
    log(
        f"teacher: {teacher.note['solver']}, {teacher.nfe} evaluations, {agreement:.1f} dB to "
        "twice as many"
    )
    begin = time.perf_counter()
    joint = oss(model, z, max(budgets), solver="euler", teacher=steps, **words(searched))
    grid = joint.grid
    out = {
        "agreement": agreement,
        "teacher": teacher,
        "joint": joint,
        "joint_seconds": time.perf_counter() - begin,
        "published_seconds": 0.0,
        "published_rows": 0,
        "rows": {},
    }
    larger = (
        oss(model, noise(more, 0), max(budgets), solver="euler", teacher=steps, **words(more))
        if more
        else None
    )
    cond = {
        name: words(count).get("cond", {}) for name, count in (("z", searched), ("fresh", unseen))
    }
    for m in budgets:
        published = search(model, z, grid, m, cond["z"])
        out["published_seconds"] += published.seconds
        out["published_rows"] += published.rows
        hand = metrics.best_hand_made(
            model, fresh, m, target, screen=16, finalists=6, **words(unseen)
        )  # on the noises it is judged on
        best = metrics.best_hand_made(model, fresh, m, target, solver=None, **words(unseen))
        row = {
            "any": best.note["found"]["psnr"],
            "any_grid": f"{best.note['found']['solver']}, {best.note['found']['grid']}",
            "hand": hand.note["found"]["psnr"],
            "hand_grid": hand.note["found"]["grid"],
            "joint": db(joint.plans[m], model, fresh, target, words),
            "times": db(
                fs.solvers.euler(model, joint.grid[joint.indices[m]]), model, fresh, target, words
            ),
            "karras": db(
                fs.solvers.euler(model, fs.grids.karras(model.schedule, m)),
                model,
                fresh,
                target,
                words,
            ),
            "published": metrics.psnr(
                sample(model, fresh, grid, published.path, cond["fresh"]), target
            ),
            "published_seconds": published.seconds,
        }
        if larger:
            row["larger"] = db(larger.plans[m], model, fresh, target, words)
        out["rows"][m] = row
        log(f"{m} evaluations done; the published search took {published.seconds:.1f} s")
    return out


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
    benchmark.pedantic(
        lambda: oss(model, z, max(BUDGETS), solver="euler", teacher=STEPS, **words(SEARCHED)),
        rounds=3,
        iterations=1,
    )
    benchmark.extra_info.update(
        evaluations_per_sample=found["joint"].nfe,
        published_evaluations_per_sample=found["published_rows"] / SEARCHED,
        teacher=f"{found['teacher'].note['solver']}, {found['teacher'].nfe} evaluations",
        teacher_agreement_db=found["agreement"],
        search_teacher_agreement_db=found["joint"].agreement,
        best_by_hand_of_any_solver={str(m): row["any_grid"] for m, row in found["rows"].items()},
    )
    for m, row in found["rows"].items():
        figure(
            benchmark,
            f"OSS at {m} evaluations, over the best usual Euler grid",
            row["joint"] - row["hand"],
            "dB",
            target=3,
        )
        figure(
            benchmark,
            f"OSS, with Euler, at {m} evaluations, over the best by hand of any solver",
            row["joint"] - row["any"],
            "dB",
        )
        figure(
            benchmark,
            f"OSS at {m} evaluations, over the published per-sample search",
            row["joint"] - row["published"],
            "dB",
            target=-1,
        )
    times = [found["published_seconds"] / seconds for seconds in benchmark.stats.stats.data]
    settling = found["joint"].agreement_nfe / found["joint"].nfe
    missed = f"the teacher's agreement with its double takes {settling:.0%} of the search, "
    missed += "and a row of a large batch little less than one alone"
    figure(
        benchmark,
        "OSS for every budget to 10, speed against four published searches",
        times,
        "x",
        target=8,
        missed=missed,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--analytic",
        action="store_true",
        help="a mixture of Gaussians in place of the embedded model",
    )
    parser.add_argument("--searched", type=int, default=SEARCHED)
    parser.add_argument("--unseen", type=int, default=UNSEEN)
    parser.add_argument(
        "--more", type=int, default=64, help="noises of a second, larger joint search (0: none)"
    )
    parser.add_argument("--steps", type=int, default=STEPS)
    args = parser.parse_args()
    log = lambda text: print(text, flush=True)
    found = compare(
        *subject(args.analytic), args.searched, args.unseen, args.steps, more=args.more, log=log
    )
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
    print(
        f"PSNR in dB on {args.unseen} unseen noises; searched with {args.searched} noises on a "
        f"grid of {args.steps} steps"
    )
    print(
        report.table(
            ("evaluations", *columns, "over hand", "over any", "over published", "its seconds"),
            rows,
        )
    )
    seconds, other = found["joint_seconds"], found["published_seconds"]
    print(f"joint, every budget: {seconds:.1f} s, {found['joint'].nfe:g} evaluations a sample")
    each = found["published_rows"] / args.searched
    print(
        f"published, {len(rows)} budgets: {other:.1f} s, {each:g} evaluations a sample; "
        f"{other / seconds:.1f} times as long"
    )


if __name__ == "__main__":
    main()
