"""Tracks: several tensors that one call of a model denoises, each by a plan of its own.

    sampler = Sampler({"video": plan_v, "audio": plan_a}, model)
    x0 = sampler(noise={"video": z_v, "audio": z_a}, seed=7)["video"]

    run = Run({"video": plan_v, "audio": plan_a}, noise={"video": z_v, "audio": z_a}, seed=7)
    while not run.done:
        run.step(model(run.model_input, run.t))

The model is told dicts of the tracks' names, model({"video": x, "audio": x}, {"video": t,
"audio": t}, **cond), and answers with one. Schedules, shifts, solvers and shapes are each track's
own; the batch B, the conditions and the number of calls are common (`solvers.held` adds calls to
the plan of a track that begins later or ends earlier). A track is a Run: one launch a row, and the
bits of a run of its tensor alone.

Track k of the dict, counted from 0, draws in stage s + k·2^24 where the run of its tensor alone
draws in stage s: one seed draws other noise in each, the first track's is that of its tensor alone,
and another behind it changes none. stage= of a dict is taken as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..kernels import transforms
from ..model import Model
from ..plan import Plan
from ..plan.given import integer
from . import arguments, images, modes, sources
from .by_track import STAGES, alike, by_track, check_plans, found, one_call, outside, track, wanted
from .compiled import distinct
from .conditions import branches_of, merged, told
from .drive import bar
from .outputs import written
from .run import Run
from .sampler import Sampler
from .select import Select


class TrackRun:
    """A Run a track, in `runs`, all at the same call of the model. Arguments as `Run` has them: a
    dict by track, or one value for all of what is no tensor of a track's own.

    `model_input`, `t`, `x`, `x0`, `seeds` and `stages` are dicts by track, and so is what `step`
    takes and what is assigned to `x`. Raises as Run does, in the name of the track.
    """

    def __init__(self, plans: Mapping[str, Plan], **words: Any) -> None:
        check_plans("Run", plans)
        own, runs = by_track("Run", plans, words), {}
        outside("Run", own)
        for name, plan in plans.items():
            with track("Run", name):
                runs[name] = begun(plan, own[name])
        self._set(runs)

    def _set(self, runs: dict[str, Run]) -> None:
        alike("Run", "holds a batch of", {k: len(run.x) for k, run in runs.items()})
        one_call("Run", {name: _calls(run) for name, run in runs.items()})
        self.runs = runs

    # -- what a loop reads -------------------------------------------------------------------------
    @property
    def done(self) -> bool:
        return self._first.done

    @property
    def call(self) -> int:
        """Number of the model that this call asks (0 with one model; -1 when done)."""
        return self._first.call

    @property
    def calls(self) -> dict[str, Tensor]:
        """Model scalars [n] or [n, E] of the calls to come."""
        return self._each("calls")

    model_input = property(lambda self: self._each("model_input"))
    t = property(lambda self: self._each("t"))
    x0 = property(lambda self: self._each("x0"))
    seeds = property(lambda self: self._each("seeds"))
    stages = property(lambda self: self._each("stages"))

    @property
    def x(self) -> dict[str, Tensor]:
        """The states [B,*]. Assigning some or all copies them in, all or none."""
        return self._each("x")

    @x.setter
    def x(self, values: Mapping[str, Tensor]) -> None:
        if not isinstance(values, Mapping) or not values.keys() <= self.runs.keys():
            raise ValueError(f"Run.x: {found(values)} was given; {wanted(self.runs)}")
        for name, value in values.items():
            with track("Run.x", name):
                self.runs[name].takes(value)
        for name, value in values.items():
            self.runs[name].x = value

    def step(self, f: Mapping[str, Tensor] | Sequence[Mapping[str, Tensor] | None]) -> None:
        """Apply the current row of every track to the model's answer: a dict by track, [B,*] or
        branch-major [G*B,*], or a list of G dicts (None for a branch that no row uses). All of it
        is looked at before a row runs; raises as `Run.step` does.
        """
        answers = f if isinstance(f, (list, tuple)) else [f]
        for each in answers:
            right = isinstance(each, Mapping) and each.keys() == self.runs.keys()
            if not right and (each is not None or answers is not f):
                raise TypeError(f"Run.step: the model returned {found(each)}; {wanted(self.runs)}")
        if self.done:
            raise IndexError(f"Run.step: all rows of {', '.join(self.runs)} have run")
        fitting = [
            own if answers is not f and _fits(run, own := f[name]) else _fitting(run, name, f)
            for name, run in self.runs.items()
        ]
        for run, own in zip(self.runs.values(), fitting, strict=True):
            run.step(own)

    def check(self, where: str = "Sampler") -> None:
        """Read the status of every track; raises as `Run.check` does."""
        for name, run in self.runs.items():
            run.check(f"{where}: {name!r}")

    # -- inside ------------------------------------------------------------------------------------
    @property
    def _first(self) -> Run:
        return next(iter(self.runs.values()))

    def _each(self, word: str) -> dict[str, Any]:
        return {name: getattr(run, word) for name, run in self.runs.items()}

    def needed(self) -> list[bool]:
        """For each branch: does some track's current row need its output?"""
        rows = [run._shapes[run.row].branches_needed(run.plan.layout) for run in self.runs.values()]
        return [*map(any, zip(*rows, strict=True))]


