"""The demonstration: OSS for the embedded model beside the usual schedules."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..files import make_folder
from ..plan import Plan
from .pictures import error_picture, samples_picture, schedules_picture
from .tables import table

ANY = "by hand, any solver"  # the demonstration's name of the best schedule made by hand
FIGURES = ("PSNR dB", "quartiles dB", "class accuracy", "Fréchet distance", "seconds")


def demo(
    model: Any,
    search_noise: Any,
    search_words: Mapping,
    noise: Any,
    words: Mapping,
    out: Path,
    progress: bool = False,
    *,
    budgets: Sequence[int] = (4, 5, 6, 8),
    grid: int = 40,
    teacher_nfe: int = 50,
    at_least: float = 60.0,
) -> dict[str, Any]:
    """Search schedules for the embedded model, run them beside the usual ones on unseen noises,
    print the table, draw the pictures.

    search_noise, noise: unit noise [B,1,28,28]; search_words, words: their model words. As many of
    the unseen noises as were searched with are held out for the search's own comparison, so sample
    b of both should have the same words. Writes plans, samples.png, schedules.png and
    error_vs_evaluations.png to `out`. Returns {"rows", "search", "agreement", "target"}: table
    rows, a Search, dB, end points.
    """
    from .. import metrics

    make_folder(out)
    teacher, agreement, target = metrics.find_teacher(
        model, noise, nfe=teacher_nfe, at_least=at_least, **words
    )
    name = f"{teacher.note['solver']}, {teacher.nfe} evaluations"
    agrees = f"agree to {agreement:.1f} dB PSNR with those at twice as many"
    print(f"teacher: {name}; its end points {agrees}")
    options = {"held_out": noise[: len(search_noise)], "progress": progress, **search_words}
    search = _demo_search(model, search_noise, max(budgets), grid, options)
    search.save(out)
    plans = _demo_plans(model, search, budgets)
    judge = _demo_judge(model, noise, words, target)
    scores = {label: {m: judge(plan) for m, plan in row.items()} for label, row in plans.items()}
    rows = [_demo_row("teacher", judge(teacher)), *_demo_rows(search, scores, budgets)]
    judged = "the Fréchet distance is on the embedded classifier's features"
    print(f"{len(noise)} noises the search never saw; {judged}")
    print(table(("method", "evaluations", *FIGURES), rows))
    _demo_beside(search, budgets, len(options["held_out"]))
    _demo_pictures(out, plans, scores, target, agreement)
    print(f"wrote {', '.join(sorted(path.name for path in out.iterdir()))} to {out}")
    return {"rows": rows, "search": search, "agreement": agreement, "target": target}


def _demo_search(model: Any, noise: Any, budget: int, grid: int, options: Mapping) -> Any:
    """The search, and what it tells of itself."""
    from ..optimize import oss

    search = oss(model, noise, budget, solver="euler", teacher=grid, **options)
    spent = f"{search.nfe:g} evaluations for each of {search.samples} noises"
    print(f"OSS: {spent}, {search.seconds:.1f} s; every budget from this one search")
    print(search.about_teacher())
    return search


def _demo_plans(model: Any, search: Any, budgets: Sequence[int]) -> dict[str, dict[int, Plan]]:
    """{method: {evaluations: plan}}; the best by hand are chosen on noises they are judged on too,
    which favours them.
    """
    from .. import grids, solvers

    euler, schedule = solvers.euler, model.schedule
    return {
        "Karras": {m: euler(model, grids.karras(schedule, m)) for m in budgets},
        "log-uniform": {m: euler(model, grids.exponential(schedule, m)) for m in budgets},
        ANY: {m: search.compared[m].plan for m in budgets},
        # Without the amplitude.
        "OSS, times alone": {m: euler(model, search.grid[search.indices[m]]) for m in budgets},
        "OSS": {m: search.plans[m] for m in budgets},
    }


def _demo_judge(model: Any, noise: Any, words: Mapping, target: Any) -> Callable[[Plan], Any]:
    """plan -> its `metrics.Score` on these noises, with the two figures of the classifier."""
    from .. import metrics
    from ..models.classifier import class_accuracy, frechet_distance

    judges = {
        "accuracy": lambda x: class_accuracy(x, words["cond"]["label"])[0],
        "distance": frechet_distance,
    }
    return lambda plan: metrics.score(plan, model, noise, target, judges=judges, **words)


def _demo_rows(search: Any, scores: Mapping, budgets: Sequence[int]) -> list[tuple[str, ...]]:
    """The rows of every budget, one per method; the best by hand under the names of its plan."""
    rows = []
    for m in budgets:
        best = search.compared[m]
        for label, row in scores.items():
            by_hand = f"by hand, {best.solver} ({best.grid})"
            rows.append(_demo_row(by_hand if label == ANY else f"{label}, Euler", row[m]))
    return rows


def _demo_row(label: str, score: Any) -> tuple[str, ...]:
    psnr = ("-", "-")  # the teacher against itself
    if np.isfinite(score.psnr):
        low, _, high = score.quartiles
        psnr = (f"{score.psnr:.2f}", f"{low:.1f} .. {high:.1f}")
    judged = (f"{100 * score.judged['accuracy']:.1f} %", f"{score.judged['distance']:.2f}")
    return (label, str(score.nfe), *psnr, *judged, f"{score.seconds:.2f}")


def _demo_beside(search: Any, budgets: Sequence[int], held_out: int) -> None:
    """What the table does not say: how each plan found stands, and what else OSS moves."""
    chosen = f"chosen on the {held_out} noises held out of the search"
    print(f"OSS beside the best of any solver by hand, {chosen}:")
    print("\n".join(f"  {m} evaluations: {search.compared[m]}" for m in sorted(search.compared)))
    scales = ", ".join(f"{m}: {search.plans[m].note['found']['amplitude']:.3f}" for m in budgets)
    alone = "times alone: the same times without that"
    print(f"OSS also scales the noise it starts from ({scales}); {alone}")


def _demo_pictures(
    out: Path, plans: Mapping, scores: Mapping, target: Any, agreement: float
) -> None:
    budgets = sorted(plans["OSS"])
    shown = {"teacher": target}
    for m in sorted({budgets[0], budgets[len(budgets) // 2], budgets[-1]}):
        for label in ("Karras", ANY, "OSS"):
            score = scores[label][m]
            shown[f"{label}, {m} ({score.psnr:.1f} dB)"] = score.end
    title = "The same noises, by schedule and number of evaluations (PSNR to the teacher)"
    samples_picture(out / "samples.png", shown, title)
    drawn = {f"OSS, {m} evaluations": plans["OSS"][m] for m in budgets}
    usual = f"Karras, {budgets[-1]} evaluations"
    drawn[usual] = plans["Karras"][budgets[-1]]
    title = "Where the schedules ask the model"
    schedules_picture(out / "schedules.png", drawn, title, dashed=[usual])
    solvers = dict.fromkeys(plans[ANY][m].note["found"]["solver"] for m in budgets)
    legend = lambda label: f"{label} ({', '.join(solvers)})" if label == ANY else label
    psnr = lambda row: {m: score.psnr for m, score in row.items()}
    curves = {legend(label): psnr(row) for label, row in scores.items()}
    agrees = f"(the teacher agrees with its double to {agreement:.0f} dB)"
    title = f"Euler beside any solver, on unseen noises {agrees}"
    error_picture(out / "error_vs_evaluations.png", curves, title)
