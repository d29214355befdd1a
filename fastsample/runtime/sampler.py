"""Sampler: a plan and a model, run from noise to data.

    sampler = Sampler(plan, model)
    x0 = sampler(noise=z, seed=7, cond={"y": labels}, uncond={"y": none}, guidance=3.0)

mode "eager"          a Run and the model as they are
     "compile-model"  the model under torch.compile
     "compile-loop"   the whole loop as one graph (fullgraph; the model is a nested region, compiled
                      once however many rows ask it; plans of one `plan.program` share the graph
                      through `for_plan`). A float among the keywords of the model is part of the
                      graph, and each new value compiles and keeps another: pass a number that
                      changes often as a tensor
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from contextlib import nullcontext
from threading import Lock

import torch
from torch import Tensor

from ..guidance import guided
from ..kernels import reference, transforms
from ..kernels.backend import BACKENDS
from ..model import Model
from ..plan import Plan
from . import arguments, sources
from . import pool as inplace
from .compiled import Program, compiled, distinct
from .conditions import branches_of, form, merged, told, unshared
from .run import Run

MODES = ("eager", "compile-model", "compile-loop")


class Sampler:
    """Immutable, safe from any number of threads: everything that changes lives in the Run of a
    call.

    plan: a Plan.  model: callable(x, t, **cond) -> prediction of x's shape and dtype, batch first;
    or a sequence of them where the plan asks several. mode: one of MODES.
    differentiable=True: gradients reach every tensor given, and (as table=) the plan's numbers; the
    definition runs in plain torch, so torch.func, torch.jit.trace, torch.export, make_fx and, in
    "eager", any derivative are right too (values are not checked).
    state_dtype, model_dtype, backend (eager only): as for Run. Raises ValueError or TypeError, one
    sentence.
    """

    def __init__(
        self,
        plan: Plan,
        model: Callable | Sequence[Callable],
        mode: str = "eager",
        *,
        differentiable: bool = False,
        state_dtype: torch.dtype = torch.float32,
        model_dtype: torch.dtype | None = None,
        backend: str | None = None,
    ) -> None:
        if mode not in MODES:
            raise ValueError(f"Sampler: mode={mode!r}; accepted are {', '.join(MODES)}")
        if differentiable and mode == "compile-loop":
            raise ValueError(
                "Sampler: differentiable=True with mode='compile-loop'; gradients are accepted in "
                "'eager' and 'compile-model'"
            )
        if not isinstance(plan, Plan):
            raise TypeError(
                f"Sampler: plan is a {type(plan).__name__}; a fastsample.Plan is needed"
            )
        models = tuple(model) if isinstance(model, (list, tuple)) else (model,)
        if not models or not all(callable(m) for m in models) or plan.call.max() >= len(models):
            raise TypeError(
                f"Sampler: {len(models)} model(s) for a plan that asks model {plan.call.max()}; "
                "that many callables are needed"
            )
        arguments.dtypes("Sampler", state_dtype, model_dtype)
        if backend not in (None, *BACKENDS):
            raise ValueError(f"Sampler: backend={backend!r}; accepted are {', '.join(BACKENDS)}")
        _agree(plan, models)
        ask = (
            tuple(torch.compile(distinct(_plain(m))) for m in models)
            if mode == "compile-model"
            else models
        )
        self._set(
            plan=plan,
            models=models,
            mode=mode,
            differentiable=differentiable,
            _ask=ask,
            _graphs={},
            _guided={},
            _lock=Lock(),
            _options={"state_dtype": state_dtype, "model_dtype": model_dtype, "backend": backend},
        )

    def _set(self, **values) -> None:
        self.__dict__.update(values)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(
            f"Sampler.{name}: a Sampler is immutable; make another, or use for_plan(plan)"
        )

    def __deepcopy__(self, memo: dict) -> Sampler:
        """Itself: nothing in it changes."""
        return self

    def for_plan(self, plan: Plan) -> Sampler:
        """The same sampler for another plan; compiled graphs are shared, so a plan of the same
        `plan.program` compiles nothing anew.
        """
        twin = Sampler(
            plan, self.models, "eager", differentiable=self.differentiable, **self._options
        )
        twin._set(mode=self.mode, _ask=self._ask, _graphs=self._graphs, _lock=self._lock)
        return twin

    def __call__(
        self,
        *,
        noise: Tensor | None = None,
        latent: Tensor | None = None,
        shape: Sequence[int] | None = None,
        seed=None,
        cond: dict | None = None,
        uncond: dict | None = None,
        branches: Sequence[dict] | None = None,
        guidance=None,
        callback: Callable | None = None,
        progress: bool = False,
        trajectory: bool = False,
        mask: Tensor | None = None,
        known: Tensor | None = None,
        batched_guidance: bool = True,
        noise_scale=None,
        noise_source=None,
        start: int | None = None,
        device=None,
        table: Tensor | None = None,
    ):
        """x0 [B,*] in the state dtype, or (x0, states [n+1, B, *]) of the n rows that asked the
        model with trajectory=True: states[0] is what the model was first asked with, and in a whole
        run states[k] is the state as row k + 1 begins (latent=states[k], start=k + 1).

        noise, latent, shape, seed, start, noise_scale, noise_source, mask, known: as for Run. cond:
        keywords for the model, a tree that follows its samples as
        `fastsample.runtime.conditions` says. uncond (with guidance): a second branch, f = f_uncond
        + s (f_cond - f_uncond). branches: keywords of every branch, the last being the base.
        batched_guidance: all branches in one call of G*B samples where they have one form and share
        what belongs to no sample, else one call each. callback(step, x, x0): may return a new x,
        and may raise to stop; x and x0 are the run's own memory, to be cloned if kept beyond the
        next step.
        table: numbers of the plan [R, WF] in place of its own (differentiable=True). Seed None:
        torch.manual_seed governs it (see Run). Raises FloatingPointError naming samples and row if
        a state became non-finite.
        """
        trees = branches_of(
            "Sampler", cond, uncond, branches, *arguments.place(noise, latent, shape, device)
        )
        plan = self._plan_for(len(trees), guidance)
        start_ = {
            "noise": noise,
            "latent": latent,
            "shape": shape,
            "seed": seed,
            "start": start,
            "device": device,
            "guidance": guidance,
            "noise_scale": noise_scale,
            "noise_source": noise_source,
            "mask": mask,
            "known": known,
        }
        if table is not None and not self.differentiable:
            raise ValueError(
                "Sampler: table= is given without differentiable=True; a plan's own numbers are "
                "used otherwise"
            )
        if callback is not None and not callable(callback):
            raise TypeError(
                f"Sampler: callback is a {type(callback).__name__}; a callable(step, x, x0) is "
                "accepted"
            )
        functional = self.mode == "compile-loop" or self.differentiable
        if functional and (callback is not None or progress):
            raise ValueError(
                "Sampler: callback and progress need mode='eager' or 'compile-model' without "
                f"gradients; mode is {self.mode!r}"
            )
        conditions = [told(tree) for tree in trees.values()]
        if not self.differentiable:
            transforms.refuse("Sampler", *start_.values(), conditions)
        with nullcontext() if self.differentiable else torch.no_grad():
            joint = merged("Sampler", trees) if batched_guidance and len(trees) > 1 else None
            if functional:
                return self._functional(plan, conditions, joint, trajectory, table, **start_)
            return self._eager(plan, conditions, joint, trajectory, callback, progress, **start_)

    def _plan_for(self, branches: int, guidance) -> Plan:
        """The plan for this many branches: itself, or the linear guidance of it, made once."""
        if branches == 1 and guidance is not None and self.plan.G == 1:
            raise ValueError(
                "Sampler: guidance is given without uncond; pass uncond= (or branches=)"
            )
        if branches > 1 and guidance is None and (self.plan.G == 1 or self.plan.K):
            raise ValueError(
                "Sampler: uncond (or branches) is given without guidance; pass guidance=, a number "
                "or one a sample"
            )
        if branches == self.plan.G:
            return self.plan
        if self.plan.G > 1:
            raise ValueError(
                f"Sampler: the plan reads {self.plan.G} branches and {branches} are given; pass "
                f"uncond= or branches= of {self.plan.G}"
            )
        with self._lock:
            if branches not in self._guided:
                self._guided[branches] = guided(self.plan, branches)
            return self._guided[branches]

    # -- eager -------------------------------------------------------------------------------------
    def _eager(self, plan, conditions, joint, trajectory, callback, progress, **start):
        run = Run(
            plan,
            **start,
            **self._options,
            preview=callback is not None,
            copies=1 if joint is None else len(conditions),
        )
        states = [run.x.clone()] if trajectory else None
        with _bar(progress, sum(plan.call[run.row :] >= 0)) as bar:
            for number in range(plan.rows):
                if run.done:
                    break
                row, before = run.row, _versions(run)
                f = self._outputs(run, row, conditions, joint)
                if (
                    _versions(run) != before
                ):  # the input may be the state itself, and t is every later row's too
                    raise ValueError(
                        f"Sampler: the model changed its input in place at row {row}; let it work "
                        "on a copy (x = x + ...)"
                    )
                run.step(f)
                if callback is not None:
                    new = callback(number, run.x, run.x0)
                    if new is not None:
                        run.x = new
                if trajectory:
                    states.append(run.x.clone())
                if bar is not None:
                    bar.update()
        _raise_if_bad(run.status())
        return (run.x, torch.stack(states)) if trajectory else run.x

    def _outputs(self, run: Run, row: int, conditions: list[dict], joint: dict | None):
        ask, plan = self._ask[run.call], run.plan
        if len(conditions) == 1:
            return ask(run.model_input, run.t, **conditions[0])
        used = [
            bool((plan.branches[row] >> g | plan.reads[row] >> (3 + plan.S + g)) & 1)
            for g in range(plan.G)
        ]
        if joint is not None and all(used):
            return ask(run.model_input, run.t, **joint)
        x, t = (v[: run.x.shape[0]] for v in (run.model_input, run.t))
        return [ask(x, t, **conditions[g]) if used[g] else None for g in range(plan.G)]

    # -- one pure function -------------------------------------------------------------------------
    def _functional(
        self,
        plan,
        conditions,
        joint,
        trajectory,
        table,
        *,
        noise,
        latent,
        shape,
        seed,
        start,
        device,
        guidance,
        noise_scale,
        noise_source,
        mask,
        known,
    ):
        state = self._options["state_dtype"]
        given, size, device = arguments.start(
            noise, latent, shape, device, plan.sigma[0] == 0, self.differentiable
        )
        first = arguments.entry(
            plan, latent is not None, start, noise is not None, mask is not None
        )
        model_dtype = self._options["model_dtype"] or (state if given is None else given.dtype)
        own = inplace.table(plan, state, device)
        if table is not None and (
            not isinstance(table, Tensor) or table.shape != own.f.shape or table.dtype != state
        ):
            got = (
                f"{table.dtype} {list(table.shape)}"
                if isinstance(table, Tensor)
                else f"a {type(table).__name__}"
            )
            raise ValueError(
                f"Sampler: table is {got}; a tensor {state} {list(own.f.shape)} is needed"
            )
        mask, known = arguments.blend(plan, mask, known, size, state, device, self.differentiable)
        draws = sources.draws(
            noise_source, plan, size, state, device, mask is not None, noise, self.differentiable
        )
        requested = {
            "scale": arguments.scales(plan, guidance, size[0], state, device, self.differentiable),
            "noise_scale": arguments.noise_scales(
                noise_scale, size[0], state, device, self.differentiable
            ),
            "mask": None if mask is None else mask.expand(size),
            "known": None if known is None else known.expand(size),
        }
        needed = given is None or sources.seeded(
            plan, first, noise, noise_source, requested["noise_scale"], mask is not None
        )
        requested["seed"] = sources.seeds(seed, size[0], device, needed)
        requested["noise"] = (
            None
            if draws is None
            else _draws(plan, draws, requested["seed"], size, state, mask is not None)
        )
        if given is None:
            given = _unit(requested["seed"], 0, size, state)
        conditions = conditions if joint is None else [joint]
        conditions = conditions if self.differentiable else unshared(conditions)
        program = self._program(
            plan,
            first,
            model_dtype,
            trajectory,
            joint is not None,
            form([given, conditions, requested]),
        )
        rows = torch.arange(plan.rows, device=device)[:, None].expand(-1, size[0]).contiguous()
        x, states, words = program(
            given.to(state), own.f if table is None else table, own.i, rows, conditions, requested
        )
        if words.numel() and transforms.active(words) is None:
            first_fault = (words != 0).int().argmax(0, keepdim=True)
            _raise_if_bad(words.gather(0, first_fault)[0])
        return (x, torch.stack(states)) if trajectory else x

    def _program(
        self, plan: Plan, first: int, model_dtype, keep: bool, together: bool, form: Hashable
    ) -> Callable:
        if self.differentiable:
            ask = self.models if transforms.hides_from_compiler() else self._ask
            return Program(
                plan,
                first,
                reference.step,
                [_asked([m] * plan.G, together) for m in ask],
                model_dtype,
                keep,
            ).run
        key = (plan.program, first, model_dtype, keep, together, form)
        with self._lock:
            if key not in self._graphs:
                region, G = torch.compiler.nested_compile_region, plan.G
                ask = [
                    _asked([region(distinct(_plain(m))) for _ in range(G)], together)
                    for m in self.models
                ]
                self._graphs[key] = compiled(
                    Program(plan, first, reference.step, ask, model_dtype, keep, region)
                )
            return self._graphs[key]


def _agree(plan: Plan, models: Sequence[Callable]) -> None:
    """Refuse an fs.Model that the plan was not made for, as far as the plan's note says."""
    said = plan.note.get("prediction")
    for m in models:
        if isinstance(m, Model) and said is not None and m.prediction != said:
            raise ValueError(
                f"Sampler: the plan was made for prediction {said!r} and the model predicts "
                f"{m.prediction!r}; make it for this model"
            )
        unlike = m.difference(plan.note) if isinstance(m, Model) else None
        if unlike is not None:
            word, theirs, ours = unlike
            raise ValueError(
                f"Sampler: the plan was made for {word} = {theirs!r:.80} and the model's is "
                f"{ours!r:.80}; make it for this model"
            )


