"""One front: the best plan of each budget that can be had for a model in the time there is.

    search = fs.optimize.search(model, [208, 1, 28, 28], [4, 6, 8, 10], time_limit=600, seed=0)
    search.plans[6], search.rungs, fs.report.page(search, "search.html")

It climbs. Every rung is judged on noise that no plan was made with, and each budget gets the best
plan of any of them, by the mean over samples of each one's own PSNR to the teacher's end points:

    by hand      the best that any deterministic solver makes of any grid of `metrics.hand_made`;
                 chosen on the noises it is judged on, which favours it
    model-free   `model_free`: times of least bound, for which no model is asked
    fit          `fit`: times and rows by dynamic programming, on the first noises
    polish       `polish`: Gauss-Newton on every number of those plans, on the noises that are left

The arguments of `search`; those that every search takes are `optimize.Given`:

    z            unit noise [B,*], or its shape with a seed. The fit sees the first `searched`; the
                 polish needs 32 more at least, and is left out where there are fewer; 192 do well
    budgets      numbers of evaluations, or one number: every one up to it
    time_limit   seconds, or None. What would go beyond it is not begun, a polish is cut between two
                 steps, and what stands is judged and returned. A model too slow for the teacher
                 alone is refused
    searched     noises that the fit sees
    rows, history, beam    of the fit; rows="consistent" are not polished, for that would leave the
                 schedule
    solver       of the model-free plans
    by_hand      False: the plans by hand are not tried. For 6 evaluations that takes some 13,000 of
                 one sample, seven times what all else does where a beam of 1 is fitted to 8 noises
    iterations, batch      of the polish
    held_out     None: 64 noises drawn from a seed that comes of z
    checkpoint   a folder, made where there is none: every finished part and every step of a polish
                 is kept there, and the same call with the same folder goes on from it to the same
                 plans. One of other arguments, or of a model that answers otherwise, is refused;
                 answers, and the fractions in conditions, may differ as two machines' do, by 2 %

Ctrl-C ends the climb: what was found is returned, `search.stopped` says so. So does a model that
fails on the way, with the exception `Stopped`, whose `search` is what was found.

Evaluations: `search.nfe` are all of them per noise of z, the look at the model (two or three calls)
and all that was spent on judging included.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..kernels import normal
from ..model import Model
from ..runtime.sources import digest
from ._bound import STEPS
from ._checkpoint import Checkpoint
from ._climb import Climb, TimeUp, limit_of
from ._families import ROWS
from ._fingerprint import fingerprint, sketches
from ._given import numbered, one_of, whole
from ._newton import Options as Newton
from ._paths import Options
from ._search import Rung, Search, figure
from ._setting import Setting

HELD_OUT = 64
SHARE, MEMORY = 0.15, 0.8  # of a polish: samples that judge its steps; what older steps weigh


class Stopped(RuntimeError):
    """The model failed on the way. search: what was found before."""

    search: Search


@numbered
def search(
    model: Model,
    z: Tensor | Sequence[int],
    budgets: int | Sequence[int] = (4, 6, 8, 10),
    *,
    time_limit: float | None = None,
    searched: int = 16,
    rows: str = "free",
    history: int = 9,
    beam: int = 3,
    solver: str = "unipc",
    iterations: int = 8,
    batch: int = 24,
    by_hand: bool = True,
    checkpoint: Any = None,
    **given: Any,
) -> Search:
    """Climb to the best plan of each budget; the module's docstring, with which `help` goes on,
    says how, and what each argument means, `optimize.Given` those of every search. Raises
    ValueError or TypeError, one sentence, for bad input, before a model is asked; Stopped where the
    model fails once there is something to keep.
    """
    whole("search", searched=searched, history=history, beam=beam, iterations=iterations)
    whole("search", batch=batch)
    wanted, limit = _budgets(budgets), limit_of(time_limit)
    one_of("search", rows, "rows", ROWS)
    one_of("search", solver, "solver", STEPS)
    own = {"budgets": wanted, "rows": rows, "history": history, "beam": beam, "solver": solver}
    own |= {"searched": searched, "iterations": iterations, "batch": batch}
    own |= {} if by_hand else {"by_hand": False}
    setting = Setting.of("search", model, z, max(wanted), given, own)
    setting.budgets = wanted
    held_out = setting.held_out
    if held_out is None:
        held_out = _unseen(setting.z)
    setting.held_out = None
    B, few = len(setting.z), min(searched, len(setting.z))
    options = Options(wanted, "free", (1.0,), history, beam, "mean", 0)
    replace(setting, z=setting.z[:few])._room(options.states(setting.N))  # before a model is asked
    held = max(round(SHARE * (B - few)), 1)
    newton = Newton("log", iterations, batch, held, MEMORY, False, setting.note["seed"] or 0)
    asked, ranks = own | _asked(setting, held_out), setting.words["ranks"]
    told = _told(setting)
    near = lambda: {} if checkpoint is None else sketches(told)
    kept = ranks.told(lambda: Checkpoint("search", checkpoint, asked, near()))
    kept.writes = ranks.first
    climb = Climb(setting, kept, held_out, wanted, rows, options, newton, solver, few, limit)
    rungs = (climb.fit, climb.by_hand, climb.polish) if by_hand else (climb.fit, climb.polish)
    return _climbed(climb, rungs, own)


def _asked(setting: Setting, held_out: Tensor) -> dict[str, Any]:
    """What a checkpoint is of, beside the search's own arguments."""
    teacher = setting.teacher
    return setting.note | {
        "model": setting.model.to_json(),
        "N": setting.N,
        "noises": len(setting.z),
        "held out": digest(held_out).hex()[:16],
        "teacher": fingerprint([teacher.plan.to_json(), teacher.grid.tolist()]),
        "conditions": fingerprint(_told(setting)),
    }


