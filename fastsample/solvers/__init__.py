"""Solvers: functions (model or schedule, grid, ...) -> Plan.

    f(model, grid, *, prediction=None, start=None, inpaint=False, clip=0.0, compat="exact", ...)

model       a Model, or a schedule together with prediction=
grid        [n+1] times of the schedule, noise to data (fastsample.grids)
start       None: the run starts from noise. An index into the grid, or a strength in (0.0, 1.0] as a float: row 0 noises an image to that
            level and the plan covers grid[start:]
inpaint     True: the plan can be run with a mask and a known image
clip        bound of |x0|, 0 for none
compat      "exact", or a library whose deviations are reproduced ("diffusers", "k-diffusion"); each solver's docstring says which

The plan's note has `order`, of a run as it is started here, and `orders`, of every step. Wrong arguments raise ValueError.
"""

from __future__ import annotations

from ..model import Model
from ..plan import Plan
from ..schedules import from_json
from ._exponential import jump
from .ddim import ddim
from .dpmpp_2m import dpmpp_2m
from .dpmpp_2m_sde import dpmpp_2m_sde
from .dpmpp_2s import dpmpp_2s
from .dpmpp_3m import dpmpp_3m
from .euler import euler
from .euler_ancestral import euler_ancestral
from .heun import heun
from .lcm import lcm
from .unipc import unipc

SOLVERS = {f.__name__: f for f in (ddim, euler, euler_ancestral, heun, dpmpp_2s, dpmpp_2m, dpmpp_3m, dpmpp_2m_sde, unipc, lcm)}
JUMPS = {"ddim": jump, "euler": jump}  # solvers whose every step is one map (a, b) of x and x0 that depends on two times alone

__all__ = ["JUMPS", "SOLVERS", "jump", "remake", *SOLVERS]


def remake(plan: Plan, start: int | float | None) -> Plan:
    """The same solver on the same grid for an image noised to grid[start], compiled from the plan's own note.

    start is an index into the plan's whole grid, or a strength in (0.0, 1.0]; None compiles it for noise. Raises ValueError for plans that
    a solver of this registry did not make (learned tables), that guidance was added to, or whose model gave its times by a callable.
    """
    note = plan.note
    name, words = note.get("solver"), note.get("model") or {}
    if name not in SOLVERS or not {"arguments", "schedule", "grid", "prediction"} <= note.keys():
        raise ValueError(f"remake: solver = {name!r}; plans of {', '.join(SOLVERS)} are accepted (not learned tables)")
    if note.get("guidance") is not None:
        raise ValueError("remake: the plan has guidance; the plan from before guidance was added is accepted")
    for word in ("time", "input_scale"):
        if words.get(word) == "callable":
            raise ValueError(f"remake: the model's {word} was a callable, which no note keeps; solvers.{name} with start= is accepted")
    said = {word: words.get(word) for word in ("time", "input_scale", "sigma_data", "model_id")}
    model = Model(None, from_json(note["schedule"]), note["prediction"], **said)
    options = {"inpaint": note.get("inpaint", False), "clip": note.get("clip", 0.0), **note["arguments"]}
    return SOLVERS[name](model, note["grid"], start=start, **options)


Plan._makers["remake"] = remake
