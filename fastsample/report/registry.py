"""The solvers of the registry as a table, with each one's order as measured."""

from __future__ import annotations

import inspect
import math
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from textwrap import fill

import numpy as np

from ..plan import Plan
from ..plan.consistency import drawn, over_law
from ..plan.text import printable
from ..schedules import EDM
from ..solvers import SOLVERS
from ..solvers._start import TIERS
from .tables import table

SCHEDULE = EDM()
# orders: from sigma/alpha = 3 to .1 in steps even in its logarithm, none of them to sigma = 0
TOP, BOTTOM, STEPS = 3.0, 0.1, (64, 128, 256)
ROUNDING = 1e-12  # what is smaller says nothing of an order
# data with a curved flow, .3 N(-1, .25²) + .7 N(1, .25²), and starts on both sides of their split
MEANS, SHARES, STD = np.array([-1.0, 1.0]), np.array([0.3, 0.7]), 0.25
STARTS = np.array([-5.2, -3.1, -1.7, -0.6, 0.7, 1.9, 3.4, 5.0])
SPREAD = 0.5  # data N(0, .5²), on which the variance of what is drawn is known
LIBRARIES = {"diffusers": "diffusers", "k_diffusion": "k-diffusion", "comfyui": "ComfyUI"}
LIBRARIES |= {"diff_sampler": "diff-sampler"}
HEADER = ("solver", "tier", "order", "evaluations", "kept", "noises", "source", "elsewhere")
LEGEND = {
    "tier": "; ".join(f"{name}: {said}" for name, said in TIERS.items()),
    "order": "as measured, from noise with default arguments, its first steps without history; w: "
    "weak order, of the variance of what is drawn; -: more steps do not bring it nearer",
    "evaluations": "of n steps, the last of which ends in sigma = 0",
    "kept": "arrays of x's size that a run keeps beside x",
    "noises": "drawn by a row at most",
}


@dataclass(frozen=True)
class Facts:
    """What a solver of the registry is, with default arguments."""

    name: str
    tier: str
    order: str
    evaluations: str
    kept: int
    noises: int
    source: str  # the whole citation
    elsewhere: dict[str, str]  # {library: its names there}

    @property
    def cells(self) -> tuple[str, ...]:
        """A line under HEADER."""
        names = "; ".join(f"{LIBRARIES.get(k, k)}: {v}" for k, v in self.elsewhere.items())
        counts = self.evaluations, str(self.kept), str(self.noises)
        return self.name, self.tier, self.order, *counts, self.source.split()[-1], names


def facts(name: str) -> Facts:
    """Of SOLVERS[name], from the maker and its plans on EDM."""
    maker, plan = SOLVERS[name], _plan(name, 16, 0.0)
    source = (plan.note.get("citations") or ["-"])[0]
    # a maker of the user's own has neither
    tier, elsewhere = getattr(maker, "tier", "-"), getattr(maker, "elsewhere", {})
    return Facts(name, tier, order(name), _evaluations(name), plan.S, plan.L, source, elsewhere)


def order(name: str) -> str:
    """The slope of the end error from 64 to 256 steps: of the flow's end points, by how much they
    move, where nothing is drawn; else of the variance on Gaussian data, marked w.
    """
    if _plan(name, 8).L:
        errors, mark = [_spread(_plan(name, n)) for n in STEPS[:2]], " w"
    else:
        ends, mark = [_end(_plan(name, n)) for n in STEPS], ""
        errors = [np.abs(a - b).max() for a, b in zip(ends, ends[1:], strict=False)]
    slope = math.log2(errors[0] / errors[1]) if min(errors) > ROUNDING else 0.0
    return f"{slope:.1f}{mark}" if slope > 0.25 else "-"


def _plan(name: str, n: int, end: float = BOTTOM) -> Plan:
    levels = np.geomspace(TOP, BOTTOM, n + 1 if end else n)
    times = SCHEDULE.time(-np.log(levels))
    return SOLVERS[name](
        SCHEDULE, times if end else np.append(times, SCHEDULE.t_zero), prediction="x0"
    )


def _evaluations(name: str) -> str:
    """As a·n + b, of those of 16, 32 and 48 steps."""
    first, second, third = (_plan(name, n, 0.0).nfe for n in (16, 32, 48))
    rise = second - first
    if rise % 16 or third - second != rise:
        return f"{first} at n = 16"
    each, off = rise // 16, first - rise
    return f"{each if each > 1 else ''}n" + (f" {'-' if off < 0 else '+'} {abs(off)}" * bool(off))


def _end(plan: Plan) -> np.ndarray:
    """Where the flow of the two components takes STARTS."""

    def denoise(x: np.ndarray, alpha: float, sigma: float) -> np.ndarray:
        variance = (alpha * STD) ** 2 + sigma**2
        gap = x[:, None] - alpha * MEANS
        log = np.log(SHARES) - gap**2 / (2 * variance)
        share = np.exp(log - log.max(1, keepdims=True))
        each = MEANS + alpha * STD**2 / variance * gap
        return (share * each).sum(1) / share.sum(1)

    return over_law(plan, STARTS, denoise, None)


def _spread(plan: Plan) -> float:
    """The error of the end's variance, from x's own at the start; a state is its coefficients over
    the start and every noise, of unit variance each.
    """
    names = drawn(plan)
    unit = np.eye(1 + len(names))
    noise: Callable = dict(zip(names, unit[1:], strict=True)).__getitem__
    denoise = lambda x, a, s: a * SPREAD**2 / ((a * SPREAD) ** 2 + s**2) * x
    law = lambda i: (plan.alpha[i] * SPREAD) ** 2 + plan.sigma[i] ** 2
    end = over_law(plan, math.sqrt(law(1)) * unit[0], denoise, noise)
    return abs(float((end**2).sum()) - law(-1))


def solvers(markdown: bool = False) -> str:
    """Every solver of the registry, a line each."""
    return table(HEADER, [facts(name).cells for name in SOLVERS], markdown, words=2)


def solver(name: str) -> str:
    """One solver: what the table says of it, its options with their defaults, its docstring."""
    if name not in SOLVERS:
        near = get_close_matches(name, SOLVERS, 3, 0.5) or SOLVERS
        raise ValueError(f"{printable(name)}: no solver; one of {', '.join(near)} is accepted")
    found, given = facts(name), inspect.signature(SOLVERS[name]).parameters.values()
    options = [f"{p.name}={p.default!r}" for p in given if p.kind is p.KEYWORD_ONLY]
    said = dict(zip(HEADER, found.cells, strict=True)) | {"source": found.source}
    said |= {"options": ", ".join(options)}
    about = inspect.getdoc(SOLVERS[name]) or "It says nothing of itself."
    return "\n".join([*(f"{key:11}  {value}" for key, value in said.items()), "", about])


def show(name: str | None, options: dict[str, object]) -> None:
    """What `fastsample show solvers [name]` prints; options of plans are refused."""
    for word, value in options.items():
        if value:
            raise ValueError(f"{word} belongs to a plan; solvers and a solver's name are accepted")
    if name is not None:
        return print(solver(name))
    lines = solvers().splitlines()
    # a line that a terminal breaks is no line of a table; in a file or a pipe each is whole
    narrow = max(20, shutil.get_terminal_size().columns)
    wide = narrow if sys.stdout.isatty() else max(map(len, lines))
    print("\n".join(line if len(line) <= wide else f"{line[: wide - 3]}..." for line in lines))
    print()
    for key, said in LEGEND.items():
        print(fill(f"{key:11}  {said}", min(wide, 100), subsequent_indent=13 * " "))