def _versions(run: Run) -> tuple[int, ...]:
    """How often what the model is given was written to; () in inference mode, where nobody
    counts."""
    return () if run.model_input.is_inference() else (run.model_input._version, run.t._version)


def _draws(
    plan: Plan, given: Callable, seed: Tensor, size: Sequence[int], state: torch.dtype, masked: bool
) -> list[list]:
    """For every row its L draws, the caller's and, where that left some to Philox, those: a row
    takes either kind, not both. [] = all Philox.
    """
    rows = []
    for row in range(plan.rows):
        draws, ids = given(row), arguments.drawn(plan, row, masked)
        if any(n is not None for n in draws):
            draws = [
                None if k is None else _unit(seed, k, size, state) if n is None else n
                for n, k in zip(draws, ids, strict=True)
            ]
        rows.append(draws if any(n is not None for n in draws) else [])
    return rows


def _unit(seed: Tensor, k: int, size: Sequence[int], state: torch.dtype) -> Tensor:
    """Unit normal noise of one id, as a function: a transform sees it."""
    return (
        reference.normal(seed, torch.full_like(seed, k), math.prod(size[1:])).view(size).to(state)
    )


def _plain(model: Callable) -> Callable:
    """The model as a plain function: a callable object is inlined by the compiler, a wrapped one is
    not always.
    """

    def ask(x: Tensor, t: Tensor, **cond):
        return model(x, t, **cond)

    return ask


