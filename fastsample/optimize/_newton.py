"""One plan polished: steps of Gauss-Newton on its numbers theta, damped as Levenberg and Marquardt
do, between which all there is to keep is a small `State`. The formula is that of
`optimize.polish`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..guidance import guided
from ..kernels import normal
from ..metrics import DATA_RANGE
from ..model import Model
from ..plan import Plan
from ..plan.consistency import heaviest, weights
from ..runtime.conditions import take
from ..runtime.sampler import Sampler
from ..runtime.sources import seeds
from ._numbers import Numbers
from ._paths import HEAVIEST
from ._twins import Twins

CHUNK = 8  # times batch_size: samples and their twins that run together
DAMPING, LEAST_DAMPING, MOST_DAMPING = 1e-3, 1e-6, 10.0  # beside the unit diagonal
WORSE = 0.1  # that a step may be, of the loss, which is a logarithm
PATIENCE = 5  # steps that gain nothing, one after the other: as many as the memory goes back
TINY = 1e-14  # of the Gram matrix's largest diagonal element
EXACT = 1e-20  # a mean square: 206 dB, which nothing is better than


@dataclass(frozen=True)
class Options:
    """What is done, under the names of `polish`'s arguments; held: the last so many samples, which
    judge.
    """

    loss: str | Callable[[Tensor], Tensor]
    iterations: int
    batch: int
    held: int
    memory: float
    jvp: bool
    seed: int


@dataclass(frozen=True)
class State:
    """Where a polish stands after `iteration` steps; numbers and float64 arrays, no more.

    theta, best [P]: now, and the best yet. steps [P]: of the differences. gram [P,P]: the sum of
    the Gram matrices. mu: the damping. begin, loss: of the held-out samples at first, and at
    `best`; error: their mean squared error there. stale: steps since `best`. rows: evaluations.
    """

    theta: np.ndarray
    best: np.ndarray
    steps: np.ndarray
    gram: np.ndarray
    mu: float
    begin: float
    loss: float
    error: float
    iteration: int = 0
    stale: int = 0
    rows: int = 0

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything, as np.savez takes it."""
        return {f.name: np.asarray(getattr(self, f.name)) for f in fields(self)}

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray]) -> State:
        """The state that `arrays` wrote."""
        held = {f.name: np.asarray(arrays[f.name]) for f in fields(cls)}
        return cls(**{name: v if v.ndim else v.item() for name, v in held.items()})