class TrackSampler:
    """A Sampler of several tracks, in mode "eager" or "compile-model" (each model under
    torch.compile). Immutable, and safe from any number of threads.

    plans: by track. model: callable({track: x}, {track: t}, **cond) -> {track: prediction}; or a
    list of them where plans ask several, all the same one in a call. Other arguments as `Sampler`
    has them; an fs.Model, whose words are those of one tensor, is refused.
    """

    def __init__(
        self,
        plans: Mapping[str, Plan],
        model: Callable | Sequence[Callable],
        mode: str = "eager",
        *,
        differentiable: bool = False,
        prepare: Callable | None = None,
        **options: Any,
    ) -> None:
        check_plans("Sampler", plans)
        modes.check(mode, differentiable, False, options.get("backend"))
        if mode in modes.WHOLE or differentiable:
            what = "differentiable=True" if differentiable else f"mode={mode!r}"
            raise ValueError(
                f"Sampler: {what} with tracks, whose rows are launched run by run; mode='eager' or "
                "'compile-model' without gradients is accepted"
            )
        models = tuple(model) if isinstance(model, (list, tuple)) else (model,)
        if any(isinstance(each, Model) for each in models):
            raise ValueError(
                "Sampler: model is an fs.Model, whose words are those of one tensor; the callable "
                "of all tracks is accepted, whose plans know their schedules"
            )
        modes.check_graph(mode, False, "ahead", prepare)
        one_call("Sampler", {k: plan.call[plan.call >= 0].tolist() for k, plan in plans.items()})
        self.plans, self.models, self.mode = dict(plans), models, mode
        self._samplers = {}
        for name, plan in plans.items():
            with track("Sampler", name):
                self._samplers[name] = Sampler(plan, models, **options)
        self._options, self._prepare = options, prepare
        self._ask = tuple(map(_compiled, models)) if mode == "compile-model" else models

    def __call__(
        self,
        *,
        cond: dict | None = None,
        uncond: dict | None = None,
        branches: Sequence[dict] | None = None,
        callback: Callable | None = None,
        progress: bool = False,
        trajectory: bool = False,
        batched_guidance: bool = True,
        **words: Any,
    ):
        """{track: x0}; with trajectory=True also {track: states [n+1, B, *]}.

        Other words are those of a Sampler's call, for each track by a dict (all tensors) or one
        for all: noise, latent, shape, seed, stage, guidance, start, strength, level, noise_scale,
        noise_source, mask, known, out, device, check. callback(step, x, x0) is told dicts, and may
        return one of new states.
        """
        modes.check_call(self.mode, False, callback, progress, words.pop("table", None), None)
        own = by_track("Sampler", self.plans, words)
        outs = {name: its.pop("out", None) for name, its in own.items()}
        batch, device = _place(own)
        trees = branches_of("Sampler", cond, uncond, branches, batch, device)
        joint = merged("Sampler", trees) if batched_guidance and len(trees) > 1 else None
        copies = 1 if joint is None else len(trees)
        conditions = [told(tree) for tree in trees.values()]
        outside("Sampler", conditions, own)
        with modes.quiet(False):
            run, keys = self._begun(own, len(trees), copies, callback is not None)
            for name, out in outs.items():
                if out is not None:
                    with track("Sampler", name):
                        modes.check_out(out, run.runs[name].x)
            if self._prepare is not None:
                self._prepare(run.calls)
            states = [_copied(run.x)] if trajectory else None
            with bar("Sampler", progress, len(_calls(run._first))) as shown:
                self._drive(run, (conditions, joint, batch), callback, states, shown)
            run.check()
            for name, key in keys.items():
                if key is not None:
                    self._samplers[name]._spares.give(key, run.runs[name])
            x0 = {k: v.clone() if outs[k] is None else outs[k].copy_(v) for k, v in run.x.items()}
        if not trajectory:
            return x0
        return x0, {name: torch.stack([each[name] for each in states]) for name in x0}

    def _begun(self, own: dict[str, dict], branches: int, copies: int, preview: bool) -> tuple:
        """The run that these words begin, by the plans for this many branches, and for each track
        the key of a spare.
        """
        runs, keys = {}, {}
        for name, its in own.items():
            with track("Sampler", name):
                begin = [its.get(word) for word in ("latent", "start", "strength", "level")]
                sampler = self._samplers[name]
                if its.get("strength") is not None or its.get("level") is not None:
                    sampler = sampler._images.of(sampler, *begin)
                    its |= {"strength": None, "level": None}
                plan, its["guidance"] = sampler._plan_for(branches, its.get("guidance"))
                its |= {"copies": copies, "preview": preview, "noise": its.get("noise")}
                runs[name], keys[name] = self._run(sampler, plan, its)
        run = object.__new__(TrackRun)
        run._set(runs)
        return run, keys

    def _run(self, sampler: Sampler, plan: Plan, its: dict[str, Any]) -> tuple[Run, Hashable]:
        """A track's run, and the key by which it is one of its sampler's spares, if it may be."""
        plain = its["noise"].__class__ is Tensor and "track" in its and its["stage"] is None
        plain = plain and all(its[word] is None for word in its.keys() - ORDINARY)
        kind = its["copies"], its["preview"], its.get("check", "end")
        key = sampler._spares.key(plan, its["noise"], *kind) if plain else None
        run = None if key is None else sampler._spares.take(key)
        if run is not None:
            run.restart(its["noise"], seed=its.get("seed"), guidance=its["guidance"])
            return run, key
        run = begun(plan, its | self._options)
        sampler._warn("Sampler", run.x.shape[1:], its["guidance"])
        return run, key

    def _drive(self, run: TrackRun, conditions: tuple, callback, states, shown) -> None:
        """Every row of the run: `drive` has it for one tensor."""
        step = 0
        while not run.done:
            x, t, row = run.model_input, run.t, run._first.row
            seen = [(v, v._version) for v in (*x.values(), *t.values())]
            f = _answer(self._ask[run.call], x, t, run.needed(), *conditions)
            if any(v._version != version for v, version in seen):
                raise written("Sampler", row)
            run.step(f)
            new = callback(step, run.x, run.x0) if callback is not None else None
            if isinstance(new, Select):
                raise TypeError(
                    "Sampler: callback returned a Select, which goes on with samples of one "
                    "tensor; a dict of new states by track, or None, is accepted"
                )
            if new is not None:
                run.x = new
            if states is not None:
                states.append(_copied(run.x))
            if shown is not None:
                shown.update()
            step += 1


