"""The command line: fastsample demo | optimize | sample | show | doctor.

optimize and sample take the embedded model, or the user's own as --model package.module:factory,
where factory() returns a fastsample.Model and the shape of a sample comes from --shape or from an
attribute `shape` of the model's callable. Exit codes: 0 done, 2 bad input (one sentence on stderr),
130 interrupted. Files appear whole or not at all.
"""

from __future__ import annotations

import argparse
import importlib
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from . import search_command
from .files import folder_for, place, write_whole
from .plan import Plan, provenance
from .plan.text import printable

EXAMPLES = """examples:
  fastsample demo                                    plans for the embedded model and their gain
  fastsample optimize --budgets 4,6,8 --out plans    the best plans of 4, 6 and 8 evaluations
  fastsample sample plans/plan-8.fsplan --out a.png  64 images with one of them
  fastsample show plans/plan-8.fsplan                the plan as a table
  fastsample show solvers                            the solvers and their measured orders
  fastsample doctor                                  versions, the backends, and what is missing"""
FORM = {"formatter_class": argparse.RawDescriptionHelpFormatter}
UNSEEN = 1_000_000  # seeds of noises no search has seen begin here
# what is told in one sentence; anything else is a fault of ours
SAID = (ValueError, TypeError, OSError, ImportError, AttributeError, RuntimeError, ArithmeticError)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    args = parser().parse_args(argv)
    try:
        args.command(args)
    except KeyboardInterrupt:
        print("fastsample: interrupted; nothing half-written is left", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader has gone: say nothing more, at exit neither.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except SAID as error:
        if args.traceback:
            raise
        why = printable(error) or type(error).__name__
        if getattr(error, "name", None) == "torch":
            why = "torch is not installed; pip install torch"
        print(f"fastsample {args.name}: {why}", file=sys.stderr)
        return 2
    return 0


def parser() -> argparse.ArgumentParser:
    about = "Few-step sampling for diffusion and flow models."
    top = argparse.ArgumentParser("fastsample", description=about, epilog=EXAMPLES, **FORM)
    names = "demo | optimize | sample | show | doctor"
    command = partial(_command, top.add_subparsers(dest="name", required=True, metavar=names))

    about = "search plans for the embedded model, sample, and show the gain"
    add = command(demo, about, "--out demo")
    add("--out", default="demo", help="folder for plans and pictures (default: demo)")
    _number(add, "--samples", 64, "unseen noises to compare on")
    _number(add, "--search-samples", 80, "noises to search with: 16 to fit, the rest to polish")
    _progress_option(add)
    example = "--model mine:make --shape 4,64,64 --budgets 4,6,8 --out plans"
    add = command(optimize, "search whole plans, or time grids, for a model", example)
    search_command.options(add, _number, _count)
    _model_options(add, None)
    _progress_option(add)
    example = "plans/plan-8.fsplan --samples 64 --out a.png --out a.npy"
    add = command(sample, "run a plan and write its samples", example)
    add("plan", help="a .fsplan file")
    about = "a .png grid of images or a .npy array; may be given twice (default: samples.png, or "
    about += ".npy where samples are no images)"
    add("--out", action="append", metavar="FILE", help=about)
    _model_options(add, 64)
    about = "begin from images [n,*], sample b from number b mod n, at one of the three that follow"
    add("--latent", metavar="FILE.npy", help=about)
    add("--strength", type=float, metavar="S", help="the share of the plan's steps that is run")
    about = "the noise level sigma/alpha the images are noised to, from which every step is run"
    add("--level", type=float, metavar="L", help=about)
    add("--start", type=int, metavar="K", help="the index into the plan's grid to begin at")
    about = "print a plan as a table, or the solvers with their measured orders, or one of them"
    add = command(show, about, "plans/plan-8.fsplan --picture plan.png")
    add("plan", help="a .fsplan file, or the word solvers")
    add("solver", nargs="?", help="behind solvers: a name, for its options and formula")
    add("--json", action="store_true", help="the whole plan as JSON")
    add("--picture", metavar="FILE", help="also draw its noise levels to a .png")
    about = "print versions, the backends with the reason for each, and what is missing"
    command(doctor, about, "")
    return top


def _command(commands: Any, run: Callable, about: str, example: str) -> Callable:
    """What adds an argument to a new command, named after its function."""
    example = f"example:\n  fastsample {run.__name__} {example}".rstrip()
    sub = commands.add_parser(run.__name__, help=about, description=about, epilog=example, **FORM)
    sub.set_defaults(command=run)
    sub.add_argument("--traceback", action="store_true", help="on an error show where it came from")
    return sub.add_argument


def _model_options(add: Callable, samples: int | None) -> None:
    about = "a factory of a fastsample.Model (default: the embedded model)"
    add("--model", metavar="MODULE:FACTORY", help=about)
    add("--shape", type=_shape, metavar="C,H,W", help="shape of one sample")
    if samples is not None:
        _number(add, "--samples", samples, "noises")
    about = "seed of the first; sample b has seed + b (default: 0, so a command repeats itself)"
    add("--seed", type=int, default=0, help=about)
    _number(add, "--batch-size", 256, "rows of one model call")
    about = "embedded model: one class 0..9 (default: each in turn; -1: none)"
    add("--label", type=int, help=about)
    add("--guidance", type=float, help="embedded model: classifier-free guidance scale")


def _progress_option(add: Callable) -> None:
    about = "progress bars (default: on a terminal)"
    add("--progress", action=argparse.BooleanOptionalAction, default=None, help=about)


def _count(text: str, low: int = 1) -> int:
    if not text.isdecimal() or not low <= int(text) <= 1_000_000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of {low} to 1000000")
    return int(text)


def _shape(text: str) -> tuple[int, ...]:
    return tuple(_count(part.strip()) for part in text.split(","))


def _number(add: Callable, name: str, default: int, about: str, low: int = 1) -> None:
    """An option that takes a whole number from `low` up; its help ends with the default."""
    count, about = partial(_count, low=low), f"{about} (default: {default})"
    add(name, type=count, default=default, help=about)


# -- models ----------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Subject:
    """A model to work on: the Model, the shape of one sample, and the words for a batch,
    words(count) -> {cond, uncond, guidance}.
    """

    model: Any
    shape: tuple[int, ...]
    words: Callable[[int], dict[str, Any]]

    def noise(self, count: int, seed: int, stage: int = 0) -> Any:
        """Unit noise [count, *shape] of seeds seed, seed + 1, ..., at this stage."""
        import torch

        from .kernels import normal

        seeds = torch.arange(count, dtype=torch.int64) + seed
        flat = normal(seeds, torch.zeros_like(seeds), math.prod(self.shape), stage)
        return flat.reshape(count, *self.shape)


def subject(args: argparse.Namespace) -> Subject:
    """The model a command was asked to work on."""
    spec = args.model
    if spec is None:
        if args.shape:
            raise ValueError("--shape belongs to --model; the embedded model's samples are 1,28,28")
        return embedded(args.label, args.guidance)
    if args.label is not None or args.guidance is not None:
        raise ValueError(
            "--label and --guidance belong to the embedded model; close over your own model's "
            "words in its factory"
        )
    from .model import Model

    module, _, name = spec.partition(":")
    if not module or not name:
        raise ValueError(f"--model {spec}: no factory is named; package.module:factory is needed")
    sys.path.insert(0, os.getcwd())  # as python -m does: a module beside the user is found
    found = getattr(importlib.import_module(module), name, None)
    if not callable(found):
        raise ValueError(
            f"--model {spec}: {module} has no callable {name}; a factory that returns a "
            "fastsample.Model is needed"
        )
    model = found()
    if not isinstance(model, Model):
        raise TypeError(
            f"--model {spec}: the factory returned a {type(model).__name__}; a fastsample.Model is "
            "needed"
        )
    shape = args.shape or getattr(model.fn, "shape", None)
    if shape is None:
        raise ValueError(
            f"--model {spec}: the shape of a sample is not known; pass --shape C,H,W or give the "
            "model's callable an attribute shape"
        )
    return Subject(model, tuple(int(n) for n in shape), lambda count: {})


def embedded(label: int | None = None, guidance: float | None = None) -> Subject:
    """The embedded model, its classes in turn or one class, with or without guidance."""
    import torch

    from . import models

    if label is not None and not -1 <= label <= 9:
        raise ValueError(
            f"--label {label}: there is no such class; 0 to 9, or -1 for none, is accepted"
        )

    def words(count: int) -> dict[str, Any]:
        none = torch.full((count,), 10)  # the eleventh class, "no class", which -1 stands for
        labels = torch.arange(count) % 10 if label is None else torch.full((count,), label % 11)
        plain = {"cond": {"label": labels}}
        if guidance is None:
            return plain
        return {**plain, "uncond": {"label": none}, "guidance": guidance}

    return Subject(models.fashion(), (1, 28, 28), words)


# -- commands --------------------------------------------------------------------------------------
def optimize(args: argparse.Namespace) -> None:
    from . import report

    report.look(folder_for(args.out, "--out"))
    if args.checkpoint is not None:
        folder_for(args.checkpoint, "--checkpoint")
    if args.budgets and args.budget:
        raise ValueError(
            f"optimize: --budget {args.budget} beside --budgets; one of them is accepted"
        )
    search_command.run(args, subject(args), UNSEEN, _progress(args))


def sample(args: argparse.Namespace) -> None:
    plan, outs = _load(args.plan), args.out or []
    for out in outs:
        place(out)
        if _suffix(out) not in (".png", ".npy"):
            raise ValueError(f"--out {out}: a .png or a .npy file is accepted")
    from . import metrics, report

    if args.model is None and args.guidance is None:
        args.guidance = _found_guidance(plan)
    it = subject(args)
    picture = report.is_image(it.shape)
    drawn = [] if picture else [out for out in outs if _suffix(out) == ".png"]
    if drawn:
        raise ValueError(
            f"--out {drawn[0]}: samples of shape {list(it.shape)} are no images, [1 or 3,H,W] or "
            "[H,W]; a .npy file is accepted"
        )
    if not outs:
        outs = ["samples.png" if picture else "samples.npy"]
        place(outs[0])
    plan, given = _begun(plan, args, it.shape)
    # an image is noised as a Sampler noises it, not with what the seed's own sample began with
    z = it.noise(args.samples, args.seed, stage=int("latent" in given))
    words, begin = it.words(args.samples) | given, time.perf_counter()
    end = metrics.run(plan, it.model, z, batch_size=args.batch_size, seed=args.seed, **words)
    seconds = time.perf_counter() - begin
    print(f"{args.samples} samples of {plan.nfe} evaluations in {seconds:.2f} s")
    for out in outs:
        if _suffix(out) == ".png":
            report.save_images(out, end)
        else:
            write_whole(out, report.npy(end))
        print(f"wrote {out}")


def _suffix(path: str) -> str:
    return Path(path).suffix.lower()


def _begun(plan: Plan, args: argparse.Namespace, shape: Sequence[int]) -> tuple[Plan, dict]:
    """The plan that begins as the command says, and what a run of it is given beside its noise."""
    where = {name: getattr(args, name) for name in ("start", "strength", "level")}
    said = [f"--{name} {value}" for name, value in where.items() if value is not None]
    if args.latent is None:
        if said or not plan.sigma[0]:
            asks = said[0] if said else f"{args.plan}, made with start=,"
            raise ValueError(f"{asks} begins from an image; --latent FILE.npy is needed")
        return plan, {}
    if plan.sigma[0] and not said:
        raise ValueError(
            f"--latent {args.latent}: where it begins is not said; --strength, --level or --start "
            "is needed"
        )
    images = _images(args.latent, shape)
    plan = plan.remake(**where) if said else plan
    return plan, {"latent": images[[b % len(images) for b in range(args.samples)]]}


def _images(path: str, shape: Sequence[int]) -> Any:
    """The images [n,*] of a .npy file as a float32 tensor."""
    import numpy as np
    import torch

    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        why = getattr(error, "strerror", None) or "it holds no array"
        raise ValueError(f"--latent {path}: {why}; a .npy file is accepted") from None
    if not isinstance(found, np.ndarray) or found.dtype.kind not in "fiu" or not found.size:
        raise ValueError(f"--latent {path}: no array of numbers; a .npy file of images is accepted")
    if found.shape[1:] != tuple(shape):
        raise ValueError(
            f"--latent {path}: {list(found.shape)} where samples are {list(shape)}; "
            f"[n, {', '.join(map(str, shape))}] is accepted"
        )
    return torch.from_numpy(found.astype(np.float32))


def _found_guidance(plan: Plan) -> float | None:
    """The guidance scale a plan was found with; None for a plan of one branch found without."""
    scale = provenance.guidance(plan)
    if scale is None and plan.G > 1:
        raise ValueError(
            f"sample: the plan reads {plan.G} branches and its note names no guidance scale; pass "
            "--guidance"
        )
    return scale


def show(args: argparse.Namespace) -> None:
    if args.plan == "solvers":
        from .report import registry

        return registry.show(args.solver, {"--json": args.json, "--picture": args.picture})
    if args.solver is not None:
        raise ValueError(f"{args.solver} behind {args.plan}; a name is accepted behind solvers")
    plan = _load(args.plan)
    if args.picture and _suffix(args.picture) != ".png":
        raise ValueError(f"--picture {args.picture}: a .png file is accepted")
    print(plan.to_json() if args.json else plan.describe())
    if args.picture:
        from . import report

        drawn = {printable(plan.note.get("solver", "plan")): plan}
        title = f"Where {Path(args.plan).name} asks the model"
        report.schedules_picture(args.picture, drawn, title)


def doctor(args: argparse.Namespace) -> None:
    from . import report

    lines = report.doctor()
    width = max(len(name) for name, _ in lines)
    print("\n".join(f"{name.ljust(width)}  {finding}" for name, finding in lines))


def demo(args: argparse.Namespace) -> None:
    from . import report

    report.look(folder_for(args.out, "--out"))
    it = embedded()
    z, held_out = it.noise(args.search_samples, 0), it.noise(args.samples, UNSEEN)
    again = f"fastsample demo --search-samples {len(z)} --samples {len(held_out)}"
    options = {"progress": _progress(args), "command": again, "iterations": 4}
    label = it.words(len(z))["cond"]["label"]
    report.demo(it.model, z, label, held_out, Path(args.out), **options)


def _load(path: str) -> Plan:
    try:
        return Plan.load(path)
    except OSError as error:
        raise ValueError(
            f"{path}: {error.strerror or error}; the path of a .fsplan file is needed"
        ) from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _progress(args: argparse.Namespace) -> bool:
    return sys.stderr.isatty() if args.progress is None else args.progress
