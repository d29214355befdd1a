"""fastsample convert: a plan, or a list of noise levels or timesteps, in another form."""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

from .. import grids, schedules, solvers
from ..files import place, write_whole
from ..model import PREDICTIONS, Model
from ..plan import Plan
from ..plan.text import printable
from ..schedules.discrete import KINDS
from . import lists
from .options import load, suffix

ABOUT = "a plan, or a list of noise levels or timesteps, in another form"
EXAMPLE = """plans/plan-8.fsplan --to comfyui
  fastsample convert plans/plan-8.fsplan --out plan.json
  fastsample convert 14.6,6.5,3.9,1.4,0.4,0 --to timesteps --schedule DiscreteVP.scaled_linear
  fastsample convert 1,0.9,0.6,0 --out a.fsplan --schedule "Flow(shift=3)" --solver heun --time 1000

forms:
  fsplan        the plan as a file, with --out
  json          the plan as JSON, every number exact
  sigmas        noise levels with commas, noise to data: sigma of a flow, sigma/alpha of all others
                (the sigma of k-diffusion). stable-diffusion.cpp: sd-cli --sigmas LIST
  timesteps     times of the schedule (indices of a DiscreteVP, t of a Flow before its shift)
  comfyui       text for ComfyUI's node ManualSigmas
  comfyui-json  that node in a workflow of the API format
  sdcpp-json    a request of stable-diffusion.cpp's sd-server (sample_params.custom_sigmas)"""
PLANS = ("fsplan", "json")


def options(add: Callable) -> None:
    about = "a .fsplan file, a plan as JSON, a file with a list in any form below, - for standard "
    about += "input, or the list itself"
    add("source", help=about)
    about = "what to write (default: as --out is named)"
    add("--to", choices=(*PLANS, *lists.FORMS), metavar="FORM", help=about)
    add("--out", metavar="FILE", help="where to (default: -, standard output)")
    about = "what the numbers of a list are, where it does not say (default: sigmas)"
    add("--from", dest="form", choices=("sigmas", "timesteps"), metavar="FORM", help=about)
    about = "schedule of a list: a name with its numbers, as Flow(shift=3), or its JSON"
    add("--schedule", type=_schedule, help=about)
    about = "what makes a plan of a list: a name that `fastsample show solvers` has"
    add("--solver", choices=solvers.SOLVERS, metavar="NAME", help=about)
    about = f"what the model predicts (default: flow on a Flow): {', '.join(PREDICTIONS)}"
    add("--prediction", choices=PREDICTIONS, metavar="KIND", help=about)
    about = "what the model is told as time: that many times the schedule's label, or log_sigma"
    add("--time", type=_time, metavar="T", help=about)
    about = "what the model's input is multiplied by: vp or flow (default: 1)"
    add("--input-scale", choices=("vp", "flow"), metavar="KIND", help=about)


def _time(text: str) -> Any:
    try:
        return text if text == "log_sigma" else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number, nor log_sigma") from None


def _schedule(text: str) -> schedules.Schedule:
    """A schedule as JSON, or as Python writes one: a name, or name(word=number, ...)."""
    try:
        if text.lstrip().startswith("{"):
            return schedules.from_json(text)
        return _made(ast.parse(text.strip(), mode="eval").body)
    except (ValueError, TypeError, SyntaxError) as error:
        named = ", ".join(schedules.SCHEDULES)
        raise argparse.ArgumentTypeError(
            f"{text[:60]!r} is no schedule ({str(error)[:80]}); one of {named}, as Flow(shift=3) "
            "or DiscreteVP.scaled_linear, or its JSON is accepted"
        ) from None


def _made(said: ast.expr) -> schedules.Schedule:
    """NAME, NAME.KIND or either with (word=number, ...); nothing else is looked at."""
    words = {}
    if isinstance(said, ast.Call) and not said.args:
        words, said = {w.arg: _value(w) for w in said.keywords}, said.func
    names = ast.unparse(said).split(".")
    made = schedules.SCHEDULES.get(names[0])
    for kind in names[1:]:
        made = getattr(made, kind, None) if kind in KINDS else None
    if made is None or len(names) > 2:
        raise ValueError("no such name")
    return made(**words)


def _value(word: ast.keyword) -> Any:
    try:
        return ast.literal_eval(word.value)
    except ValueError:  # which names a node by its address
        raise ValueError(f"{word.arg}={ast.unparse(word.value)}") from None


@dataclass(frozen=True)
class Given:
    """What is converted: a plan, or a list that is of sigmas or of timesteps."""

    plan: Plan | None
    form: str | None = None
    numbers: tuple[float, ...] = ()


