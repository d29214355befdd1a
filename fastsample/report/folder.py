"""All that is written of a search: its plans, the page, the figures, and the pictures as PNG."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..files import make_folder, place, write_whole
from ..plan.text import printable
from .csv import csv
from .page import page
from .pictures import error_picture, samples_picture, schedules_picture

if TYPE_CHECKING:
    from ..optimize import Search


# beside the plans
FILES = ("search.html", "search.csv", "schedules.png", "error_vs_evaluations.png", "samples.png")


def look(folder: str | Path) -> None:
    """Refuse, before a search, what stands in the folder where `write` would write and cannot be
    replaced; OSError, one sentence.
    """
    plans = sorted(Path(folder).glob("plan-*.fsplan"))
    for path in [*plans, *(Path(folder, name) for name in FILES)]:
        if os.path.lexists(path):
            place(path)


def write(search: Search, folder: str | Path) -> list[Path]:
    """Write a search to a folder, each file whole or not at all: a plan of every budget,
    search.html, search.csv and, where matplotlib is installed, schedules.png, where noise was held
    out error_vs_evaluations.png and, of the images of a climb, samples.png. Returns the plans'
    paths.
    """
    out = make_folder(folder)
    paths = search.save(out)
    page(search, out / "search.html")
    write_whole(out / "search.csv", csv(search).encode())
    with suppress(ImportError):  # the page has all of it too
        _pictures(search, out)
    return paths


def written(folder: Path, plans: Sequence[Path]) -> str:
    """In words, what `write` wrote to the folder, these plans among it."""
    beside = [name for name in FILES if (folder / name).exists()]
    return printable(f"{', '.join([*(path.name for path in plans), *beside])} to {folder}")


def _pictures(search: Search, out: Path) -> None:
    plans = {f"{m} evaluations": plan for m, plan in sorted(search.plans.items())}
    schedules_picture(out / "schedules.png", plans, "Where the plans ask the model")
    finite = lambda psnr: {m: each[0] for m, each in psnr.items() if np.isfinite(each[0])}
    curves = {rung.name: finite(rung.psnr) for rung in search.judged}
    title = "Every rung of the search, on noises that no plan was made with"
    if curves := {name: curve for name, curve in curves.items() if curve}:
        error_picture(out / "error_vs_evaluations.png", curves, title)
    if np.ndim(search.target) == 4 and search.target.shape[1] in (1, 3):
        shown = {"teacher": search.target}
        for rung in search.rungs:
            for m, ends in rung.ends.items():
                if len(ends) == len(search.target):
                    shown[f"{rung.name}, {m} ({rung.psnr[m][0]:.1f} dB)"] = ends
        title = "The same noises, by method and number of evaluations (PSNR to the teacher)"
        samples_picture(out / "samples.png", shown, title)