def _told(setting: Setting) -> dict[str, Any]:
    """The conditions."""
    return {name: setting.words[name] for name in ("cond", "uncond") if name in setting.words}


def _climbed(climb: Climb, climbs: Sequence[Callable[[], None]], own: dict[str, Any]) -> Search:
    """Rung by rung, as far as it goes; each is judged before the next is begun."""
    climb.model_free()
    climb.look()
    climb.teacher()
    stopped, failed, ask = None, None, True
    try:
        climb.judged()
        for rung in climbs:
            try:
                rung()
            except TimeUp:  # a later one may take less
                stopped = "time_limit"
            climb.judged()
    except KeyboardInterrupt:
        stopped, ask = "interrupted", False
    except Exception as error:  # whatever a model may raise
        stopped, ask, failed = "failed", False, error
    climb.over = True
    rungs = climb.judged(ask)
    if not rungs:
        raise failed or KeyboardInterrupt
    found = _found(climb, rungs, own, stopped)
    if failed is not None:
        reached = ", ".join(rung.name for rung in rungs)
        stop = Stopped(
            f"search: {type(failed).__name__} on the way ({failed}); what was found before "
            f"({reached}) is in the exception's search"
        )
        stop.search = found
        raise stop from failed
    return found


def _found(climb: Climb, rungs: Sequence[Rung], own: dict[str, Any], stopped: str | None) -> Search:
    """The best plan of every budget, as far as any stands, its note saying how it was found."""
    it, done = climb.setting, climb.kept.done
    standing = [m for m in climb.budgets if any(m in rung.plans for rung in rungs)]
    reached = lambda m: [rung for rung in rungs if m in rung.plans]
    best = {m: max(reached(m), key=lambda rung: rung.psnr[m][0]) for m in standing}
    plans, error, indices = {}, {}, {}
    for m, rung in best.items():
        figures = done[f"judged {rung.name} {m}"]
        polished = done[f"polish {m}"]["note"] if rung.name == "polish" else {}
        plan = rung.plans[m]
        said = {
            **plan.note.get("found", {}),
            **own,
            **it.note,
            **polished,
            "method": rung.name,
            "teacher": it.teacher.note(),
            "samples": len(it.z),
            "held_out": {
                "samples": len(climb.held_out),
                "psnr": figures["psnr"],
                "pooled": figures["pooled"],
                "rungs": {r.name: figure(r.psnr[m][0]) for r in rungs if m in r.plans},
            },
        }
        said.pop("compared", None)
        plans[m], error[m] = plan.with_note(found=said), float(figures["error"])
        if rung.name in ("fit", "polish"):
            indices[m] = np.array(done["fit"]["indices"][str(m)])
    spent, agreement = climb.spent, it.teacher.agreement
    judged = {"agreement": agreement, "agreement_nfe": done["teacher"]["rows"] / len(it.z)}
    shown = climb.target[: len(next(iter(rungs[0].ends.values()), climb.target[:0]))]
    more = {"rungs": rungs, "target": shown, "stopped": stopped}
    more["bytes"] = done.get("fit", {}).get("bytes", 0)
    grid, teacher = it.teacher.grid, it.teacher.plan
    B = len(it.z)
    return Search(plans, error, indices, grid, teacher, spent[0], B, spent[1], **judged, **more)


def _budgets(budgets: Any) -> list[int]:
    """The numbers of evaluations, from the smallest."""
    if isinstance(budgets, (int, np.integer)):
        whole("search", budgets=budgets)
        return list(range(1, budgets + 1))
    listed = list(budgets) if isinstance(budgets, Sequence) and not isinstance(budgets, str) else []
    if not listed:
        raise ValueError(
            f"search: budgets={budgets!r:.60}; numbers of evaluations, or one, every one up to "
            "which is found, are accepted"
        )
    for one in listed:
        whole("search", budgets=one)
    return sorted({int(m) for m in listed})


def _unseen(z: Tensor) -> Tensor:
    """Unit noise like z that is none of it, the same for the same z."""
    first = int.from_bytes(digest(z.detach().cpu())[:7], "little")
    seeds = torch.arange(HELD_OUT, dtype=torch.int64) + first
    flat = normal(seeds, torch.zeros_like(seeds), z[0].numel())
    return flat.reshape(-1, *z.shape[1:]).to(z)