def _asked(models: Sequence[Callable], together: bool) -> Callable:
    """ask(x, t, conditions, used): every branch in one call of G*B samples, or a list with one call
    for each branch used; models[g] asks branch g.
    """
    branches = len(models)

    def ask(
        x: Tensor, t: Tensor, conditions: Sequence[dict], used: Sequence[bool]
    ) -> Tensor | list:
        if together:
            return models[0](torch.cat([x] * branches), torch.cat([t] * branches), **conditions[0])
        return [models[g](x, t, **conditions[g]) if used[g] else None for g in range(branches)]

    return ask


def _bar(wanted: bool, total: int):
    """A tqdm bar, or nothing."""
    if not wanted:
        return nullcontext()
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        raise ImportError(
            "Sampler: progress=True needs tqdm; pip install 'fastsample[demo]'"
        ) from error
    return tqdm(total=int(total))


def _raise_if_bad(status: Tensor) -> None:
    """FloatingPointError naming the samples whose state became non-finite and the first row at
    which one did, read once at the end of a run.
    """
    bad = status.nonzero().flatten().tolist() if status.numel() else []
    if bad:
        names = ", ".join(map(str, bad[:8])) + (f" and {len(bad) - 8} more" if len(bad) > 8 else "")
        row = int((status[bad] >> 8 & 0xFFFFFF).min())
        raise FloatingPointError(
            f"Sampler: sample {names} became non-finite at row {row}; the model returned NaN, Inf "
            "or a value too large for the state"
        )
