"""The numbers of a plan that `polish` moves, as one vector theta.

    scale    log of what row 0 multiplies unit noise by
    label    lambda = log(alpha / sigma) of each row that asks a model, and with it all that follows
             from the point: alpha, sigma, the model's time t and input scale c, p, q, the preview
    weight   the coefficient in x' of every operand that such a row reads: the state, slots, m, f

What a row writes into slots is not moved: a slot holds what the row computes from operands, also
where that is a prediction or a mixture of states. Nor are rows that stand at alpha = 0, whose
lambda is infinite, given another label.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from ..model import Model, to_kind, to_x0
from ..plan import Plan
from ..plan.provenance import agree

LABEL, SCALE, MOVED = 0.02, 0.01, 0.01  # difference steps: lambda, log scale, share of x'
LEAST = 1e-3  # of an operand beside x': its weight moves by 10 at most
FOLLOW = ("p", "q", "c", "t", "preview")  # from a label
FAR = 50  # difference steps that a label or the scale goes at once: 1 in lambda, a factor of 1.6
TANGENT = 1e-7  # step of the derivative of a table's numbers, which are smooth in float64


class Number(NamedTuple):
    """One of theta: its kind, and the row and column of M that it stands in."""

    kind: str
    row: int
    column: int = 0


@dataclass(frozen=True)
class Numbers:
    """theta [P] of a plan made for `model`; a plan of one branch, or the one that guides it."""

    plan: Plan
    model: Model

    @cached_property
    def all(self) -> tuple[Number, ...]:
        plan = self.plan
        columns = range(plan.layout.noise(0))  # of M, the noises apart
        found = [Number("scale", 0)]
        for i in range(1, plan.rows - 1):
            found += [Number("label", i)] if plan.alpha[i] > 0 else []
            found += [Number("weight", i, c) for c in columns if plan.reads[i] >> c & 1]
        return tuple(found)

    @cached_property
    def begin(self) -> np.ndarray:
        """theta of the plan itself."""
        plan = self.plan
        value = {
            "scale": lambda n: math.log(plan.M[0, 0, 0]),
            "label": lambda n: math.log(plan.alpha[n.row]) - math.log(plan.sigma[n.row]),
            "weight": lambda n: plan.M[n.row, 0, n.column],
        }
        return np.array([value[n.kind](n) for n in self.all])

    @cached_property
    def first(self) -> np.ndarray:
        """The first row of the table that each number changes: a row keeps what the next one's
        model is told.
        """
        return np.array([n.row - (n.kind == "label") for n in self.all])

    @cached_property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Least and largest theta: labels stay within the schedule's finite range, or where they
        were beyond it.
        """
        schedule, labels = self.model.schedule, np.array([n.kind == "label" for n in self.all])
        low, high = np.full((2, len(labels)), [[-np.inf], [np.inf]])
        ends = (float(schedule.half_log_snr(t)) for t in (schedule.t_finite, schedule.t_min))
        least, most = ends
        low[labels] = np.minimum(least, self.begin[labels])
        high[labels] = np.maximum(most, self.begin[labels])
        return low, high

    def steps(self, theta: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """Difference steps [P] within the bounds. sizes [P]: of a weight, that of its operand, as a
        share of x'.
        """
        step = {"scale": SCALE, "label": LABEL, "weight": MOVED}
        h = np.array([step[n.kind] for n in self.all])
        weights = np.array([n.kind == "weight" for n in self.all])
        h[weights] /= np.maximum(sizes[weights], LEAST)
        return np.where(theta + h > self.bounds[1], -h, h)

    def within(self, theta: np.ndarray, move: np.ndarray) -> np.ndarray:
        """theta + move, within the bounds; labels and the scale no further than FAR: what the end
        points hardly feel would else go anywhere.
        """
        most = {"scale": FAR * SCALE, "label": FAR * LABEL, "weight": np.inf}
        most = np.array([most[n.kind] for n in self.all])
        return np.clip(theta + np.clip(move, -most, most), *self.bounds)

    def plan_at(self, theta: np.ndarray) -> Plan:
        """The plan with these numbers; those that are the plan's own keep their bits, and all that
        follows from them.
        """
        return replace(self.plan, **self.arrays(theta))

    def arrays(self, theta: np.ndarray, every: bool = False) -> dict[str, np.ndarray]:
        """The arrays that may differ from the plan's; every: what follows from labels is worked out
        for all, also where theta is the plan's.
        """
        plan, model = self.plan, self.model
        a = {name: getattr(plan, name).copy() for name in ("M", "alpha", "sigma", *FOLLOW)}
        pairs = zip(self.all, theta, self.begin, strict=True)
        moved = [(n, value) for n, value, own in pairs if every or value != own]
        for n, value in moved:
            if n.kind != "label":
                a["M"][n.row, 0, n.column] = math.exp(value) if n.kind == "scale" else value
        labels = [(n.row, value) for n, value in moved if n.kind == "label"]
        if labels:
            rows, level = (np.array(v) for v in zip(*labels, strict=True))
            t = model.schedule.time(level)
            alpha, sigma = model.schedule.alpha(t), model.schedule.sigma(t)
            a["alpha"][rows], a["sigma"][rows] = alpha, sigma
            words = (alpha, sigma, model.sigma_data)
            a["p"][rows], a["q"][rows] = to_kind(plan.stored, model.prediction, *words)
            shown = "eps" if plan.stored == "d" else plan.stored
            a["preview"][rows] = np.stack(to_x0(shown, *words), 1)
            a["t"][rows - 1, 0], a["c"][rows - 1] = model.times(t), model.scales(t)
        return a

    def table(self, theta: np.ndarray) -> np.ndarray:
        """The numbers of the plan's table [R, WF] float64."""
        return self.plan_at(theta).table(np.float64)[0]

    def tables(self, theta: np.ndarray, steps: np.ndarray) -> np.ndarray:
        """Tables [1+P, R, WF]: at theta, and with each number moved by its step."""
        moved = theta + np.diag(steps)
        return np.stack([self.table(v) for v in (theta, *moved)])

    def probes(self) -> np.ndarray:
        """Tables [1+P, R, WF]: the plan's own, and for every weight one whose row gives its operand
        alone as x'; those of other numbers are the plan's.
        """
        own = self.table(self.begin)
        tables, at = np.repeat(own[None], 1 + len(self.all), 0), self.plan.layout.at("M")
        for table, n in zip(tables[1:], self.all, strict=True):
            if n.kind == "weight":
                row = table[n.row, at : at + self.plan.W]
                row[:], row[n.column] = 0.0, 1.0
        return tables

    def tangents(self, theta: np.ndarray, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The table [R, WF] at theta and its derivatives [P, R, WF]."""
        h = np.copysign(TANGENT, steps)
        own, *moved = self.tables(theta, h)
        return own, (np.stack(moved) - own) / h[:, None, None]

    def check(self) -> None:
        """Refuse, in one sentence, a plan that is not deterministic, from noise, of one branch and
        one model, or whose rows the model's words and schedule do not give.
        """
        plan, found = self.plan, None
        if plan.G != 1:
            found = f"combines {plan.G} branches; one of one branch (plan.unguided()), with uncond="
        elif plan.sigma[0] == 0 or plan.known_reads.any() or not plan.init_scale > 0:
            found = "begins from an image, or holds one; one for noise, made without inpaint,"
        elif any(any(row.draws(plan.layout, masked=False)) for row in plan.program.rows):
            found = "draws noise; a deterministic one"
        elif plan.call.max() > 0:
            found = "asks several models; one of a single model"
        if found is not None:
            raise ValueError(f"polish: {plan!r} {found} is accepted")
        agree("polish", plan, [self.model])
        anew = self.arrays(self.begin, every=True)
        for name in (*FOLLOW, "alpha", "sigma"):
            far = np.abs(anew[name] - getattr(plan, name)) > 1e-6 * (1 + np.abs(anew[name]))
            if far.any():
                raise ValueError(
                    f"polish: {name} of row {np.argwhere(far)[0, 0]} of {plan!r} is not what the "
                    "model's words and schedule give there; a plan made for this model is accepted"
                )

    def evaluations(self) -> int:
        """Model evaluations of a sample whose plan and twins run together: each twin's after the
        row at which it begins to differ.
        """
        asks = np.flatnonzero(self.plan.call >= 0)
        return len(asks) + sum(int((asks > row).sum()) for row in self.first)
