"""Where a run that begins from an image begins: at a point of the grid, after a share of its steps,
or at a noise level.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from fractions import Fraction
from functools import wraps

from ..grids import check, starting_at
from ..plan import Plan
from ..plan.given import real, rounding, within
from ._given import MEANT, resolve

TIERS = {
    "A": "held to rows worked out by hand, to a second derivation and to other libraries' numbers",
    "B": "a Runge-Kutta tableau, held to its order conditions",
}


def starts(maker: Callable[..., Plan]) -> Callable[..., Plan]:
    """The maker with strength= and level= beside its start=, as `fastsample.solvers` says; itself
    where it has them, or takes no start=.
    """
    own = inspect.signature(maker)
    if "start" not in own.parameters or "strength" in own.parameters:
        return maker

    @wraps(maker)
    def made(model, grid, *, start=None, strength=None, level=None, **words) -> Plan:
        if strength is None and level is None:
            return maker(model, grid, start=start, **words)
        first = model[0] if isinstance(model, (list, tuple)) and model else model
        schedule = resolve(first, words.get("prediction")).schedule
        whole = check(schedule, grid)
        only_one(start, strength, level)
        if level is None:
            return maker(model, whole, start=index_of(len(whole) - 1, strength), **words)
        plan = maker(model, starting_at(schedule, whole, level), start=0, **words)
        return plan.with_note(grid=whole.tolist(), level=real(level))

    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None)
        for name in ("strength", "level")
    ]
    parameters = [*own.parameters.values()]
    at = [*own.parameters].index("start") + 1
    made.__signature__ = own.replace(parameters=parameters[:at] + added + parameters[at:])
    return made


def solver(
    tier: str, *, usual: bool = False, **elsewhere: str
) -> Callable[[Callable[..., Plan]], Callable[..., Plan]]:
    """Marks a maker of the registry: with `starts`, a tier of TIERS, and what libraries call it,
    library="name", which `fastsample show solvers` and docs/solvers.md print. usual: comparisons by
    hand try it.
    """
    if tier not in TIERS:
        raise ValueError(f"solver: tier = {tier!r}; one of {', '.join(TIERS)} is accepted")

    def mark(maker: Callable[..., Plan]) -> Callable[..., Plan]:
        made = starts(maker)
        made.tier, made.usual, made.elsewhere = tier, usual, elsewhere
        return made

    return mark


def only_one(start, strength, level) -> None:
    """Refuse two ways of saying where."""
    words = {"start": start, "strength": strength, "level": level}
    said = [f"{word}={value!r:.40}" for word, value in words.items() if value is not None]
    if len(said) > 1:
        raise ValueError(
            f"start: {' beside '.join(said)}; one of the three is accepted: start= is an index "
            f"into the grid, {MEANT}"
        )


def index_of(steps: int, strength: float) -> int:
    """The index at which the last floor(strength·steps) of the steps begin, as pipelines count
    them, but that a product which is a whole number but for rounding is that number: .29 of 100
    steps are 29.
    """
    share = within(strength, 0.0, 1.0)
    if share is None:
        raise ValueError(f"strength: {strength!r:.60}; a number above 0 up to 1 is accepted")
    count = _count(steps, strength, share)
    if share == 0.0:
        raise ValueError(
            "strength: 0 leaves the image as it is and there is nothing to run; a number above 0 "
            "up to 1 is accepted"
        )
    if count == 0:
        raise ValueError(
            f"strength: {strength!r:.60} of {steps} step(s) is no whole step; {1 / steps:.6g} to "
            f"1, or level= with the noise level sigma/alpha that the image is noised to, from "
            f"which all {steps} step(s) run, is accepted"
        )
    return steps - count


def _count(steps: int, strength: float, share: float) -> int:
    """floor(strength·steps) in the strength's own arithmetic, which is what a pipeline computes,
    unless the strength stands for another share: it may be the nearest of its type to a fraction of
    the steps, and to hundredths.
    """
    off = rounding(strength)
    plain = min(int(strength * steps), steps) if share < 1.0 else steps
    meant = [
        int(part * steps)
        for part in (Fraction(round(share * steps), steps), Fraction(round(100.0 * share), 100))
        if abs(share - part) <= off * part
    ]
    return plain if plain in meant or not meant else meant[-1]
