"""The demonstration: what `optimize.search` finds for the embedded model, beside the usual."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ..plan import Plan, provenance
from .folder import write, written
from .pictures import error_picture, samples_picture, schedules_picture
from .rungs import solver_of
from .tables import table

USUAL = ("euler", "dpmpp_2m")  # solvers shown on Karras' times
HEADER = (
    *("method", "evaluations", "dB", "quartiles dB", "pooled dB"),
    *("class accuracy", "Fréchet distance", "seconds"),
)


def demo(
    model: Any,
    z: Any,
    label: Any,
    held_out: Any,
    out: Path,
    *,
    budgets: Sequence[int] = (4, 6, 8),
    command: str | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Search plans for the embedded model, run every rung's and the usual ones on noises that no
    plan was made with, print the table, draw the pictures.

    z, held_out: unit noise [B,1,28,28] and [B2,1,28,28]; label [B] int64: the classes of z, of
    which sample b of held_out has that of b mod B. options: of `optimize.search`; command: what
    makes it again. Writes plans, page, figures and pictures to `out`. Returns {"search": the
    Search, "scores": {method: {evaluations: Score}}}.
    """
    from .. import metrics
    from ..optimize import search

    found = search(model, z, budgets, held_out=held_out, cond={"label": label}, **options)
    found = found.commanded(command) if command else found
    paths = write(found, out)
    if found.stopped:
        raise KeyboardInterrupt  # what was found is written; the rest would be half a table
    given = {"cond": {"label": label[np.arange(len(held_out)) % len(z)]}}
    target = metrics.run(found.teacher, model, held_out, **given)
    judge = _judge(model, held_out, given, target)
    plans = {**_usual(model, budgets), **{rung.name: rung.plans for rung in found.rungs}}
    scores = {name: {m: judge(plan) for m, plan in row.items()} for name, row in plans.items()}
    with suppress(ImportError):  # without matplotlib the page has what was found
        _pictures(out, found, plans, scores, target)
    print(found.about_teacher())
    spent = f"{found.nfe:g} evaluations for each of {found.samples} noises, {found.seconds:.0f} s"
    print(f"search: {spent}; judged on {len(held_out)} noises that no plan was made with")
    label = lambda name, m: f"{name}, {solver_of(plans[name][m])}" if name == "by hand" else name
    rows = [_row(label(name, m), scores[name][m]) for m in budgets for name in plans]
    print(table(HEADER, [_row("teacher", judge(found.teacher)), *rows]))
    print("dB: mean of each sample's PSNR to the teacher; distance on a classifier's features")
    print(f"wrote {written(out, paths)}")
    return {"search": found, "scores": scores}


def _usual(model: Any, budgets: Sequence[int]) -> dict[str, dict[int, Plan]]:
    """{method: {evaluations: plan}} of what people take without a search."""
    from .. import grids, solvers

    made = lambda name, m: solvers.SOLVERS[name](model, grids.karras(model.schedule, m))
    return {f"{name} (Karras)": {m: made(name, m) for m in budgets} for name in USUAL}


def _judge(model: Any, noise: Any, words: Mapping, target: Any) -> Callable[[Plan], Any]:
    """plan -> its `metrics.Score` on these noises, with the two figures of the classifier."""
    from .. import metrics
    from ..models.classifier import class_accuracy, frechet_distance

    judges = {
        "accuracy": lambda x: class_accuracy(x, words["cond"]["label"])[0],
        "distance": frechet_distance,
    }
    return lambda plan: metrics.score(plan, model, noise, target, judges=judges, **words)


def _row(label: str, score: Any) -> tuple[str, ...]:
    psnr = ("-",) * 3  # the teacher against itself
    if np.isfinite(score.psnr):
        low, _, high = score.quartiles
        psnr = (f"{score.mean:.2f}", f"{low:.1f} .. {high:.1f}", f"{score.psnr:.2f}")
    judged = (f"{100 * score.judged['accuracy']:.1f} %", f"{score.judged['distance']:.2f}")
    return (label, str(score.nfe), *psnr, *judged, f"{score.seconds:.2f}")


def _pictures(out: Path, found: Any, plans: Mapping, scores: Mapping, target: Any) -> None:
    usual, budgets = f"{USUAL[-1]} (Karras)", sorted(found.plans)
    shown = {"teacher": target}
    for m in budgets:
        for name in (usual, "by hand", provenance.found(found.plans[m])["method"]):
            score = scores[name][m]
            shown[f"{name}, {m} ({score.mean:.1f} dB)"] = score.end
    title = "The same noises, by method and number of evaluations (PSNR to the teacher)"
    samples_picture(out / "samples.png", shown, title)
    drawn = {f"search, {m} evaluations": found.plans[m] for m in budgets}
    beside = f"{usual}, {budgets[-1]} evaluations"
    drawn[beside] = plans[usual][budgets[-1]]
    schedules_picture(out / "schedules.png", drawn, "Where the plans ask the model", [beside])
    title = "Every rung of the search beside the usual, on unseen noises"
    curves = {name: {m: score.mean for m, score in row.items()} for name, row in scores.items()}
    error_picture(out / "error_vs_evaluations.png", curves, title)