# what a spare is begun with, and what it was made for; all else is None
ORDINARY = {"noise", "seed", "guidance", "stage", "track", "copies", "preview", "check"}
KINDS = {"Run": TrackRun, "Sampler": TrackSampler}


def _place(own: dict[str, dict]) -> tuple[int, torch.device]:
    """The batch of all tracks, and the device of the first."""
    places = {}
    for name, its in own.items():
        with track("Sampler", name):
            begin = (its.get(word) for word in ("noise", "latent", "shape", "device"))
            places[name] = arguments.place(*begin)
    alike("Sampler", "holds a batch of", {name: batch for name, (batch, _) in places.items()})
    return next(iter(places.values()))


# -- what is asked ---------------------------------------------------------------------------------
def _compiled(model: Callable) -> Callable:
    """The model under torch.compile, with a cache of its own."""

    def ask(x: dict[str, Tensor], t: dict[str, Tensor], **cond):
        return model(x, t, **cond)

    return torch.compile(distinct(ask))


def _answer(model: Callable, x: dict, t: dict, needed, conditions, joint, batch: int):
    """What the model says of all tracks in each branch that is needed, as `conditions.answer` has
    it for one tensor.
    """
    if len(conditions) == 1:
        return model(x, t, **conditions[0])
    if joint is not None:
        if all(needed):
            return model(x, t, **joint)
        x, t = ({name: v[:batch] for name, v in part.items()} for part in (x, t))
    pairs = zip(needed, conditions, strict=True)
    return [model(dict(x), dict(t), **cond) if asked else None for asked, cond in pairs]


def _fits(run: Run, f: object) -> bool:
    """Is it seen at a look that a step takes this answer as it is?"""
    own = run._pool
    return (
        f.__class__ is Tensor
        and f.dtype == own.model_dtype
        and f.device == own.x.device
        and f.shape[1:] == own.x.shape[1:]
        and f.shape[0] == run.plan.G * own.batch
        and f.layout == torch.strided
        and not (f.requires_grad or transforms.watched())
    )


def _fitting(run: Run, name: str, f: object) -> list[Tensor | None]:
    """The answer of a track's G branches, checked."""
    several = isinstance(f, (list, tuple))
    with track("Run.step", name):
        own = [each and each[name] for each in f] if several else f[name]
        outside("Run.step", own)
        return run._outputs(own)


def _calls(run: Run) -> list[int]:
    """Numbers of the models that the rows to come ask."""
    return [shape.call for shape in run._shapes[run.row : run.end] if shape.call >= 0]


def _copied(states: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: x.clone() for name, x in states.items()}


def begun(plan: Plan, words: dict[str, Any]) -> Run:
    """A track's Run, in the stage that is its own."""
    words = {word: value for word, value in words.items() if value is not None or word == "check"}
    k, begin = words.pop("track", 0), [words.pop(word, None) for word in ("strength", "level")]
    plan = images.plan_for("Run", plan, words.get("latent"), words.get("start"), *begin)
    if k and "stage" not in words:
        words["stage"] = sources.default_stage(plan, integer(words.get("start")) or 0)
    return Run(plan, **words | ({"stage": words["stage"] + k * STAGES} if k else {}))
