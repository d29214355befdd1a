"""Record a run: the state wherever the model was asked, what the model said there as x0, and the
end point.

    x_0 --model--> x_1 --model--> ... x_n
    x0_i = p(alpha_i, sigma_i) x_i + q(alpha_i, sigma_i) f_i
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .kernels import moments
from .model import Model, to_x0
from .plan import Plan, provenance
from .runtime import arguments, outputs
from .runtime.arguments import uploaded
from .runtime.conditions import branches_of, take, told
from .runtime.differentiable import judge
from .runtime.ranks import ALONE, Ranks
from .runtime.run import Run
from .runtime.sources import seed_of

__all__ = ["Denoiser", "Trajectory", "record", "visits"]


@dataclass(frozen=True, eq=False)
class Trajectory:
    """A recorded run of n evaluations over B samples, everything in the state's dtype.

    x      [n+1, B, *]   states as the model was asked, and the end point last
    x0     [n, B, *]     the (guided) model's data predictions there
    alpha, sigma [n+1]   float64 levels of those states
    time   [n]           the model's own time label at each call
    """

    x: Tensor
    x0: Tensor
    alpha: np.ndarray
    sigma: np.ndarray
    time: np.ndarray

    @property
    def end(self) -> Tensor:
        """The end points [B, *]."""
        return self.x[-1]

    def __repr__(self) -> str:
        dtype, device = str(self.x.dtype).removeprefix("torch."), self.x.device
        return (
            f"Trajectory({len(self.x0)} evaluations of {list(self.end.shape)}, {dtype} on {device})"
        )


def _refuse(plan: object, model: object, noise: object) -> None:
    """TypeError for what no run can be recorded of."""
    words = ("prediction", "schedule", "sigma_data")
    for name, given, fits, accepted in (
        ("plan", plan, isinstance(plan, Plan), "a fastsample.Plan"),
        ("model", model, all(hasattr(model, word) for word in words), "a fastsample.Model"),
        ("noise", noise, isinstance(noise, Tensor) and noise.dim() > 0, "a tensor [B,*]"),
    ):
        if not fits:
            raise TypeError(
                f"trajectories: {name} is a {type(given).__name__}; {accepted} is needed"
            )


def _branch_weights(plan: Plan, row: int, guidance: float | None) -> list[float]:
    """w_g = U_g + V_g0 * guidance of the branches in f; one outside the row's bits weighs 0."""
    scale = 0.0 if guidance is None else float(guidance)
    weights = plan.U[row] + (plan.V[row, :, 0] * scale if plan.K else 0.0)
    return [float(w) if (int(plan.branches[row]) >> g) & 1 else 0.0 for g, w in enumerate(weights)]


def _check(plan: Plan, branches: int, guidance: float | None) -> None:
    """Refuse a plan for another number of branches or models, and guidance of nothing."""
    if branches != plan.G:
        raise ValueError(
            f"trajectories: the plan combines {plan.G} branches and {branches} are given; "
            "pass uncond= with a guided plan and none with a plain one"
        )
    if guidance is not None and branches == 1:
        raise ValueError(
            f"trajectories: guidance = {guidance!r:.40} is given without uncond; both, or neither, "
            "are accepted"
        )
    if plan.call.max() > 0:
        raise ValueError(
            f"trajectories: the plan asks model {plan.call.max()} and one model is given; a plan "
            "that asks model 0 alone is accepted"
        )


def visits(
    plan: Plan,
    model: Model,
    noise: Tensor,
    *,
    cond: Mapping | None = None,
    uncond: Mapping | None = None,
    guidance: float | None = None,
    batch_size: int = 256,
    seed: int | None = None,
    state_dtype: torch.dtype | None = None,
    model_dtype: torch.dtype | None = None,
) -> Iterator[tuple[slice, int, Tensor, Tensor | None]]:
    """Run `plan` from unit noise [B,*] in chunks of at most batch_size samples; yields
    (samples, row, x, f) before each row.

    x is the run's own state (copy what you keep); f the guided raw output there, None in the last
    row, where x is the end point. cond and uncond are trees that follow their samples
    (`fastsample.runtime.conditions`). Sample b draws from seed + b; None takes the seed from the
    noise: the same noise is visited alike, fresh noise draws afresh. model_dtype: what the model is
    asked in, the noise's by default.
    """
    _refuse(plan, model, noise)
    provenance.agree("trajectories", plan, [model])
    trees = branches_of("trajectories", cond, uncond, None, len(noise), noise.device)
    branches = list(trees.values())
    _check(plan, len(branches), guidance)
    dtype = state_dtype or arguments.state_dtype(noise)
    if seed is None:
        seed = seed_of(noise) if (plan.ids >= 0).any() else 0
    seed = arguments.first_seed("trajectories", seed)
    for samples in arguments.chunks("trajectories", len(noise), batch_size):
        words = [told(take(branch, samples)) for branch in branches]
        run = Run(
            plan,
            noise=noise[samples],
            seed=seed + samples.start,
            guidance=guidance if len(branches) > 1 else None,
            state_dtype=dtype,
            model_dtype=model_dtype,
            preview=False,
        )
        while not run.done:
            x, t, row = run.model_input, run.t, run.row
            f = [outputs.asked("trajectories", model, x, t, branch, row) for branch in words]
            weights = _branch_weights(plan, run.row, guidance)
            yield samples, run.row, run.x, _weighted(weights, f, dtype)
            run.step(f if len(f) > 1 else f[0])
        yield samples, plan.rows - 1, run.x, None


