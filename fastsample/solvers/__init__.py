"""Solvers: functions (model or schedule, grid, ...) -> Plan.

    f(model, grid, *, prediction=None, start=None, strength=None, level=None, inpaint=False,
      clip=0.0, compat="exact", ...)

model       a Model, or a schedule together with prediction=
grid        [n+1] times of the schedule, noise to data (fastsample.grids)
start       None: the run starts from noise. An index into the grid: row 0 noises an image to that
            level and the plan covers grid[start:]
strength    in place of start: the share of the steps to run, above 0 up to 1: the last
            floor(strength·n) of them (a product whole but for rounding is that number)
level       in place of start: the noise level sigma/alpha that row 0 noises an image to; the grid
            is made again to begin there with all n steps (`grids.starting_at`). A step of several
            evaluations that has one from alpha = 0, as its docstring says, has all of them where
            it begins at a level. A state that stands there already:
            Sampler(plan.remake(level=...), model)(latent=state, start=1). A level for each sample:
            Engine.submit(plan, latent=..., level=...) for each
inpaint     True: the plan can be run with a mask and a known image
clip        bound of |x0|, 0 for none
compat      "exact", or a library whose deviations are reproduced ("diffusers", "k-diffusion");
            each solver's docstring says which

`inverted` makes the plan that takes an image up to noise, by the steps of one of them. `experts`
has a plan ask two models, either side of a noise level; `held` adds calls that leave the state;
`analytic_first_step` saves the first call.

The plan's note has `order`, of a run as it is started here, and `orders`, of every step; and where
the weights are those of even steps whatever the steps are, `smooth_order`, of a run on steps whose
ratio goes to 1. Wrong
arguments raise ValueError.

A solver of your own is such a function, made with `Builder` and the operands X, M, F, N and R
(`help(Builder.row)`; ten lines of one are at the top of `_build.py`). `register(name, function)`
gives it a place in SOLVERS: its plans have `remake`, and searches and comparisons find it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from ..grids import check, starting_at
from ..model import Model
from ..plan import Plan, PlanError
from ..plan.provenance import on_schedule
from ..schedules import from_json
from ._begin import number
from ._build import Builder as Builder
from ._build import F as F
from ._build import M as M
from ._build import N as N
from ._build import R as R
from ._build import X as X
from ._exponential import jump as jump
from ._fitted import fitted as fitted
from ._given import start_index
from ._multistep import Form, halved, predicted
from ._multistep import Levels as Levels
from ._start import index_of, only_one, starts
from ._tableaux import Tableau as Tableau
from .analytic_first_step import analytic_first_step as analytic_first_step
from .cfgpp import dpmpp_2m_cfgpp as dpmpp_2m_cfgpp
from .cfgpp import dpmpp_2s_ancestral_cfgpp as dpmpp_2s_ancestral_cfgpp
from .cfgpp import euler_cfgpp as euler_cfgpp
from .cfgpp import gradient_estimation_cfgpp as gradient_estimation_cfgpp
from .cfgpp import res_multistep_cfgpp as res_multistep_cfgpp
from .ddim import ddim as ddim
from .ddpm import ddpm as ddpm
from .deis import deis as deis
from .dpm_2 import dpm_2 as dpm_2
from .dpm_solver import dpm_solver as dpm_solver
from .dpm_solver_singlestep import dpm_fast as dpm_fast
from .dpm_solver_singlestep import dpm_solver_singlestep as dpm_solver_singlestep
from .dpmpp_2m import dpmpp_2m as dpmpp_2m
from .dpmpp_2m_sde import dpmpp_2m_sde as dpmpp_2m_sde
from .dpmpp_2s import dpmpp_2s as dpmpp_2s
from .dpmpp_2s import dpmpp_3s as dpmpp_3s
from .dpmpp_2s_ancestral import dpm_2_ancestral as dpm_2_ancestral
from .dpmpp_2s_ancestral import dpmpp_2s_ancestral as dpmpp_2s_ancestral
from .dpmpp_3m import dpmpp_3m as dpmpp_3m
from .dpmpp_3m import dpmpp_3m_sde as dpmpp_3m_sde
from .er_sde import er_sde as er_sde
from .euler import euler as euler
from .euler_ancestral import euler_ancestral as euler_ancestral
from .experts import asked as _asked_by_level
from .experts import experts as experts
from .flow_sde import flow_sde as flow_sde
from .held import held as held
from .heun import heun as heun
from .heunpp2 import heunpp2 as heunpp2
from .inverted import inverted as inverted
from .lcm import cm as cm
from .lcm import lcm as lcm
from .lms import adams_bashforth as adams_bashforth
from .lms import gradient_estimation as gradient_estimation
from .lms import ipndm as ipndm
from .lms import ipndm_v as ipndm_v
from .lms import lms as lms
from .pndm import pndm as pndm
from .res import res_multistep as res_multistep
from .res import res_multistep_ancestral as res_multistep_ancestral
from .restart import restart as restart
from .rk import rk as rk
from .sa_solver import sa_solver as sa_solver
from .seeds import dpmpp_sde as dpmpp_sde
from .seeds import seeds_2 as seeds_2
from .seeds import seeds_3 as seeds_3
from .stork import stork as stork
from .tcd import tcd as tcd
from .unipc import step as _step_of_unipc
from .unipc import unipc as unipc

SOLVERS: dict[str, Callable[..., Plan]] = {
    f.__name__: f
    for f in (
        ddim,
        euler,
        euler_ancestral,
        heun,
        dpmpp_2s,
        dpmpp_2m,
        dpmpp_3m,
        dpmpp_2m_sde,
        dpmpp_3m_sde,
        unipc,
        lcm,
        rk,
        dpmpp_3s,
        dpm_solver_singlestep,
        dpm_fast,
        dpm_2,
        heunpp2,
        dpm_2_ancestral,
        dpmpp_2s_ancestral,
        dpmpp_sde,
        seeds_2,
        seeds_3,
        er_sde,
        dpm_solver,
        deis,
        lms,
        adams_bashforth,
        ipndm,
        ipndm_v,
        gradient_estimation,
        stork,
        ddpm,
        tcd,
        flow_sde,
        restart,
        sa_solver,
        euler_cfgpp,
        dpmpp_2m_cfgpp,
        dpmpp_2s_ancestral_cfgpp,
        pndm,
        res_multistep,
        res_multistep_ancestral,
        res_multistep_cfgpp,
        gradient_estimation_cfgpp,
        cm,
    )
}
# what plans are made again with: a search's rows too, which are no solver of any grid
MAKERS = {"fitted": fitted}
# solvers whose every step is one map (a, b) of x and x0 that depends on two times alone
JUMPS = {"ddim": jump, "euler": jump}
# (Levels of a path, i) -> (x' at point i + 1 over X, M and R("m<point>"), order): the steps of
# multistep solvers, of full order whatever follows, without the plan
STEPS = {
    "dpmpp_2m": lambda at, i: predicted(at, Form(), i, 2, weigh=halved),
    "dpmpp_3m": lambda at, i: predicted(at, Form(), i, 3),
    "unipc": _step_of_unipc,
}

# type checkers read the imports
if not TYPE_CHECKING:
    __all__ = [
        "JUMPS",
        "SOLVERS",
        "STEPS",
        "Levels",
        "fitted",
        "jump",
        "register",
        "remake",
        *SOLVERS,
    ]
    __all__ += ["analytic_first_step", "experts", "held", "inverted"]
    __all__ += ["Builder", "F", "M", "N", "R", "Tableau", "X"]


def register(name: str, maker: Callable[..., Plan], *, jump: Callable | None = None) -> None:
    """A solver of your own in SOLVERS: maker(model, grid, *, start=, inpaint=, clip=, ...) -> Plan.
    What has start= stands there with strength= and level= too.

    Plans that say b.build(name, arguments={...}) have remake, which calls the maker with those
    arguments beside start=, inpaint= and clip= where they are not the defaults. jump(schedule,
    t_from, t_to) -> (a, b) is the map x' = a·x + b·x0 of a solver whose every step is one; arrays
    broadcast. It puts the solver in JUMPS too: `optimize.oss`, which reads the jumps of others off
    their plans, then takes it by its median form as well. ValueError for a name that is taken.
    """
    if not isinstance(name, str) or not name or name in (*SOLVERS, *MAKERS):
        raise ValueError(f"register: name = {name!r:.60}; a name that no solver has is accepted")
    for word, value in (("maker", maker), ("jump", jump)):
        if not (callable(value) or value is jump is None):
            raise TypeError(f"register: {word} is a {type(value).__name__}; a function is accepted")
    SOLVERS[name] = starts(maker)
    if jump is not None:
        JUMPS[name] = jump


def remake(plan: Plan, start=None, *, strength=None, level=None, inpaint=None) -> Plan:
    """The same solver on the same grid for an image noised to grid[start], after which a share
    strength of the steps runs, or, on the grid made again to begin there, noised to level; compiled
    from the plan's own note.

    start is an index into the plan's whole grid; strength and level are as `fastsample.solvers`
    says; none of the three compiles it for noise, with the plan's init_scale. inpaint: whether its
    rows blend a known image; None: as the plan's do. An image is noised to alpha x0 + sigma eps:
    the amplitude by which a search scales the start noise makes up for what few steps from pure
    noise lose, and has no meaning there. note["found"]["amplitude"] keeps it for a later
    remake(None). Raises ValueError for plans that a solver of this registry did not
    make (learned tables), whose numbers were replaced, whose rows leave the schedule where an image
    is to be noised to it, whose rows were fitted to their grid where that is to be made again, that
    guidance was added to, or whose model gave its times by a callable, and PlanError, which names
    the key, for a note that no solver wrote.
    """
    note = plan.note
    words, found = _sound(note)
    only_one(start, strength, level)
    asked = {"start": start, "strength": strength, "level": level}
    asked = {word: value for word, value in asked.items() if value is not None}
    for word, value in (asked | ({"inpaint": True} if inpaint else {})).items():
        on_schedule("remake", plan, f"{word}={value!r:.60}")
    said = {word: words.get(word) for word in ("time", "input_scale", "sigma_data", "model_id")}
    schedule = _read("schedule", lambda: from_json(note["schedule"]))
    grid = _read("grid", lambda: check(schedule, note["grid"]))
    _read("prediction", lambda: Model(None, schedule, note["prediction"]))
    model = _read("model", lambda: Model(None, schedule, note["prediction"], **said))
    clip = _read("clip", lambda: number("clip", note.get("clip", 0.0)))
    _heard(note["solver"], schedule, grid, **asked)
    name, arguments = note["solver"], note["arguments"]
    kept = {"inpaint": note.get("inpaint") if inpaint is None else inpaint, "clip": clip}

    def make(**begin):
        words = begin | {word: value for word, value in kept.items() if value}
        maker = starts((SOLVERS | MAKERS)[name])
        return _again(note, _read("arguments", lambda: maker(model, grid, **words, **arguments)))

    made = make(**asked)
    if plan.sigma[0]:  # made for noise: its own row says how it scales it, whoever wrote the note
        amplitude = plan.init_scale / (make() if asked else made).init_scale
    else:
        amplitude = _read("found", lambda: number("amplitude", found.get("amplitude", 1.0)))
    if amplitude == 1.0:
        return made
    if not asked:
        table = made.M.copy()
        table[0, 0, 0] = plan.init_scale if plan.sigma[0] else amplitude * made.init_scale
        made = replace(made, M=table)
    return made.with_note(found={"amplitude": amplitude})


def _again(note: dict, made: Plan) -> Plan:
    """What was done to the plan that the solver made, done to it again."""
    if "experts" in note:
        made = _read("experts", lambda: _asked_by_level(made, note["experts"]))
    if note.get("analytic"):
        if made.sigma[0]:  # an image is stepped from by the model
            made = _read("analytic", lambda: analytic_first_step(made))
        else:
            made = made.with_note(analytic=True)
    if "held" in note:
        counts = _read("held", lambda: zip(("before", "after"), note["held"], strict=True))
        made = _read("held", lambda: held(made, **dict(counts)))
    return made


def _heard(name: str, schedule, grid, start=None, strength=None, level=None) -> None:
    """Refuse the caller's words, which are not the note's."""
    start_index(len(grid) - 1, start)
    if strength is not None:
        index_of(len(grid) - 1, strength)
    if level is not None and name in MAKERS:
        raise ValueError(
            f"remake: level={level!r:.60} of rows that were fitted to their own grid; start= or "
            "strength= is accepted"
        )
    if level is not None:
        starting_at(schedule, grid, level)


def _sound(note: dict) -> tuple[dict, dict]:
    """The note's model and found, or an error for a note that no plan can be made from again."""
    name = note.get("solver")
    if name not in [*SOLVERS, *MAKERS]:
        raise ValueError(
            f"remake: solver = {name!r:.60}; plans of {', '.join(SOLVERS | MAKERS)} are accepted "
            "(not learned tables)"
        )
    if lacking := {"arguments", "schedule", "grid", "prediction"} - note.keys():
        raise ValueError(
            f"remake: the note has no {min(lacking)}; a note with arguments, schedule, grid and "
            "prediction, as a solver writes it, is accepted"
        )
    if note.get("guidance") is not None:
        raise ValueError(
            "remake: the plan has guidance; the plan from before guidance was added is accepted"
        )
    if "models" in note and "experts" not in note:
        raise ValueError("remake: the plan asks several models; the solver with start= is accepted")
    if note.get("changed"):
        raise ValueError(
            f"remake: {str(note['changed']):.60} of the plan are not the solver's; the plan from "
            "before with_numbers is accepted"
        )
    words, found = note.get("model") or {}, note.get("found") or {}
    for key, value, kind in (
        ("model", words, dict),
        ("arguments", note["arguments"], dict),
        ("inpaint", note.get("inpaint", False), bool),
        ("found", found, dict),
    ):
        if not isinstance(value, kind):
            raise PlanError(
                f"remake: the note's {key}: {value!r:.60}; a {kind.__name__}, as a solver writes "
                "it, is accepted"
            )
    for word in ("time", "input_scale"):
        said = words.get(word)
        if "callable" in (said if isinstance(said, list) else [said]):
            raise ValueError(
                f"remake: the model's {word} was a callable, which no note keeps; solvers.{name} "
                "with start= is accepted"
            )
    return words, found


def _read(key: str, make: Callable):
    """make(), which uses what the note says under key. A note may come from any file: what it
    breaks is named after it, in one sentence.
    """
    try:
        return make()
    except ValueError as error:
        raise PlanError(f"remake: the note's {key}: {error}") from None
    except (ArithmeticError, AttributeError, LookupError, TypeError) as error:
        raise PlanError(
            f"remake: the note's {key}: {error}; what a solver of fastsample writes is accepted"
        ) from None


Plan._makers["remake"] = remake
