"""What every maker does first and last: check its arguments, with one sentence for what is wrong,
open a Builder, and close it with the solver's note.
"""

from __future__ import annotations

import math

from ..grids._checks import apart, falling
from ..plan import Plan
from ..plan.given import real, within
from ._build import Builder
from ._given import resolve

COMPAT = ("exact", "diffusers", "k-diffusion", "comfyui")


def begin(
    model, grid, prediction, start, *, stored="x0", inpaint=False, clip=0.0, compat="exact"
) -> Builder:
    """A Builder for a Model, or a bare schedule with prediction=, on a checked grid."""
    if compat not in COMPAT:
        raise ValueError(f"compat = {compat!r}; one of {', '.join(COMPAT)} is accepted")
    model = resolve(model, prediction)
    grid, clip = falling(model.schedule, grid), number("clip", clip)
    b = Builder(model, grid, stored=stored, start=start, inpaint=inpaint, clip=clip)
    apart(b.t, b.half_log_snr)
    return b


def build(
    b: Builder, solver: str, arguments: dict, orders: list[int], citation: str, **words
) -> Plan:
    """The plan; its order is the largest of its steps', unless words say another."""
    note = {"order": max(orders), "orders": orders, "citations": [citation]}
    return b.build(solver, arguments=arguments, compat=arguments["compat"], **note | words)


def number(name: str, value, low: float = 0.0, high: float = math.inf) -> float:
    """value as a float in [low, high], finite."""
    found = within(value, low, high)
    if found is None:
        raise ValueError(
            f"{name} = {value!r}; a number from {low:g} "
            f"{'up' if high == math.inf else f'to {high:g}'} is accepted"
        )
    return found


def choice(name: str, value, accepted: tuple):
    """The one of those accepted, words or numbers, that value is."""
    meant = value if isinstance(value, str) else real(value)
    if meant not in accepted:
        raise ValueError(
            f"{name} = {value!r}; one of {', '.join(str(a) for a in accepted)} is accepted"
        )
    return accepted[accepted.index(meant)]
