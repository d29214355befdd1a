"""The command line: `fastsample COMMAND ...`, a file of this folder for each command.

A command's file has ABOUT and EXAMPLE, `options(add)` that declares what it takes, and `run(args)`.
What cannot be done is refused before the work begins, in one sentence on stderr with exit code 2;
files appear whole or not at all.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from .. import __version__
from ..plan.text import printable
from . import convert, demo, doctor, optimize, sample, show
from .subjects import UNSEEN, Subject, embedded, subject

__all__ = ["UNSEEN", "Subject", "embedded", "main", "parser", "subject"]

COMMANDS = (optimize, sample, show, convert, demo, doctor)
PAGE = """\
Few-step sampling for diffusion and flow models. A plan is a sampler compiled into a small table: of
so many evaluations of your model, at these noise levels, with these coefficients. `optimize` finds
the plan for a model and a number of evaluations; it is run from Python, C or C++, or by `sample`.
"""
EPILOG = """\
examples:
  fastsample demo                                        plans for the embedded model and their gain
  fastsample optimize --model mine:make --shape 4,64,64  the best plans for a model of yours
  fastsample optimize --pipeline sd15 --prompt "a cat"   the same for a folder of diffusers
  fastsample sample plans/plan-8.fsplan --out a.png      64 images with one of them
  fastsample show plans/plan-8.fsplan                    the plan as a table, its noise levels drawn
  fastsample show plans/plan-6.fsplan plans/plan-8.fsplan
                                                         two plans side by side
  fastsample show solvers                                the solvers and their measured orders
  fastsample convert plans/plan-8.fsplan --to comfyui    its noise levels for ComfyUI
  fastsample doctor                                      versions, backends, and what is missing

exit codes:
  0    it is done
  2    it was refused, or failed: one sentence on stderr says what and what is accepted
       (--traceback, behind a command, shows where it came from)
  130  it was interrupted; nothing half-written is left

fastsample COMMAND --help has a command's options; a plan is a file that is safe to open, and
--model runs the code of the module that it names."""
# of these the sentence says it all; of others, a model's own among them, the name is said too
SAID = (ValueError, TypeError, OSError, ImportError, AttributeError, RuntimeError, ArithmeticError)


class Parser(argparse.ArgumentParser):
    """A parser that refuses in one sentence."""

    def __init__(self, *args: object, **words: object) -> None:
        super().__init__(*args, formatter_class=argparse.RawDescriptionHelpFormatter, **words)

    def error(self, message: str) -> NoReturn:
        said = printable(message)
        self.exit(2, f"{self.prog}: {said}; {self.prog} --help says what is accepted\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by whoever called
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a name or note may hold what the terminal has not
            stream.reconfigure(errors="backslashreplace")
    try:
        return _run(argv)
    finally:
        lost, unsaid = _lost(sys.stdout), _lost(sys.stderr)
        if failed := lost is not None and not isinstance(lost, BrokenPipeError):
            print(f"fastsample: standard output: {lost.strerror}", file=sys.stderr)
        if failed or unsaid is not None:
            sys.exit(2)


def _run(argv: Sequence[str] | None) -> int:
    top = parser()
    args, others = top.parse_known_args(argv)
    if others:
        top.prog += f" {args.name}"
        top.error(f"unrecognized arguments: {' '.join(others)}")
    try:
        args.command(args)
    except KeyboardInterrupt:
        print("fastsample: interrupted; nothing half-written is left", file=sys.stderr)
        return 130
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _unread():
            return 0
        if args.traceback:
            raise
        name = type(error).__name__
        why = (
            str(error) if isinstance(error, SAID) else f"{name}: {error} (--traceback shows where)"
        )
        why = printable(why) or name
        if getattr(error, "name", None) == "torch":
            why = "torch is not installed; pip install torch"
        print(f"fastsample {args.name}: {why}", file=sys.stderr)
        return 2
    return 0


def _unread() -> bool:
    """Has the reader of standard output gone? A model of the user's may have pipes of its own."""
    try:
        print(flush=True)
    except BrokenPipeError:
        return True
    return False


def _lost(stream: Any) -> OSError | None:
    """What keeps the buffer of a stream from being written, if anything does: told here, since at
    exit Python would write its own words and leave with 120.
    """
    try:
        stream.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return error
    return None


def parser() -> Parser:
    """What reads the command line."""
    top = Parser("fastsample", usage="fastsample COMMAND ...", description=PAGE, epilog=EPILOG)
    top.add_argument("--version", action="version", version=f"fastsample {__version__}")
    commands = top.add_subparsers(dest="name", required=True, metavar="COMMAND", title="commands")
    for command in COMMANDS:
        name = command.__name__.rpartition(".")[2]
        example = f"example:\n  fastsample {name} {command.EXAMPLE}".rstrip()
        about = command.ABOUT
        words = {"prog": f"fastsample {name}", "description": f"{about}.", "epilog": example}
        sub = commands.add_parser(name, help=about, **words)
        sub.set_defaults(command=command.run)
        about = "on an error show where it came from"
        sub.add_argument("--traceback", action="store_true", help=about)
        command.options(sub.add_argument)
    return top
