"""fastsample optimize: find the plans of a model, print what they gain, and write them."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from .. import report
from ..files import folder_for
from ..grids import GRIDS
from ..plan.text import printable
from .options import count, number, progress, progress_option
from .subjects import UNSEEN, Subject, model_options, subject

ABOUT = "search whole plans, or time grids, for a model or a pipeline of diffusers"
EXAMPLE = """--model mine:make --shape 4,64,64 --budgets 4,6,8 --out plans
  fastsample optimize --pipeline sd15 --prompt "a cat" --prompt "a dog" --guidance 5 --budgets 8"""

BUDGETS = (4, 6, 8, 10)
SAMPLES, SEARCH_SAMPLES = 32, 208  # of a single search, and of the whole climb
OF_CLIMB, OF_ONE = ("time_limit", "checkpoint"), ("start", "aggregate")
UNSAID = ("out", "checkpoint", "progress", "traceback", "name", "command")


def options(add: Callable) -> None:
    about = "climb to the best plan of each number of evaluations (default: 4,6,8,10)"
    add("--budgets", type=_numbers, metavar="M,M,...", help=about)
    about = "seconds for the climb; it is cut between two parts, and what was found is written"
    add("--time-limit", type=float, metavar="S", help=about)
    about = "folder the climb goes on from after a cut (default: checkpoint in --out)"
    add("--checkpoint", metavar="FOLDER", help=about)
    about = "one search instead, of every number of evaluations up to this"
    add("--budget", type=count, metavar="M", help=about)
    add("--solver", help="search times by OSS for a solver (with --budget alone: euler)")
    about = "search by fit: times with fitted rows, free or consistent, or with a solver's own rows"
    add("--rows", metavar="free|consistent|SOLVER", help=about)
    about = "of a fit: paths kept at every node (default: 3)"
    add("--beam", type=count, metavar="N", help=about)
    number(add, "--teacher", 40, "steps of the grid searched; the teacher takes as many or more")
    about = f"its spacing (default: fine): {', '.join(GRIDS)}"
    add("--grid", choices=GRIDS, metavar="NAME", help=about)
    about = "unseen noises to judge on; 0, in one search: no comparison with schedules made by hand"
    add(
        "--held-out",
        type=partial(count, low=0),
        metavar="N",
        help=f"{about} (default: 64; in one search 16)",
    )
    about = "of one search: free (default), the noise may carry a lower label"
    add("--start", choices=("free", "fixed"), help=about)
    about = (
        "of one search. OSS: joint (default) or median; with --rows: mean (default), log or median"
    )
    add("--aggregate", metavar="WORD", help=about)
    about = f"noises (default: {SEARCH_SAMPLES}; in one search {SAMPLES})"
    add("--samples", type=count, metavar="N", help=about)
    add("--out", default="plans", help="folder for plans, page and figures (default: plans)")
    model_options(add, None)
    progress_option(add)


def _numbers(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and 0 < int(part) <= 1000 for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not whole numbers of 1 to 1000, as 4,6,8")
    return tuple(map(int, parts))


def run(args: argparse.Namespace) -> None:
    report.look(folder_for(args.out, "--out"))
    if args.checkpoint is not None:
        folder_for(args.checkpoint, "--checkpoint")
    if args.budgets and args.budget:
        raise ValueError(f"--budget {args.budget} beside --budgets; one of them is accepted")
    one = args.budget is not None or bool((args.solver or args.rows) and not args.budgets)
    _refuse_idle(args, one)
    _search(args, subject(args), one)


def _refuse_idle(args: argparse.Namespace, one: bool) -> None:
    """ValueError for an option that what was asked for would not look at."""
    for name in OF_CLIMB if one else OF_ONE:
        if getattr(args, name) is not None:
            of, asks = ("the climb", "--budgets") if one else ("one search", "--budget")
            raise ValueError(
                f"--{name.replace('_', '-')} {getattr(args, name)} belongs to {of}; {asks} is "
                "accepted beside it"
            )
    if args.held_out == 0 and not one:
        raise ValueError("--held-out 0; noise to judge the climb on is needed")
    if one and args.rows and args.solver:
        raise ValueError(
            f"--solver {args.solver} beside --rows {args.rows}; one of them is accepted"
        )
    if one and args.beam is not None and not args.rows:
        raise ValueError(f"--beam {args.beam} belongs to a fit; --rows is accepted beside it")


def _search(args: argparse.Namespace, it: Subject, one: bool) -> None:
    """Search the subject; noises no search has seen have seeds from UNSEEN on."""
    samples = args.samples or (SAMPLES if one else SEARCH_SAMPLES)
    held_out = (16 if one else 64) if args.held_out is None else args.held_out
    given = {
        "held_out": it.noise(held_out, UNSEEN + args.seed) if held_out else None,
        "progress": progress(args),
        "model_dtype": it.dtype,
        **{name: getattr(args, name) for name in ("teacher", "seed", "batch_size")},
        **it.words(samples),
    }
    z = it.noise(samples, args.seed)
    if args.grid is not None:
        given["teacher"] = GRIDS[args.grid](it.model.schedule, args.teacher)
    (_one if one else _climb)(args, it.model, z, given, _processes())


# -- one search ------------------------------------------------------------------------------------
def _one(args: argparse.Namespace, model: Any, z: Any, given: dict, ranks: Any) -> None:
    from ..optimize import fit, oss

    args.budget = args.budget or 8
    names = ("budget", "start", "solver", "aggregate", "rows", "beam")
    own = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    search = (fit if args.rows else oss)(model, z, **own, **given).commanded(command(args))
    if not ranks.first:
        return
    print(_found(search, search.save(args.out)))
    print(search.about_teacher())
    spent = f"{search.nfe:g} evaluations for each of {search.samples} samples"
    print(f"{spent}, {search.seconds:.1f} s; error and PSNR to the teacher on these samples")
    if search.compared:
        beaten = ", ".join(str(m) for m, c in sorted(search.compared.items()) if not c.beats)
        worse = f"the plans of {beaten} evaluations do not beat the best made by hand"
        verdict = worse if beaten else "every plan beats them"
        beside = f"of any solver, on {len(given['held_out'])} noises held out"
        print(f"beside the schedules made by hand, {beside}: {verdict}")
    _in_pipeline(args, search)


def _found(search: Any, paths: Sequence[Path]) -> str:
    """The table of a search: its plans, the best by hand beside each, and their files."""
    from .. import metrics

    rows = []
    for m, path in zip(sorted(search.plans), paths, strict=True):
        error, plan, beside = search.error[m], search.plans[m], search.compared.get(m)
        held = ("-", "-", "not compared")
        if beside:
            name = f"{beside.solver}, {beside.grid}"
            held = (f"{beside.found:.2f}", f"{beside.by_hand:.2f}", name)
        scale = f"{plan.note['found']['amplitude']:.3f}"
        start = (_level(plan), scale)
        rows.append((m, f"{error:.3e}", f"{metrics.decibel(error):.2f}", *start, *held, path))
    held = ("held out dB", "by hand dB", "best by hand")
    header = ("evaluations", "error", "PSNR dB", "start sigma/alpha", "noise times", *held, "file")
    return report.table(header, rows)


def _level(plan: Any) -> str:
    return f"{plan.sigma[1] / plan.alpha[1]:.4g}" if plan.alpha[1] else "inf"


# -- the whole climb -------------------------------------------------------------------------------
def _climb(args: argparse.Namespace, model: Any, z: Any, given: dict, ranks: Any) -> None:
    from ..optimize import search
    from ..optimize.search import Stopped

    folder = args.checkpoint or os.path.join(args.out, "checkpoint")
    own = {"time_limit": args.time_limit, "checkpoint": folder}
    names = ("rows", "solver", "beam")
    own |= {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    failed = None
    try:
        found = search(model, z, args.budgets or BUDGETS, **own, **given)
    except Stopped as stopped:
        found, failed = stopped.search, stopped
    found = found.commanded(command(args))
    if ranks.first:
        _written(found, Path(args.out))
        _in_pipeline(args, found)
    if failed is not None:
        raise RuntimeError(f"{failed}; it is written to {args.out}") from failed
    if found.stopped is not None and ranks.first:
        again = f"the same command goes on from {printable(folder)}"
        said = {"time_limit": "the time is up", "interrupted": "interrupted"}[found.stopped]
        print(f"fastsample optimize: {said}; {again}", file=sys.stderr)
    if found.stopped == "interrupted":
        raise SystemExit(130)


def _processes() -> Any:
    """The processes of torchrun, where it runs this."""
    import torch

    from ..runtime.ranks import Ranks

    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo")  # which carries tensors of any device
    return Ranks.of()


def _written(search: Any, out: Path) -> None:
    """The plans, the page, figures and pictures; and the table of every rung."""
    paths, rows = report.write(search, out), []
    for m, path in zip(sorted(search.plans), paths, strict=True):
        for rung in search.rungs:
            if m in rung.plans:
                mean, low, _, high = rung.psnr[m]
                kept = rung.name == search.plans[m].note["found"]["method"]
                figures = (f"{mean:.2f}", f"{low:.1f} .. {high:.1f}", f"{rung.pooled[m]:.2f}")
                start = _level(rung.plans[m])
                rows.append((rung.name, m, *figures, start, path if kept else ""))
    header = (
        "method",
        "evaluations",
        "dB",
        "quartiles dB",
        "pooled dB",
        "start",
        "file of the best",
    )
    print(report.table(header, rows))
    print(search.about_teacher())
    held = search.plan.note["found"]["held_out"]["samples"]
    spent = (
        f"{search.nfe:g} evaluations for each of {search.samples} noises, {search.seconds:.0f} s"
    )
    print(f"{spent}; dB: mean of each sample's PSNR to the teacher, on {held} noises held out")
    print(f"wrote {report.written(out, paths)}")


def _in_pipeline(args: argparse.Namespace, search: Any) -> None:
    """How a pipeline runs what was found for it."""
    if args.pipeline is not None:
        path = os.path.join(args.out, f"plan-{search.plan.nfe}.fsplan")
        plan = f"fastsample.FsScheduler.from_plan(fastsample.Plan.load({path!r}), like=own)"
        print(f"in the pipeline: own = pipe.scheduler; pipe.scheduler = {plan}")


def command(args: argparse.Namespace) -> str:
    """What makes it again: every option that was given, but where it is written."""
    said = []
    for name, value in sorted(vars(args).items()):
        if name not in UNSAID and value is not None:
            given = value if isinstance(value, list) else [value]
            said += [
                w for each in given for w in (f"--{name.replace('_', '-')}", _text(name, each))
            ]
    return shlex.join(["fastsample", "optimize", *said])


def _text(name: str, value: Any) -> str:
    if name == "call":
        key, value = value
        return f"{key}={value if isinstance(value, str) else json.dumps(value)}"
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
