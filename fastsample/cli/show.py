"""fastsample show: a plan as a table and a drawing, two plans side by side, or the solvers."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from ..files import place
from ..plan.text import named
from . import lists
from .options import load, suffix

ABOUT = "print a plan as a table and a drawing, two side by side, or the solvers with their orders"
EXAMPLE = """plans/plan-8.fsplan --picture plan.png
  fastsample show plans/plan-6.fsplan plans/plan-8.fsplan
  fastsample show plans/plan-8.fsplan --sigmas
  fastsample show solvers dpmpp_2m"""


def options(add: Callable) -> None:
    add("plan", help="a .fsplan file, or the word solvers")
    about = "a second .fsplan file to compare with; behind solvers: a name, for its options"
    add("other", nargs="?", help=about)
    add("--json", action="store_true", help="the whole plan as JSON, and nothing else")
    about = "its noise levels alone, from the first to the end, as --sigmas of stable-diffusion.cpp"
    about += " takes them (convert has other forms)"
    add("--sigmas", action="store_true", help=about)
    add("--picture", metavar="FILE", help="also draw its noise levels to a .png")


def run(args: argparse.Namespace) -> None:
    words = {"--json": args.json, "--sigmas": args.sigmas, "--picture": args.picture}
    if args.plan == "solvers":
        from ..report import registry

        return registry.show(args.other, words)
    alone = [word for word in ("--json", "--sigmas") if words[word]]
    if len(alone) > 1 or (alone and args.other):
        beside = args.other if args.other else alone[1]
        raise ValueError(f"{alone[0]} beside {beside}; it is accepted alone, with one plan")
    files = [path for path in (args.plan, args.other) if path is not None]
    plans = dict(zip("ab", map(load, files), strict=False))
    if args.picture is not None:
        if suffix(args.picture) != ".png":
            raise ValueError(f"--picture {args.picture}: a .png file is accepted")
        place(args.picture)
        _picture(args.picture, dict(zip(files, plans.values(), strict=True)))
    plan = plans["a"]
    if args.json:
        print(plan.to_json())
    elif args.sigmas:
        print(lists.written("sigmas", lists.levels_of(plan)))
        if said := lists.left_out(plan):
            print(f"fastsample show: {said}", file=sys.stderr)
    else:
        from ..report import terminal

        width = min(shutil.get_terminal_size().columns, 100)
        whole = (
            terminal.compared(dict(zip("ab", files, strict=False)), plans)
            if args.other
            else (plan.describe())
        )
        print(f"{whole}\n\n{terminal.bars(plans, _blocks(), width)}")


def _blocks() -> bool:
    """Does the terminal's encoding have block elements?"""
    try:
        "▏█".encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _picture(path: str, plans: dict) -> None:
    from .. import report

    names = " and ".join(Path(name).name for name in plans)
    if len(plans) == 1:
        plans = {named(plan): plan for plan in plans.values()}
    report.schedules_picture(path, plans, f"Where {names} ask{'s' * (len(plans) == 1)} the model")