def run(args: argparse.Namespace) -> None:
    args.out = None if args.out == "-" else args.out
    form = args.to or {".fsplan": "fsplan", ".json": "json"}.get(suffix(args.out or ""))
    if form is None:
        accepted = ", ".join((*PLANS, *lists.FORMS))
        raise ValueError(f"it is not said what to; --to with one of {accepted} is needed")
    if args.out is not None:
        place(args.out)
    elif form == "fsplan":
        raise ValueError("--to fsplan is no text; --out FILE.fsplan is needed")
    given = _given(args)
    if given.plan is None:
        _refuse_idle(args, form)
    if form in PLANS:
        plan = given.plan or _plan(args, given)
        data = plan.to_bytes() if form == "fsplan" else f"{plan.to_json()}\n".encode()
    else:
        data = f"{lists.written(form, _numbers(args, given, form))}\n".encode()
        if given.plan is not None and (said := lists.left_out(given.plan)):
            print(f"fastsample convert: {said}", file=sys.stderr)
    if args.out is not None:
        write_whole(args.out, data)
        print(f"wrote {printable(args.out)}")
    else:
        sys.stdout.write(data.decode())


def _refuse_idle(args: argparse.Namespace, form: str) -> None:
    """ValueError for a word that makes a plan of a list, where no plan is made."""
    for word in () if form in PLANS else ("solver", "prediction", "time", "input_scale"):
        if getattr(args, word) is not None:
            raise ValueError(
                f"--{word.replace('_', '-')} belongs to a plan that is made of a list; --to "
                f"{form} makes none, --to json or fsplan is accepted"
            )


def _given(args: argparse.Namespace) -> Given:
    """The source, read and checked."""
    text = _text(args.source)
    if isinstance(text, Plan):
        given = Given(text)
    elif text.lstrip().startswith("{") and '"fastsample_plan"' in text:
        given = Given(Plan.from_json(text.strip()))
    else:
        form, numbers = lists.read(text)
        if args.form not in (None, form or args.form):
            raise ValueError(f"--from {args.form} of a list that says it is of {form}")
        return Given(None, form or args.form or "sigmas", tuple(numbers))
    words = ("form", "schedule", "solver", "prediction", "time", "input_scale")
    for word in words:
        if getattr(args, word) is not None:
            name = "from" if word == "form" else word.replace("_", "-")
            raise ValueError(f"--{name} belongs to a list; {args.source} is a plan")
    return given


def _text(source: str) -> str | Plan:
    """The text of a source, or the plan that a .fsplan file holds."""
    try:
        if source == "-":
            data = _bytes(sys.stdin.buffer)
        else:
            with open(source, "rb") as file:
                data = _bytes(file)
    except OSError as error:
        if "," in source or source.lstrip()[:1] in ("[", "{"):
            return source  # the list itself
        raise ValueError(
            f"{source}: {error.strerror or error}; a file, or numbers with commas, is accepted"
        ) from None
    if data[:1] == b"\x89":
        return load(source, data)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{source}: no text; a plan or a list is accepted") from None


def _bytes(file: BinaryIO) -> bytes:
    """What a file or a pipe holds, read once, no more than a list or the longest plan may have."""
    data = file.read(lists.CHARACTERS)
    return data + file.read(lists.CHARACTERS) if data[:1] == b"\x89" else data


def _grid(args: argparse.Namespace, given: Given) -> Any:
    if args.schedule is None:
        raise ValueError(
            "a list alone does not say its schedule; --schedule, as Flow(shift=3), is needed"
        )
    if given.form == "timesteps":
        return grids.from_timesteps(args.schedule, given.numbers)
    return grids.from_sigmas(args.schedule, given.numbers)


def _numbers(args: argparse.Namespace, given: Given, form: str) -> list[float]:
    """The list that is written, of levels or of times."""
    if form == "timesteps":
        if given.plan is not None:
            return lists.times(given.plan)
        if given.form == "timesteps":
            return [*given.numbers]
        grid = _grid(args, given)
        return [float(t) for t in (grid[:-1] if args.schedule.sigma(grid[-1]) == 0 else grid)]
    if given.plan is not None:
        return lists.levels_of(given.plan)
    if given.form == "sigmas":
        return lists.falling(given.numbers)
    times = _grid(args, given)
    return lists.levels(args.schedule.alpha(times), args.schedule.sigma(times), args.schedule)


def _plan(args: argparse.Namespace, given: Given) -> Plan:
    """The plan that a solver makes of a list."""
    kind = args.prediction
    if kind is None and isinstance(args.schedule, schedules.Flow):
        kind = "flow"
    for name, value in (("solver", args.solver), ("prediction", kind)):
        if value is None:
            raise ValueError(f"a list alone does not say its {name}; --{name} is needed for a plan")
    grid = _grid(args, given)
    words = {"time": args.time, "input_scale": args.input_scale}
    return solvers.SOLVERS[args.solver](Model(None, args.schedule, kind, **words), grid)