def record(plan: Plan, model: Model, noise: Tensor, **options: Any) -> Trajectory:
    """The whole run of `plan` on unit noise [B,*].

    Options (cond, uncond, guidance, batch_size, seed, state_dtype, model_dtype) as in `visits`.
    FloatingPointError where the end is not finite, naming the row.
    """
    _refuse(plan, model, noise)
    asked = np.flatnonzero(plan.call >= 0)
    place = {int(row): k for k, row in enumerate(asked)} | {plan.rows - 1: len(asked)}
    dtype = options.get("state_dtype") or arguments.state_dtype(noise)
    states = torch.empty((len(asked) + 1, *noise.shape), dtype=dtype, device=noise.device)
    clean = torch.empty_like(states[1:])
    with torch.no_grad():
        for samples, row, x, f in visits(plan, model, noise, **options):
            states[place[row], samples] = x
            if f is not None:
                a, s = float(plan.alpha[row]), float(plan.sigma[row])
                p, q = to_x0(model.prediction, a, s, model.sigma_data)
                clean[place[row], samples] = p * x + q * f
    judge("trajectories", states, plan, options.get("model_dtype") or noise.dtype)
    rows = np.append(asked, plan.rows - 1)
    alpha, sigma, time = plan.alpha[rows], plan.sigma[rows], plan.t[asked - 1, 0]
    return Trajectory(states, clean, alpha.copy(), sigma.copy(), time.copy())


def _weighted(weights: list[float], f: list[Tensor], dtype: torch.dtype) -> Tensor:
    """sum_g w_g f_g from left to right, in the state's dtype."""
    pairs = [(w, g.to(dtype)) for w, g in zip(weights, f, strict=True) if w]
    terms = [g if w == 1.0 else w * g for w, g in pairs]
    return sum(terms[1:], terms[0]) if terms else torch.zeros_like(f[0], dtype=dtype)


