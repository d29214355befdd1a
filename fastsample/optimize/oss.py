"""OSS: the subset of a fine grid a one-step solver does best on, by dynamic programming over a
batch of noises.

    z_k[j] = a_ij z_{k-1}[i*] + b_ij x0(z_{k-1}[i*], t_i)
    i* = argmin_{i>j} mean_samples mean_d |a_ij z_{k-1}[i] + b_ij x0_i - X[j]|^p

Nodes are counted from the data end: 0 = data, N = noise. z_k[j] [B,D] is the student after exactly
k evaluations, standing at node j; X[j] is the teacher there; a_ij, b_ij is the solver's jump from
t_i to t_j, x' = a x + b x0. One state is kept per (k, j): the search is greedy. It follows Pei et
al. 2025 (arXiv 2503.21774, alg. 1) with three changes: the cost is averaged over the samples before
the argmin (one schedule for all, instead of the median of one per sample), layer k means k
evaluations and not fewer, and one search answers every budget.

The arguments of `oss`:

    z            unit noise [B,*] on the device of the model and its words, or its shape with a seed
                 (None: a fresh one, kept in the note);
                 every sample pulls on the same schedule
    solver       a one-step solver with a jump: a key of solvers.JUMPS
    teacher      the grid searched, its plan as below: None: 40 steps of `grids.fine`; N: that many;
                 or a grid in the schedule's t. A deterministic Plan stays the teacher as it is, on
                 its own times
    start        "free": the noise may be labelled with any node of the grid; "fixed": with the
                 first one
    all_budgets  True: grids of 1..budget evaluations; False: of exactly budget
    cond, uncond, guidance   model words, trees that follow their samples as
                 `fastsample.runtime.conditions` says; guidance needs uncond
    aggregate    "joint": one schedule of least mean cost; "median": a schedule per sample, then the
                 middle node at each position
    p            exponent of the cost
    batch_size   rows of one model call, per branch
    amplitude    scale the noise too, by a factor per budget; None: with a free start of the joint
                 form
    state_dtype  what states and targets are kept in: float32, float64 or, in half the memory,
                 bfloat16, rounded once from the float32 that all is computed in (default: float64
                 for float64 noise, else float32). The teacher and the comparison run in float32
    held_out     unit noise [B2,*] the search never saw: each plan is compared on it with the
                 schedules made by hand, every grid of `metrics.hand_made` with every deterministic
                 solver. Noise b has the words of sample b mod B. None: nothing is spent

Evaluations per sample, with the teacher's T, whose first output is used again, and the A that its
agreement with its double took:

                   budget M                  every budget <= M
    fixed start    T + A + (M-1)(N-M+1)      T + A + (M-1)N - M(M-1)/2
    free start     T + A + M(N-M+1) - 1      T + A + MN - M(M-1)/2 - 1

T = `search.teacher.nfe` and A = `search.agreement_nfe`: the steps of T, 2T, ... on at most 4 of the
B samples, times 4/B.

The teacher is dpmpp_3m on the searched grid, whose every interval is cut in 1, 2, 4, ... parts
(`grids.refined`), up to 320 steps, until its end points agree to 60 dB PSNR with those at twice its
evaluations; below 45 dB at the end a warning says so.

A free start may label the noise with any node i: the run begins at sigma_i times the unit noise.
Two things cost more. The median form walks its schedule once to know its error: + M for each budget
M it answers. `amplitude` begins the run at c sigma_i times the unit noise instead: few Euler steps
shrink what they should keep, and noise too large by 0.5/M or so makes up for most of it. With x(c)
the end points, c = 1 + <X[0] - x(1), g> / <g, g>, g the slope of x between 1 and 1 + 0.5/M; the
best of the three is kept: + 2 M for each budget.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import keystr, tree_leaves_with_path

from .. import solvers
from ..guidance import guided
from ..kernels import normal
from ..model import Model
from ..plan import Plan
from ..runtime import arguments
from ..runtime.capturable import parts
from ..runtime.conditions import branches_of
from ..runtime.drive import bar
from ..runtime.sources import digest, drawn_seed
from ..runtime.sources import seeds as seeds_of
from ..trajectories import Denoiser
from . import _compare, _teacher
from ._layers import Layers, Options, jumps
from ._search import Search

WORDS = {"start": ("fixed", "free"), "aggregate": ("joint", "median")}
STATES = (torch.float32, torch.float64, torch.bfloat16)


def oss(
    model: Model,
    z: Tensor | Sequence[int],
    budget: int = 6,
    *,
    solver: str = "euler",
    teacher: None | int | Sequence[float] | Plan = None,
    start: str = "free",
    all_budgets: bool = True,
    cond: Mapping | None = None,
    uncond: Mapping | None = None,
    guidance: float | None = None,
    seed: int | None = None,
    aggregate: str = "joint",
    p: float = 2.0,
    batch_size: int = 256,
    amplitude: bool | None = None,
    state_dtype: torch.dtype | None = None,
    held_out: Tensor | None = None,
    progress: bool = False,
) -> Search:
    """Search time grids of 1..budget evaluations for `solver` on `model`; the module's docstring
    says what each argument means. Memory: about 5 (N+1) B D numbers; nothing is written to disk.
    Raises ValueError or TypeError, one sentence, for bad input.
    """
    begin = time.perf_counter()
    counts = {"budget": budget, "batch_size": batch_size}
    words = {"solver": solver, "start": start, "aggregate": aggregate}
    _check(model, counts, words, p, uncond, guidance, state_dtype)
    teacher = _teacher.choose(model, teacher, uncond, budget)
    z, here, seed = _noise(z, seed)
    words = _told(model, z, cond, uncond)
    words |= {"guidance": guidance, "batch_size": batch_size}
    held_out = _compare.held_out_noise(held_out, here, z.device)
    dtype = state_dtype or arguments.state_dtype(z)
    scaled = amplitude or (amplitude is None and start == "free" and aggregate == "joint")
    budgets = range(1, budget + 1) if all_budgets else [budget]
    options = Options(budgets, start, aggregate, float(p), bool(scaled))
    teacher, paths, ends, nfe = _run(model, solver, z, teacher, options, words, dtype, progress)
    error = {m: e for m, (_, e) in ends.items()}
    indices = {m: len(teacher.grid) - 1 - path for m, path in paths.items()}
    spent = (nfe, len(z), time.perf_counter() - begin, teacher.agreement, teacher.nfe)
    search = Search({}, error, indices, teacher.grid, teacher.plan, *spent)
    found = {**options.note(), "seed": seed, "noise": digest(here).hex()[:16], "guidance": guidance}
    found |= {"teacher": teacher.note(), "compared": "not compared"}
    for m, (c, _) in ends.items():
        search.plans[m] = _compile(model, solver, search, m, c, uncond, found)
    if held_out is None:
        return search
    return _compared(search, model, held_out, words | {"state_dtype": dtype}, progress)


def _run(
    model: Model,
    solver: str,
    z: Tensor,
    teacher: _teacher.Teacher,
    options: Options,
    words: Mapping[str, Any],
    dtype: torch.dtype,
    progress: bool,
) -> tuple[_teacher.Teacher, dict[int, np.ndarray], dict[int, tuple[float, float]], float]:
    """The teacher settled, the paths and ends of `Layers`, the evaluations per sample."""
    grid = teacher.grid
    rows = lambda: len(z) * (teacher.plan.nfe + options.evaluations(len(grid) - 1))
    with torch.no_grad(), bar("oss", progress, rows(), unit=" evaluations", desc="oss") as shown:
        asked = shown and shown.update
        ask = Denoiser(model, grid[::-1].copy(), z, dtype=dtype, asked=asked, **words)
        teacher = _teacher.settle(teacher, ask, z, words)
        _known(shown, ask.rows + rows(), teacher.agreement)
        X, first = _teacher.walk(teacher.plan, ask, z, grid, words)
        layers = Layers(options, ask, jumps(model, solver, grid), z, X, first)
        layers.fill()
        paths = {m: layers.path(m) for m in options.budgets}
        return teacher, paths, layers.ends(paths), ask.rows / len(z)


def _compared(
    search: Search, model: Model, held_out: Tensor, words: dict, progress: bool
) -> Search:
    """The search with its plans beside the best made by hand, in itself and in their notes."""
    words["state_dtype"] = torch.promote_types(words["state_dtype"], torch.float32)
    with bar("oss", progress, len(search.plans), unit=" budgets", desc="by hand") as shown:
        asked = shown and shown.update
        found, spent = _compare.compare(model, search, held_out, words, asked)
    noted = {
        m: plan.with_note(found={**plan.note["found"], "compared": found[m].note()})
        for m, plan in search.plans.items()
    }
    return replace(search, plans=noted, compared=found, compared_nfe=spent / search.samples)


def _compile(
    model: Model, solver: str, search: Search, m: int, c: float, uncond: Mapping | None, found: dict
) -> Plan:
    """The plan of m evaluations, with its provenance in note["found"]; amplitude: its init_scale
    over the sigma it starts at.
    """
    at = search.indices[m]
    plan = solvers.SOLVERS[solver](model, search.grid[at])
    amplitude = c
    if at[0] == 0:  # at the first node the teacher's own
        amplitude = c * (search.teacher.init_scale / plan.init_scale)
    # Row 0 scales the unit noise.
    plan = replace(plan, M=np.concatenate([plan.M[:1] * amplitude, plan.M[1:]]))
    found = {
        "method": "oss",
        **found,
        "amplitude": amplitude,
        "budget": m,
        "N": len(search.grid) - 1,
        "indices": at.tolist(),
        "start_label": float(search.grid[at[0]]),
        "samples": search.samples,
        "error": search.error[m],
        "evaluations": search.nfe,
        "seconds": round(search.seconds, 3),
    }
    return (plan if uncond is None else guided(plan)).with_note(found=found)


def _noise(z: Tensor | Sequence[int], seed: int | None) -> tuple[Tensor, Tensor, int | None]:
    """The unit noise, the same on the CPU, and the seed it was drawn from."""
    if not isinstance(z, Tensor):
        shape = tuple(int(n) for n in z)
        if len(shape) < 2 or min(shape) < 1:
            raise ValueError(
                f"oss: z={list(shape)}; unit noise [B,*], or such a shape of 2 or more dimensions, "
                "is needed"
            )
        if seed is not None and arguments.integer(seed) is None:
            why = f"oss: seed is {seed!r:.80}; an int, or None for a fresh one, is accepted"
            raise TypeError(why)
        seed = drawn_seed() if seed is None else arguments.integer(seed)
        seeds = seeds_of(seed, shape[0], torch.device("cpu"), needed=True)
        z = normal(seeds, torch.zeros_like(seeds), int(np.prod(shape[1:]))).reshape(shape)
        return z, z, seed
    if z.ndim < 2 or z.numel() == 0 or not z.is_floating_point():
        raise ValueError(
            f"oss: z is {str(z.dtype)[6:]} {list(z.shape)}; floating unit noise [B,*] with at "
            "least one element is needed"
        )
    here = z.detach().cpu()
    if not here.isfinite().all():
        raise ValueError("oss: z holds a number that is not finite; unit normal noise is needed")
    return z, here, seed


def _told(model: Model, z: Tensor, cond: Any, uncond: Any) -> dict[str, dict]:
    """The condition of each branch. Refuses a model and conditions that lie elsewhere than the
    noise; a module that is offloaded, which its hook tells, comes when it is asked.
    """
    words, device = branches_of("oss", cond, uncond, None, len(z), z.device), z.device
    modules = [part for part in parts(model.fn) if isinstance(part, torch.nn.Module)]
    homes = {v.device for module in modules for v in module.parameters(recurse=False)}
    offloaded = any(hasattr(module, "_hf_hook") for module in modules)
    if homes and device not in homes and not offloaded:
        where = ", ".join(sorted(map(str, homes)))
        raise ValueError(
            f"oss: the model's parameters are on {where} and z is on {device}; one device is "
            "needed: move the model, or pass z as a tensor there"
        )
    for path, leaf in tree_leaves_with_path(words):
        if isinstance(leaf, Tensor) and leaf.dim() and leaf.device != device:
            name = keystr(path[1:]).replace("'", '"')
            raise ValueError(
                f"oss: {path[0].key}{name} is on {leaf.device} and z is on {device}; one device, "
                "or fs.shared(value), is accepted"
            )
    return words


def _check(
    model: Any, counts: dict, words: dict, p: float, uncond: Any, guidance: Any, state_dtype: Any
) -> None:
    if not isinstance(model, Model):
        raise TypeError(f"oss: the model is a {type(model).__name__}; an fs.Model is needed")
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
            raise ValueError(f"oss: {name}={value!r}; an integer of at least 1 is needed")
    for name, accepted in ("solver", solvers.JUMPS), *WORDS.items():
        if words[name] not in list(accepted):
            listed = " or ".join(map(repr, accepted))
            raise ValueError(f"oss: {name}={words[name]!r}; {listed} is accepted")
    if state_dtype not in (None, *STATES):
        raise ValueError(
            f"oss: state_dtype={state_dtype!r}; torch.float32, float64 or bfloat16 is accepted"
        )
    if not (np.isfinite(p) and p > 0):
        raise ValueError(f"oss: p={p}; a finite exponent above 0 is needed")
    if (uncond is None) != (guidance is None):
        raise ValueError("oss: one of guidance and uncond is given; pass both, or neither")


def _known(shown: Any, total: int, agreement: float | None) -> None:
    """The bar once the teacher is settled: its exact total, and the teacher's agreement."""
    if shown is not None:
        shown.total = total
        agrees = "not measured" if agreement is None else f"agrees to {agreement:.1f} dB"
        shown.set_postfix_str(f"teacher {agrees}")