class Polisher:
    """A plan of one branch on its way.

    z [B,*] unit noise; target [B,D]: the teacher's end points; path [B,K,D]: its states where rows
    2, 3, ... of the plan begin, for loss="trajectory"; words: cond, uncond, guidance, batch_size
    and model_dtype; weight [B,D]: what each element counts, of mean 1 in a sample; wide: the dtype
    that is computed in; asked: called with the number of rows after every model call. state: go on
    from there; None: begin, which runs the held-out samples twice.
    """

    def __init__(
        self,
        model: Model,
        plan: Plan,
        z: Tensor,
        target: Tensor,
        words: Mapping[str, Any],
        options: Options,
        *,
        path: Tensor | None = None,
        weight: np.ndarray | None = None,
        wide: torch.dtype = torch.float32,
        asked: Callable[[int], Any] | None = None,
        state: State | None = None,
    ):
        self.model, self.start, self.options = model, plan, options
        run = plan if words.get("uncond") is None else guided(plan)
        self.numbers, self._words, self._z = Numbers(run, model), words, z
        self._twins = Twins("polish", model, run, z, words, wide, asked)
        self._loss = _Loss(options.loss, run, model, z, target, path, weight, words["batch_size"])
        self._heaviest = max(HEAVIEST, heaviest(plan))
        split = len(z) - options.held
        self._train, self._held = torch.arange(split), torch.arange(split, len(z))
        self.state = self._begun() if state is None else state

    @property
    def plan(self) -> Plan:
        """The best plan so far, of one branch; it began as itself."""
        return self.start.with_numbers(**Numbers(self.start, self.model).arrays(self.state.best))

    @property
    def done(self) -> bool:
        s = self.state
        return s.iteration >= self.options.iterations or s.stale >= PATIENCE

    @property
    def evaluations(self) -> int:
        """Of one step whose first try is taken, of all samples together."""
        each = self.numbers.evaluations()
        if self.options.jvp:
            each = len(self.numbers.all) * self.numbers.plan.nfe
        train = min(self.options.batch, len(self._train))
        return train * each + self.options.held * self.numbers.plan.nfe

    @torch.no_grad()
    def advance(self) -> bool:
        """One step, with a mini-batch of its own; False where there was none left to take."""
        if self.done:
            return False
        s, before = self.state, self._twins.rows
        A, g = self._gathered(self._batch(s.iteration))
        gram = self.options.memory * s.gram + A
        size = np.sqrt(np.maximum(np.diag(gram), max(TINY * gram.max(), np.finfo(float).tiny)))
        mu, scaled = s.mu, gram / size[:, None] / size
        taken = False
        while not taken and mu <= MOST_DAMPING:
            step = np.linalg.solve(scaled + mu * np.eye(len(size)), g / size) / size
            theta = self.numbers.within(s.theta, -step)
            loss, error = self._judged(theta)
            taken = loss < s.loss + WORSE
            mu = mu if taken else 10 * mu
        new = {"gram": gram, "mu": min(mu, MOST_DAMPING)}
        new |= {"iteration": s.iteration + 1, "stale": s.stale + 1}
        if taken:
            new |= {"theta": theta, "mu": max(mu / 3, LEAST_DAMPING)}
        if loss < s.loss:
            new |= {"best": theta, "loss": loss, "error": error, "stale": 0}
        self.state = replace(s, **new, rows=s.rows + self._twins.rows - before)
        return True

    def note(self) -> dict[str, Any]:
        """What the note of `plan` says of this polish."""
        s, o, plan = self.state, self.options, self.plan
        begun = self.start.note.get("found") or {"solver": self.start.note.get("solver", "unnamed")}
        return {
            "from": begun,
            "loss": o.loss if isinstance(o.loss, str) else "features",
            "numbers": len(s.theta),
            "iterations": s.iteration,
            "batch": o.batch,
            "memory": o.memory,
            "jvp": o.jvp,
            "held": {"samples": o.held, "begin": decibel(s.begin), "end": decibel(s.loss)},
            "weights": weights(plan).tolist(),
            "defect": plan.consistency(),
        }

    # -- inside ------------------------------------------------------------------------------------
    @torch.no_grad()
    def _begun(self) -> State:
        """The state before the first step."""
        numbers, theta, probes = self.numbers, self.numbers.begin, self.numbers.probes()
        parts = self._parts(self._held, len(probes))
        square = torch.cat([self._twins.squares(probes, at, numbers.first) for at in parts])
        moved = np.sqrt(sum(square.cpu().numpy()) / len(square))  # one sample after the other
        loss, error = self._judged(theta)
        if not math.isfinite(loss):
            raise ValueError(
                f"polish: the end points of {self.start!r} are not finite; a plan whose runs are "
                "is needed"
            )
        steps, nothing = numbers.steps(theta, moved[1:]), np.zeros((len(theta), len(theta)))
        figures = loss, loss, error
        return State(theta, theta, steps, nothing, DAMPING, *figures, rows=self._twins.rows)

    def _parts(self, samples: Tensor, twins: int) -> Sequence[Tensor]:
        """Samples in chunks, for runs with so many twins of each."""
        return samples.split(max(1, CHUNK * self._words["batch_size"] // twins))

    def _batch(self, iteration: int) -> Tensor:
        """The samples of a step: those of every epoch in an order of its own."""
        n = min(self.options.batch, len(self._train))
        epoch, k = divmod(iteration, len(self._train) // n)
        seed = seeds(self.options.seed, 1, torch.device("cpu"), needed=True)
        order = normal(seed, torch.tensor([epoch]), len(self._train))[0].argsort(stable=True)
        return self._train[order[k * n : (k + 1) * n]]

    def _judged(self, theta: np.ndarray) -> tuple[float, float]:
        """(loss, mean squared error) of the held-out samples; inf where a row is too heavy, or an
        end point is not finite.
        """
        try:
            plan = self.numbers.plan_at(theta)
        except ValueError:  # a number that is not finite
            return math.inf, math.inf
        if not heaviest(plan) <= self._heaviest:
            return math.inf, math.inf
        table, found = plan.table(np.float64)[0][None], []
        for part in self._parts(self._held, 1):
            states = self._twins.states(table, part, self._loss.kept)
            found.append(self._loss.errors(states, part))
        loss, error = torch.cat(found, 1).cpu().numpy()
        return self._loss.mean(loss), float(error.mean())

    def _gathered(self, samples: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """J'WJ [P,P] and J'Wr [P] of a mini-batch, a mean over samples and residuals."""
        s, parts = self.state, []
        if self.options.jvp:
            given = self.numbers.tangents(s.theta, s.steps)
            run = self._tangents
        else:
            given = self.numbers.tables(s.theta, s.steps), s.steps
            run = self._differences
        for part in self._parts(samples, 1 + len(s.theta)):
            r, J = run(*given, part)  # [b,F], [P,b,F]
            for b in range(len(part)):
                slope = J[:, b]
                parts.append((slope @ slope.T, slope @ r[b], r[b].square().mean()))
        own, gap, error = (torch.stack(v).cpu().numpy() for v in zip(*parts, strict=True))
        bad = sorted(samples[~np.isfinite(own).all((1, 2)) | ~np.isfinite(error)].tolist())
        if bad:
            raise ValueError(
                f"polish: the end points of samples {bad[:8]} are not finite near {self.start!r}; "
                "a model with finite output is needed"
            )
        w = self._loss.weights(error) / (len(error) * r.shape[1])
        own, gap = w[:, None, None] * own, w[:, None] * gap
        return sum(own), sum(gap)  # one sample after the other

    def _differences(
        self, tables: np.ndarray, steps: np.ndarray, part: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Residuals [b,F] and their slopes [P,b,F] by differences, the twins beside the plan."""
        states = self._twins.states(tables, part, self._loss.kept, self.numbers.first)
        r = self._loss.residuals(states, part)
        return r[0], (r[1:] - r[0]) / torch.as_tensor(steps, device=r.device)[:, None, None]

    def _tangents(
        self, table: np.ndarray, slopes: np.ndarray, part: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The same by torch.func.jvp of the whole run, one number after the other."""
        twins, z = self._twins, self._z
        told = {name: take(tree, part) for name, tree in twins.trees.items()}
        told["guidance"] = self._words["guidance"]
        dtypes = {"state_dtype": twins.wide, "model_dtype": twins.model_dtype}
        model = replace(self.model, fn=self._followed, model_id=self.model.identity)
        sampler = Sampler(twins.plan, model, differentiable=True, **dtypes)

        def run(numbers: Tensor) -> Tensor:
            call = {"trajectory": True, "batched_guidance": False, "check": None, "table": numbers}
            _, states = sampler(noise=z[part], **told, **call)
            return torch.stack([states[k] for k in self._loss.kept], 1)  # k: after row k

        place = {"dtype": twins.wide, "device": z.device}
        table, slopes = (torch.as_tensor(v).to(**place) for v in (table, slopes))
        kept = len(part), len(self._loss.kept), *z.shape[1:]
        pairs = z.new_empty((len(slopes), 2, *kept), dtype=twins.wide)

        def along(k: int) -> None:
            pairs[k] = torch.stack(self._derived(run, table, slopes[k]))

        twins.ranks.deal(range(len(slopes)), along, lambda k: pairs[k])
        twins.count(len(slopes) * len(part) * twins.plan.nfe)
        seen = lambda states: self._loss.residuals(states[None], part)[0]
        found = [self._derived(seen, *pair) for pair in pairs]
        return found[0][0], torch.stack([J for _, J in found])

    def _followed(self, x: Tensor, t: Tensor, **words: Any) -> Tensor:
        """The model's answer, which must follow x: one that is worked out apart, as in NumPy or of
        x.detach(), would pass for a constant.
        """
        said = self.model.fn(x, t, **words)
        moves = [forward_ad.unpack_dual(v).tangent is not None for v in (x, said)]
        if moves == [True, False]:
            raise RuntimeError("the model's answer does not follow what it is asked")
        return said

    @staticmethod
    def _derived(of: Callable, x: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
        """of(x) and its derivative along slope; ValueError where it has none."""
        try:
            return torch.func.jvp(of, (x,), (slope,))
        except (RuntimeError, NotImplementedError) as error:
            raise ValueError(
                f"polish: jvp=True, and the run has no forward derivative ({error!s:.80}); "
                "jvp=False is accepted"
            ) from error


class _Loss:
    """What a run's states are held against. kept: the rows after which they are looked at.

    Residuals are float64, times the square roots of the elements' weights: x - target at the end;
    with "trajectory" beside it, at every row, the state less the teacher's, over its spread
    sqrt(alpha^2 sigma_data^2 + sigma^2) against the end's; with a callable, and no weights, the
    features of x less those of the target.
    """

    def __init__(
        self,
        loss: str | Callable[[Tensor], Tensor],
        plan: Plan,
        model: Model,
        z: Tensor,
        target: Tensor,
        path: Tensor | None,
        weight: np.ndarray | None,
        batch_size: int,
    ):
        self._kind, self._features = loss, loss if callable(loss) else None
        self._like, self._batch, last = z, batch_size, plan.rows - 2
        self.kept = range(1, last + 1) if loss == "trajectory" else range(last, last + 1)
        self._target = target[:, None] if path is None else torch.cat([path, target[:, None]], 1)
        there = [k + 1 for k in self.kept]
        spread = np.hypot(plan.alpha[there] * model.sigma_data, plan.sigma[there])
        self._scale = torch.as_tensor(spread[-1] / spread, device=z.device)[:, None]
        self._root = None if weight is None else torch.as_tensor(np.sqrt(weight))

    def residuals(self, states: Tensor, samples: Tensor) -> Tensor:
        """[n,b,F] float64 of states [n,b,kept,*]."""
        if self._features is None:
            return (self._gap(states, samples) * self._scale).flatten(2)
        target = self._seen(self._target[samples, -1].to(self._like.device))
        return self._seen(states[:, :, -1].flatten(0, 1)).unflatten(0, states.shape[:2]) - target

    def _gap(self, states: Tensor, samples: Tensor) -> Tensor:
        """States [n,b,kept,*] less the teacher's, weighed: [n,b,kept,D] float64."""
        gap = states.flatten(3).double() - self._target[samples].to(states.device).double()
        return gap if self._root is None else gap * self._root[samples, None].to(states.device)

    def _seen(self, x: Tensor) -> Tensor:
        """Features [m,F] float64 of end points, m of them."""
        parts = x.reshape(-1, *self._like.shape[1:]).split(self._batch)
        seen = [self._features(part) for part in parts]
        for part, found in zip(parts, seen, strict=True):
            if not isinstance(found, Tensor) or found.dim() < 2 or len(found) != len(part):
                found = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
                raise ValueError(
                    f"polish: the loss returned {found} for {list(part.shape)}; features "
                    f"{[len(part), 'F']}, a row for each sample, are needed"
                )
        return torch.cat([found.double().flatten(1) for found in seen])

    def errors(self, states: Tensor, samples: Tensor) -> Tensor:
        """[2,b]: mean squares of the residuals, and of x - target, of states [1,b,kept,*]."""
        r = self.residuals(states, samples)[0].square().mean(1)
        return torch.stack([r, self._gap(states, samples)[0, :, -1].square().mean(1)])

    def mean(self, errors: np.ndarray) -> float:
        """The loss of samples with these mean squares: the mean of their logarithms, and with "l2"
        the logarithm of their mean; inf where one is not finite.
        """
        if not np.isfinite(errors).all():
            return math.inf
        errors = np.maximum(errors, EXACT)
        return float(np.log(errors.mean()) if self._kind == "l2" else np.log(errors).mean())

    def weights(self, errors: np.ndarray) -> np.ndarray:
        """What each sample's square weighs in a quadratic model of the loss."""
        errors = np.maximum(errors, EXACT)
        return 1 / (np.full_like(errors, errors.mean()) if self._kind == "l2" else errors)


def decibel(loss: float) -> float:
    """10 log10(range^2 / e^loss)."""
    return 10 * (2 * math.log10(DATA_RANGE) - loss / math.log(10))
