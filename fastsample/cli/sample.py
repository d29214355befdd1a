"""fastsample sample: run a plan and write its samples."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any

from ..files import place, write_whole
from ..plan import Plan, provenance
from ..plan.text import printable
from .options import UNREADABLE, load, suffix
from .subjects import Subject, model_options, subject

ABOUT = "run a plan and write its samples"
EXAMPLE = "plans/plan-8.fsplan --samples 64 --out a.png --out a.npy"


def options(add: Callable) -> None:
    add("plan", help="a .fsplan file")
    about = "a .png grid of images or a .npy array; may be given twice (default: samples.png, or "
    about += ".npy where samples are no images)"
    add("--out", action="append", metavar="FILE", help=about)
    model_options(add, 64)
    about = "begin from images [n,*], sample b from number b mod n, at one of the three that follow"
    add("--latent", metavar="FILE.npy", help=about)
    add("--strength", type=float, metavar="S", help="the share of the plan's steps that is run")
    about = "the noise level sigma/alpha the images are noised to, from which every step is run"
    add("--level", type=float, metavar="L", help=about)
    add("--start", type=int, metavar="K", help="the index into the plan's grid to begin at")


def run(args: argparse.Namespace) -> None:
    plan, outs = load(args.plan), args.out or []
    for out in outs:
        place(out)
        if suffix(out) not in (".png", ".npy"):
            raise ValueError(f"--out {out}: a .png or a .npy file is accepted")
    from .. import metrics, report

    if args.model is None and args.guidance is None:
        args.guidance = _found_guidance(plan)
    it = subject(args)
    picture = report.is_image(it.shape)
    drawn = [] if picture else [out for out in outs if suffix(out) == ".png"]
    if drawn:
        raise ValueError(
            f"--out {drawn[0]}: samples of shape {list(it.shape)} are no images, [1 or 3,H,W] or "
            "[H,W]; a .npy file is accepted"
        )
    if not outs:
        outs = ["samples.png" if picture else "samples.npy"]
        place(outs[0])
    plan, given = _begun(plan, args, it)
    # an image is noised as a Sampler noises it, not with what the seed's own sample began with
    z = it.noise(args.samples, args.seed, stage=int("latent" in given))
    words, begin = it.words(args.samples) | given, time.perf_counter()
    how = {"batch_size": args.batch_size, "seed": args.seed, "model_dtype": it.dtype}
    end = metrics.run(plan, it.model, z, **how, **words).cpu()
    seconds = time.perf_counter() - begin
    for out in outs:
        if suffix(out) == ".png":
            report.save_images(out, end)
        else:
            write_whole(out, report.npy(end))
    print(f"{args.samples} samples of {plan.nfe} evaluations in {seconds:.2f} s")
    for out in outs:
        print(f"wrote {printable(out)}")


def _begun(plan: Plan, args: argparse.Namespace, it: Subject) -> tuple[Plan, dict]:
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
    images = _images(args.latent, it.shape).to(it.device)
    plan = plan.remake(**where) if said else plan
    return plan, {"latent": images[[b % len(images) for b in range(args.samples)]]}


def _images(path: str, shape: Sequence[int]) -> Any:
    """The images [n,*] of a .npy file as a float32 tensor."""
    import numpy as np
    import torch

    try:
        found = np.load(path, allow_pickle=False)
    except UNREADABLE as error:
        why = getattr(error, "strerror", None) or "it holds no array"
        raise ValueError(f"--latent {path}: {why}; a .npy file is accepted") from None
    if not isinstance(found, np.ndarray) or found.dtype.kind not in "fiu" or not found.size:
        raise ValueError(f"--latent {path}: no array of numbers; a .npy file of images is accepted")
    if found.shape[1:] != tuple(shape):
        raise ValueError(
            f"--latent {path}: {list(found.shape)} where samples are {list(shape)}; "
            f"[n, {', '.join(map(str, shape))}] is accepted"
        )
    with np.errstate(over="ignore"):
        images = found.astype(np.float32)
    if not np.isfinite(images).all():
        raise ValueError(
            f"--latent {path}: it holds NaN, Inf or numbers beyond float32; finite numbers are "
            "accepted"
        )
    return torch.from_numpy(images)


def _found_guidance(plan: Plan) -> float | None:
    """The guidance scale a plan was found with; None for a plan of one branch found without."""
    scale = provenance.guidance(plan)
    if scale is None and plan.G > 1:
        raise ValueError(
            f"the plan reads {plan.G} branches and its note names no guidance scale; pass "
            "--guidance"
        )
    return scale