class Denoiser:
    """x0 of a model at the points of a grid: many states, each at its own point, in calls of at
    most batch_size rows per branch.

    t        [n] points in the schedule's time; states are addressed by their place in it
    noise    [B,*], whose samples cond and uncond belong to
             (`fastsample.runtime.conditions`); the model is given its shape and device
    dtype    of the states; those of 16 bits are rounded once, from float32. They may lie elsewhere
             than the noise: what is asked together is carried over
    model_dtype  what the model is asked in, the noise's by default
    wide     the dtype that is computed in: float32, float64 for float64 states
    asked    called with the number of rows after every call
    ranks    processes that the calls are dealt to
    rows     how many rows have been asked in all

    A device is not waited for: what must be known of its numbers is left to `look`.
    """

    def __init__(
        self,
        model: Model,
        t: np.ndarray,
        noise: Tensor,
        *,
        cond: Mapping | None = None,
        uncond: Mapping | None = None,
        guidance: float | None = None,
        batch_size: int = 256,
        dtype: torch.dtype = torch.float32,
        model_dtype: torch.dtype | None = None,
        asked: Callable[[int], Any] | None = None,
        ranks: Ranks = ALONE,
    ):
        if len(model.told) > 1:
            raise ValueError(
                f"trajectories: the model is told two times, time = {model.time!r:.60}, and a "
                "search asks at points, not over steps; a model that is told one is accepted"
            )
        alpha, self.sigma = model.schedule.alpha(t), model.schedule.sigma(t)
        live = self.sigma > 0  # the model is never asked at the data end
        words = np.ones((4, len(t)))
        words[:2, live] = model.times(t[live]), model.scales(t[live])
        words[2:, live] = to_x0(model.prediction, alpha[live], self.sigma[live], model.sigma_data)
        self.model, self.batch_size, self.dtype = model, batch_size, dtype
        self.wide = torch.promote_types(dtype, torch.float32)
        self.shape, self._labels, self.device = noise.shape, words[0], noise.device
        self.model_dtype = model_dtype or noise.dtype
        self._time, scale, p, q = uploaded(torch.as_tensor(words, dtype=self.wide), noise.device)
        self._scale, self._p, self._q = scale[:, None], p[:, None], q[:, None]
        self._unseen: list[tuple[Tensor, Callable]] = []
        trees = branches_of("trajectories", cond, uncond, None, len(noise), noise.device)
        self._branches = list(trees.values())
        self._weights = [1.0] if uncond is None else [float(guidance), 1.0 - float(guidance)]
        self._asked, self._ranks, self.rows = asked, ranks, 0

    def __call__(self, states: Tensor, at: np.ndarray) -> Tensor:
        """x0 [B,I,D] of states [B,I,D] standing at places `at` [I].

        ValueError for a model output of another shape or not finite.
        """
        B, points, D = states.shape
        flat, x0 = states.reshape(B * points, D), states.new_empty(B * points, D)
        at = np.tile(at, B)
        place = uploaded(torch.as_tensor(at), self.device)
        sample = torch.arange(B * points, device="cpu") // points  # lists are cut on the host
        calls = arguments.chunks("trajectories", len(flat), self.batch_size)

        def given(x: Tensor, i: Tensor) -> Tensor:
            return (self._scale[i] * x).to(self.model_dtype).reshape(len(x), *self.shape[1:])

        def ask(rows: slice) -> None:
            x, i = flat[rows].to(self.device, self.wide), place[rows]
            x0[rows] = self.x0(x, self._guided(given(x, i), self._time[i], sample[rows]), i)

        self._ranks.deal(calls, ask, lambda rows: x0[rows])
        for rows in calls:
            looks = [("output", x0[rows], "a finite output is needed")]
            if self.model_dtype == torch.float16:  # holds numbers up to 65504
                x = given(flat[rows].to(self.device, self.wide), place[rows])
                looks.insert(0, ("input in torch.float16", x, f"{outputs.WIDER} is accepted"))
            for what, numbers, accepted in looks:
                _, peaks = moments([numbers.detach()])
                asked = what, accepted, self._labels[at[rows]], sample[rows].numpy()
                self.see(peaks[:, 0], partial(self._finite, *asked))
            self.count(rows.stop - rows.start)
        return x0.reshape(B, points, D)

    @staticmethod
    def _finite(
        what: str, accepted: str, labels: np.ndarray, samples: np.ndarray, peaks: np.ndarray
    ) -> None:
        """Refuse numbers whose largest magnitude is not finite, by the model's own time."""
        wrong = np.flatnonzero(~np.isfinite(peaks))
        if len(wrong):
            whose = sorted({*samples[wrong].tolist()})
            more = f" and {len(whose) - 1} more" if len(whose) > 1 else ""
            raise ValueError(
                f"trajectories: the model's {what} at its time {labels[wrong[0]]:.6g} is not "
                f"finite for sample {whose[0]}{more}; {accepted}"
            )

    def see(self, said: Tensor, then: Callable[[np.ndarray], None]) -> None:
        """then(said, as NumPy): at once on the CPU, else in the next `look`."""
        if said.device.type == "cpu":
            then(said.detach().numpy())
        else:
            self._unseen.append((said, then))

    def look(self, *more: Tensor) -> list[np.ndarray]:
        """`more` as float64, after all that `see` was given and nobody has seen, in its order: by
        one copy from the device.
        """
        unseen, self._unseen = self._unseen, []
        wanted = [*(said for said, _ in unseen), *more]
        if not wanted:
            return []
        found = torch.cat([v.detach().double().flatten() for v in wanted]).cpu().numpy()
        parts = np.split(found, np.cumsum([v.numel() for v in wanted])[:-1])
        seen = [part.reshape(v.shape) for part, v in zip(parts, wanted, strict=True)]
        for (_, then), part in zip(unseen, seen, strict=False):
            then(part)
        return seen[len(unseen) :]

    def x0(self, x: Tensor, f: Tensor, at: Tensor | int) -> Tensor:
        """p x + q f: states x [n,D] at place(s) `at` and the model's raw outputs there."""
        return self._p[at] * x + self._q[at] * f

    def _guided(self, x: Tensor, t: Tensor, sample: Tensor) -> Tensor:
        words = [told(take(branch, sample)) for branch in self._branches]
        said = [outputs.asked("trajectories", self.model, x, t, branch) for branch in words]
        return _weighted(self._weights, [out.reshape(len(x), -1) for out in said], self.wide)

    def count(self, rows: int) -> None:
        """Count evaluations; also for those made outside, in a teacher's own run."""
        self.rows += rows
        if self._asked is not None:
            self._asked(rows)
