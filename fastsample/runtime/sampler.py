"""Sampler: a plan and a model, run from noise to data.

    sampler = Sampler(plan, model)
    x0 = sampler(noise=z, seed=7, cond={"y": labels}, uncond={"y": none}, guidance=3.0)

mode "eager"          a Run and the model as they are
     "compile-model"  the model under torch.compile
     "compile-loop"   the whole loop as one graph (fullgraph; the model is a nested region, compiled
                      once however many rows ask it), the step in place on the memory of a Run. One
                      graph serves every batch of two or more, and one a batch of one; through
                      `for_plan`, every plan of a `plan.program`; any seed and scale. Another sample
                      shape, another form of conditions, a trajectory each have their own: a float
                      among the keywords of the model is part of it, so pass a number that changes
                      often as a tensor. The 16 last used are kept; `warm` makes them ahead
     "graph"          every row, the model included, as one CUDA graph, replayed whole. `warm`
                      captures it, for just that shape and those conditions (tensors, seeds and
                      scales are copied over in a call; another number or text has a graph of its
                      own), and for every plan of a `plan.program`. A call without one runs eager
                      and logs so once, or captures it (capture="now"). A model that was moved,
                      fused, offloaded or put into training is captured again, and logged. 16 are
                      kept of a device, and one more retires them all; `release` frees them
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import Tensor

from .. import caller
from ..guidance import guided
from ..kernels import transforms
from ..model import Model, refuse_unnamed
from ..plan import Plan, provenance
from . import arguments, capturable, differentiable, modes, said, unused
from .by_track import Several
from .compiled import Graphs, compiled_model
from .conditions import merged, told
from .drive import asker, bar, drive, watching
from .graph import Captured
from .images import Images
from .run import Run
from .select import following
from .spares import Spares
from .warm import warm
from .words import known_at_a_look, trees_of
from .words import plain as spare

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .words import Common, Words


class Sampler(Several):
    """A plan and a model as one callable: sampler(noise=z) -> x0 [B,*]. It does not change, and is
    safe from any number of threads: what changes in a call lives in its Run. Idle runs are kept for
    the next call of the same kind; `release()` frees them.

    plan: a Plan, or a dict of one a track (`runtime.tracks`).  model: callable(x, t, **cond) ->
    prediction of x's shape and dtype, batch first; or a sequence of them where the plan asks
    several (`solvers.experts`). mode: "eager", "compile-model", "compile-loop" or "graph", each
    explained in `fastsample.runtime.sampler`.
    differentiable=True: gradients reach every tensor given, and (as table=) the plan's numbers; the
    definition runs in plain torch, so torch.func, torch.jit.trace, torch.export, make_fx and, in
    "eager", any derivative are right too (values are not checked). checkpoint=True with it: the
    model is run again for the gradient, so memory does not grow with its depth.
    capture ("graph"): "ahead", by `warm` alone, or "now", by any call that has no graph yet.
    prepare (not in "compile-loop", nor with gradients): callable(times), told before the first call
    of a model the model scalars [n] or [n,E] of all n, in order: for a model that computes its time
    embeddings ahead. It is part of the graph.
    state_dtype, model_dtype, backend (eager only): as for Run. Raises ValueError or TypeError, one
    sentence, also for a plan that was made for another schedule, shift or prediction than an
    fs.Model's. One UserWarning tells where a call has another shape, guidance or model than the
    search had that found the plan.

    A call takes noise, latent, shape, seed, stage, start, strength, level, device, guidance,
    noise_scale, noise_source, mask, known, check as Run does, and
    cond, uncond      keywords of the model, trees that follow their samples as
                      `fastsample.runtime.conditions` says; uncond, with guidance, a second branch,
                      f = f_uncond + s (f_cond - f_uncond); s is by default what a search had
    branches          keywords of every branch instead, the last being the base
    batched_guidance  all branches in one call of G*B samples where they have one form and share
                      what belongs to no sample, else one call each
    callback          callable(step, x, x0): may return a new x, or fs.Select(index, x=None) to go
                      on with some of the samples, and may raise to stop; x and x0 are the run's own
                      memory, to be cloned if kept beyond the next step
    trajectory        True: the states too, where each row asks the model and in the end, of the
                      samples left in the end
    table             numbers of the plan [R, WF] in place of its own (differentiable=True)
    out               where x0 is written, a tensor as it; else in memory of its own
    """

    plan: Plan
    models: tuple[Callable, ...]
    mode: str
    differentiable: bool
    checkpoint: bool

    def __init__(
        self,
        plan: Plan | Mapping[str, Plan],
        model: Callable | Sequence[Callable],
        mode: str = "eager",
        *,
        differentiable: bool = False,
        checkpoint: bool = False,
        state_dtype: torch.dtype | None = None,
        model_dtype: torch.dtype | None = None,
        backend: str | None = None,
        capture: str = "ahead",
        prepare: Callable | None = None,
    ) -> None:
        modes.check(mode, differentiable, checkpoint, backend)
        modes.check_graph(mode, differentiable, capture, prepare)
        if not isinstance(plan, Plan):
            raise TypeError(
                f"Sampler: plan is a {type(plan).__name__}; a fastsample.Plan is needed"
            )
        models = tuple(model) if isinstance(model, (list, tuple)) else (model,)
        modes.check_models(plan, model, models)
        unused.refuse_models(plan, models)
        arguments.dtypes("Sampler", state_dtype or torch.float32, model_dtype)
        words = [m if isinstance(m, Model) else None for m in models]
        provenance.agree("Sampler", plan, words)
        if mode == "graph":
            capturable.refuse_models(models)
        self._set(
            plan=plan,
            models=models,
            mode=mode,
            differentiable=differentiable,
            checkpoint=checkpoint,
            _ask=tuple(map(compiled_model, models)) if mode == "compile-model" else models,
            _words=words,
            _warned=not provenance.found(plan),
            _guided={},
            _images=Images(),
            _capture=capture,
            _prepare=prepare,
            _graphs=Captured(models, prepare) if mode == "graph" else Graphs(models),
            _lock=Lock(),
            _spares=Spares(),
            _options={"state_dtype": state_dtype, "model_dtype": model_dtype, "backend": backend},
        )

    def _set(self, **values) -> None:
        self.__dict__.update(values)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(
            f"Sampler.{name}: a Sampler is immutable; make another, or use for_plan(plan)"
        )

    __repr__ = said.sampler

    def __copy__(self) -> Sampler:
        twin = object.__new__(Sampler)
        twin._set(**self.__dict__)
        return twin

    def __reduce__(self) -> tuple:
        """Made again of its arguments; PicklingError, one sentence, for a model without a name."""
        words = {name: getattr(self, name) for name in ("mode", "differentiable", "checkpoint")}
        words |= {"capture": self._capture, "prepare": self._prepare, **self._options}
        for name, value in (*(("model", m) for m in self.models), ("prepare", self._prepare)):
            refuse_unnamed(f"Sampler: {name}", value)
        return partial(Sampler, **words), (self.plan, self.models)

    def __deepcopy__(self, memo: dict) -> Sampler:
        """Itself: nothing in it changes."""
        return self

    def for_plan(self, plan: Plan) -> Sampler:
        """The same sampler for another plan; compiled graphs are shared, so a plan of the same
        `plan.program` compiles nothing anew.
        """
        twin = Sampler(
            plan,
            self.models,
            "eager",
            differentiable=self.differentiable,
            checkpoint=self.checkpoint,
            **self._options,
        )
        twin._set(mode=self.mode, _ask=self._ask, _graphs=self._graphs, _lock=self._lock)
        twin._set(_capture=self._capture, _prepare=self._prepare)
        return twin

    def warm(
        self,
        shapes: Sequence[Sequence[int]],
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        progress: bool = False,
        **call,
    ) -> None:
        """Do ahead what a first call does: one whole call a shape [B,*], from unit noise, its end
        dropped; so len(shapes) nfe evaluations of the model, three times as many to capture it. It
        makes the graphs of the mode and leaves an idle run.

        A compiled loop serves every B > 1, for each shape of a sample and each form of conditions;
        a captured one its shape alone. dtype, device: of the noise to come (device None: the CPU,
        and for "graph" the current CUDA device). call: the other arguments of the calls to come,
        for the batch of the first shape; cond, uncond and branches are repeated or cut for another.
        Raises as a call does.
        """
        self._set(_warned=warm(self, shapes, dtype, device, progress, call))

    def release(self) -> None:
        """Free the memory of idle runs, and captured graphs."""
        self._spares.clear()
        self._images.clear()
        if self.mode == "graph":
            self._graphs.release()

    @overload
    def __call__(self, *, trajectory: Literal[False] = ..., **words: Unpack[Words]) -> Tensor: ...
    @overload
    def __call__(
        self, *, trajectory: Literal[True], **words: Unpack[Words]
    ) -> tuple[Tensor, Tensor]: ...
    @overload
    def __call__(self, *, trajectory: bool, **words: Unpack[Words]) -> Any: ...
    @overload
    def __call__(
        self, *, noise: Mapping[str, Tensor], **words: Unpack[Common]
    ) -> dict[str, Tensor]: ...
    def __call__(
        self,
        *,
        noise: Tensor | None = None,
        latent: Tensor | None = None,
        shape: Sequence[int] | None = None,
        seed=None,
        stage=None,
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
        strength: float | None = None,
        level: float | None = None,
        device=None,
        table: Tensor | None = None,
        out: Tensor | None = None,
        check: str | None = "end",
    ):
        """x0 [B,*] in the state dtype; with trajectory=True (x0, states [n+1, B, *]), states[k] as
        row k + 1 of a whole run asks the model (latent=states[k], start=k + 1).
        """
        if strength is not None or level is not None:  # go on as the sampler of that plan
            self = self._images.of(self, latent, start, strength, level)
        words = {"noise": noise, "latent": latent, "shape": shape, "device": device}
        words |= {"seed": seed, "stage": stage, "guidance": guidance, "noise_scale": noise_scale}
        words |= {"noise_source": noise_source, "mask": mask, "known": known, "start": start}
        words |= {"check": check, "preview": callback is not None}
        plain = spare(words)
        trees = trees_of(plain, words, cond, uncond, branches)
        plan, words["guidance"] = self._plan_for(len(trees), guidance)
        modes.check_call(self.mode, self.differentiable, callback, progress, table, out)
        conditions = [told(tree) if tree else tree for tree in trees.values()]
        if not self.differentiable and not (plain and known_at_a_look(seed, guidance)):
            transforms.refuse("Sampler", *words.values(), conditions)
        with modes.quiet(self.differentiable):
            ask, copies = self._asker(plan, batched_guidance, trees, conditions)
            if self.differentiable:
                return self._definition(plan, ask, copies, trajectory, table, words)
            watch = trajectory, callback, progress, batched_guidance, trees
            return self._run(plan, ask, copies, watch, out, plain, words)

    def _asker(self, plan: Plan, batched: bool, trees: dict, conditions: Sequence[dict]):
        """What asks the model in each row, of a loop that is one graph what runs all of them; and
        how many samples of its input one of the batch has.
        """
        joint = merged("Sampler", trees) if batched and len(trees) > 1 else None
        copies = 1 if joint is None else len(conditions)
        if self.mode in modes.WHOLE:
            return partial(self._graphs.drive, conditions=conditions, joint=joint), copies
        hidden = self.differentiable and transforms.hides_from_compiler()
        models = self.models if hidden else self._ask
        return asker(plan, models, conditions, joint), copies

    def _plan_for(self, branches: int, guidance) -> tuple[Plan, object]:
        """The plan for this many branches, itself or the linear guidance of it, made once, and the
        scale: where none is given for two branches, the one it was found with.
        """
        if guidance is None and branches == 2:
            guidance = provenance.guidance(self.plan)
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
            return self.plan, guidance
        if self.plan.G > 1:
            raise ValueError(
                f"Sampler: the plan reads {self.plan.G} branches and {branches} are given; pass "
                f"uncond= or branches= of {self.plan.G}"
            )
        with self._lock:
            if branches not in self._guided:
                self._guided[branches] = guided(self.plan, branches)
            return self._guided[branches], guidance

    def _warn(self, where: str, shape: Sequence[int], guidance) -> None:
        """Say once where a call leaves what its plan was found with: by the first of a kind of
        calls, for which memory is taken, so that the others cost nothing.
        """
        if self._warned:
            return
        if isinstance(guidance, Tensor):
            known = guidance.device.type == "cpu" and arguments.readable(True, guidance)
            guidance = guidance.detach().tolist() if known else ...
        said = provenance.elsewhere(self.plan, shape, guidance, self._words)
        if said is not None:
            self._set(_warned=True)
            caller.warn(
                f"{where}: the plan was found with {said}; what its search measured is not known "
                "to hold here"
            )

    def _run(self, plan, ask, copies, watch, out, plain, words):
        """Carried out by a Run: a spare of the same kind begun again, or a new one."""
        trajectory, callback, progress, batched, trees = watch
        if self.mode == "graph":
            start = (words[name] for name in ("noise", "latent", "shape", "device"))
            capturable.refuse_device(arguments.place(*start)[1])
        kind = copies, words["preview"], words["check"]
        key = self._spares.key(plan, words["noise"], *kind) if plain else None
        run = None if key is None else self._spares.take(key)
        if run is None:
            run = Run(plan, **words, **self._options, copies=copies)
            self._warn("Sampler", run.x.shape[1:], words["guidance"])
        else:
            run.restart(words["noise"], seed=words["seed"], guidance=words["guidance"])
        if out is not None:
            modes.check_out(out, run.x)
        if self._prepare is not None and self.mode not in modes.WHOLE:
            self._prepare(run.calls)
        states = [run.x.clone()] if trajectory else None
        if self.mode == "compile-loop":
            x, states = ask(run, keep=trajectory)
        elif self.mode == "graph":
            x, states = ask(run, keep=trajectory, out=out, now=self._capture == "now")
        elif states is None and callback is None and not progress:
            x = drive(run, ask)
        else:
            with bar("Sampler", progress, sum(plan.call[run.row :] >= 0)) as shown:
                after = following(trees, partial(self._asker, plan, batched))
                x = drive(run, ask, watching(run, states, callback, shown, after))
        run.check()
        if key is not None and (callback is None or x.shape == words["noise"].shape):
            self._spares.give(key, run)
        if out is not None and x is not out:
            modes.check_out(out, x)
            x = out.copy_(x)
        return (x, torch.stack(states)) if trajectory else x

    def _definition(self, plan, ask, copies, trajectory, table, words):
        """The definition in plain torch, which every gradient and every transform goes through."""
        options, look = self._options, arguments.judged(words["check"])
        states = differentiable.run(
            plan,
            ask,
            words,
            table,
            options["state_dtype"],
            options["model_dtype"],
            copies,
            self.checkpoint,
        )
        if look:
            given = words["noise"] if words["latent"] is None else words["latent"]
            asked = options["model_dtype"] or getattr(given, "dtype", None)
            differentiable.judge("Sampler", states, plan, asked)
        if not transforms.watched():
            self._warn("Sampler", states[-1].shape[1:], words["guidance"])
        return (states[-1], torch.stack(states)) if trajectory else states[-1]
