"""fastsample demo: what a search finds for the embedded model."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from ..files import folder_for
from .options import number, progress, progress_option
from .subjects import UNSEEN, embedded

ABOUT = "search plans for the embedded model, sample, and show the gain"
EXAMPLE = "--out demo"


def options(add: Callable) -> None:
    add("--out", default="demo", help="folder for plans and pictures (default: demo)")
    number(add, "--samples", 64, "unseen noises to compare on")
    number(add, "--search-samples", 80, "noises to search with: 16 to fit, the rest to polish")
    progress_option(add)


def run(args: argparse.Namespace) -> None:
    from .. import report

    report.look(folder_for(args.out, "--out"))
    it = embedded()
    z, held_out = it.noise(args.search_samples, 0), it.noise(args.samples, UNSEEN)
    again = f"fastsample demo --search-samples {len(z)} --samples {len(held_out)}"
    words = {"progress": progress(args), "command": again, "iterations": 4}
    label = it.words(len(z))["cond"]["label"]
    report.demo(it.model, z, label, held_out, Path(args.out), **words)
