"""Builder: what every solver file compiles its rows with.

A maker describes each model evaluation by what it does to the state, in symbols, and the Builder
turns that into a Plan::

    b = Builder(model, grid, prediction=prediction, stored="x0", start=start, inpaint=inpaint)
    for i in range(b.n):
        b.row(b.t[i], to=b.t[i + 1], x=a * X + g * M, keep={f"m{i}": M})
    return b.build("ddim", order=1, eta=eta, citations=[...])

X is the state where the model is asked, M the prediction in the stored kind, R(name) a kept value
(slots are named; reading R("m3") finds the slot), N(id) a noise. `x=` is the next state, at the
point `to`. A row without a call (churn) is `b.pre(...)`: it is multiplied into the row before it.
`anchor=` names the value a later row comes back to (the x a Runge-Kutta step starts from, the
corrected x of UniPC): R("anchor"). It is eliminated: written as a combination of x', slots and
noises, so a row writes x' and one slot. With `inpaint=True` rows edit x, so the anchor keeps a
slot.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..model import Model, to_kind
from ..plan import Plan, PlanError
from ._pack import INITIAL_NOISE, Row, allocate, pack

# A defect above CONSISTENT is a wrong formula, not rounding (sound rows show about 1e-15, at
# N = 1000 1e-12), unless weights are huge (a Heun step over many decades): rounding grows with the
# sum of their sizes.
CONSISTENT, ROUNDING = 1e-9, 1e-14


class Lin(dict):
    """A linear combination {operand: coefficient}; operands are "x", "m", "f", ("f", g), ("n", id),
    ("r", name).
    """

    def __add__(self, other: Lin) -> Lin:
        out = Lin(self)
        for k, c in other.items():
            out[k] = out.get(k, 0.0) + c
        return out

    def __mul__(self, scale: float) -> Lin:
        return Lin({k: float(scale) * c for k, c in self.items()})

    __rmul__ = __mul__

    def __sub__(self, other: Lin) -> Lin:
        return self + (-1.0) * other

    def __neg__(self) -> Lin:
        return -1.0 * self

    def __truediv__(self, scale: float) -> Lin:
        return self * (1.0 / scale)

    def put(self, name: object, value: Lin) -> Lin:
        """This combination with `value` in place of operand `name`."""
        rest = Lin({k: c for k, c in self.items() if k != name})
        return rest + self[name] * value if name in self else rest


X, M, ZERO = Lin({"x": 1.0}), Lin({"m": 1.0}), Lin()


def R(name: str) -> Lin:
    """A value kept by an earlier row."""
    return Lin({("r", name): 1.0})


def N(noise_id: int) -> Lin:
    """The noise with this id: 1, 2, ...; the same id is the same noise again."""
    return Lin({("n", int(noise_id)): 1.0})


ANCHOR = ("r", "anchor")


class Builder:
    """Collects rows and compiles them. `t` is the grid in the schedule's time, noise to data; `n`
    its steps; `alpha`, `sigma` [n+1].
    """

    def __init__(
        self,
        model: object,
        grid: Sequence[float],
        *,
        prediction: str | None = None,
        stored: str = "x0",
        start: int | float | None = None,
        inpaint: bool = False,
        clip: float = 0.0,
    ):
        self.model = resolve(model, prediction)
        self.schedule, self.stored = self.model.schedule, stored
        self.inpaint, self.clip = bool(inpaint), float(clip)
        if self.clip < 0 or (self.clip and stored != "x0"):
            raise ValueError(
                f"clip: {clip} on the stored kind {stored!r}; a bound >= 0 (0 = none) on solvers "
                "that store x0 is accepted"
            )
        full = np.asarray(grid, dtype=np.float64)
        self.start = start_index(full, start)
        self.grid, self.t = full, full[self.start or 0 :]
        self.n = len(self.t) - 1
        self.alpha, self.sigma = self.schedule.alpha(self.t), self.schedule.sigma(self.t)
        if self.n < 1:
            raise ValueError(
                f"grid: {len(full)} times leave {self.n} steps; at least one step is needed"
            )
        levels = zip(self.alpha.tolist(), self.sigma.tolist(), strict=True)
        self._levels = dict(zip(self.t.tolist(), levels, strict=True))
        a, s = self.level(self.t[0])
        if self.start is None:
            first = Row({"x": s * X}, target=(a, s))
        else:
            first = Row({"x": a * X + s * N(INITIAL_NOISE)}, point=(1.0, 0.0), target=(a, s))
        self._rows: list[Row] = [first]

    @property
    def half_log_snr(self) -> np.ndarray:
        """lambda = log(alpha / sigma) at the grid's points [n+1]; -inf where alpha = 0,
        +inf where sigma = 0.
        """
        return self.schedule.half_log_snr(self.t)

    def level(self, t: float) -> tuple[float, float]:
        """(alpha, sigma) at time t."""
        found = self._levels.get(float(t))
        return found or (float(self.schedule.alpha(t)), float(self.schedule.sigma(t)))

    def row(
        self,
        t: float,
        *,
        to: float | tuple[float, float],
        x: Lin,
        keep: dict[str, Lin] | None = None,
        anchor: Lin | None = None,
        call: int = 0,
    ) -> None:
        """One evaluation of the model at time `t`, where x stands; `x` is the next state, standing
        at `to` (a time, or (alpha, sigma)).
        """
        a, s = self.level(t)
        p, q = to_kind(self.stored, self.model.prediction, a, s, self.model.sigma_data)
        out = {"x": x, **(keep or {})} | ({"anchor": anchor} if anchor is not None else {})
        asked = np.array([t])
        time, scale = float(self.model.times(asked)[0]), float(self.model.scales(asked)[0])
        row = Row(out, call, (a, s), time, scale, float(p), float(q), self.clip)
        row.preview, row.target = _preview(self.stored, a, s), self._point(to)
        self._rows.append(row)

    def pre(self, *, to: float | tuple[float, float], x: Lin) -> None:
        """A change of the state without a call (churn, restart), multiplied into the row before
        it.
        """
        last = self._rows[-1]
        last.out["x"] = x.put("x", last.out["x"])
        last.target = self._point(to)

    def _point(self, to: float | tuple[float, float]) -> tuple[float, float]:
        return to if isinstance(to, tuple) else self.level(to)

    def build(
        self, solver: str, *, arguments: dict | None = None, consistent: bool = True, **note: object
    ) -> Plan:
        """Compile. The note records the solver, its arguments, the schedule, the grid and
        `note`.
        """
        rows = self._rows if self.inpaint else eliminate_anchor(self._rows)
        arrays = pack(rows, allocate(rows), self.inpaint)
        plan = Plan(**arrays, note=self._note(solver, arguments, consistent, note))
        defect = plan.consistency()
        accepted = max(CONSISTENT, ROUNDING * float(np.abs(plan.M).sum(2).max()))
        if consistent and not defect <= accepted:
            raise PlanError(
                f"{solver}: rows leave the schedule by {defect:.1e} with exact predictions; "
                f"{accepted:.0e} is accepted"
            )
        return plan

    def _note(self, solver: str, arguments: dict | None, consistent: bool, note: dict) -> dict:
        out = {
            "solver": solver,
            "arguments": dict(arguments or {}),
            "stored": self.stored,
            "prediction": self.model.prediction,
            "schedule": self.schedule.to_json(),
            "grid": self.grid.tolist(),
            "times": self.t.tolist(),
            "start": self.start,
            "model": self.model.to_json(),
            "inpaint": self.inpaint,
            "clip": self.clip,
            "consistent": consistent,
            "guidance": None,
        }
        return out | note


def resolve(model: object, prediction: str | None) -> Model:
    """A Model from a Model, or from a bare noise schedule and the kind of its prediction."""
    if isinstance(model, Model):
        if prediction is not None and prediction != model.prediction:
            raise ValueError(
                f"prediction: {prediction!r} given beside a Model that predicts "
                f"{model.prediction!r}; leave prediction out"
            )
        return model
    if prediction is None:
        raise ValueError(
            "prediction: none given with a schedule; pass prediction= (x0, eps, v, flow, edm or "
            "trigflow), or an fs.Model"
        )
    return Model(None, schedule=model, prediction=prediction)


def start_index(grid: np.ndarray, start: int | float | None) -> int | None:
    """Index into the grid of an image-to-image start: an integer, or a strength in (0, 1]: the
    share of the steps that is run.
    """
    if start is None:
        return None
    steps = len(grid) - 1
    if isinstance(start, (float, np.floating)) and 0.0 < start <= 1.0:
        strength = float(str(start))  # float32(0.7) is meant as 0.7, not as 0.69999999
        return steps - max(1, int(steps * strength))
    if isinstance(start, (int, np.integer)) and not isinstance(start, bool) and 0 <= start < steps:
        return int(start)
    raise ValueError(
        f"start: {start!r} for a grid of {steps} steps; an index 0..{steps - 1} or a float "
        "strength in (0.0, 1.0] is accepted"
    )


def eliminate_anchor(rows: list[Row]) -> list[Row]:
    """Write R("anchor") as a combination of the state, kept values and noises wherever it is read,
    and keep it in no slot.

    After a row, old x = (x' - rest) / a with a the coefficient of x in x'; substituting gives the
    anchor over what is still there. Exact algebra, possible while a is not 0. The rows of a plan
    with masks edit x, which breaks it: they keep the anchor in a slot instead.
    """
    at: Lin | None = None  # the anchor, over "x", ("r", name) and ("n", id)
    done = []
    for i, row in enumerate(rows):
        if at is None and any(ANCHOR in v for v in row.out.values()):
            raise PlanError(
                f"row {i} comes back to an anchor that is gone; make the plan with inpaint=True to "
                "keep it in a slot"
            )
        out = {k: _trim(v.put(ANCHOR, at) if ANCHOR in v else v) for k, v in row.out.items()}
        new = out.pop("anchor", at)
        if new is not None:
            at = _after(new, out, i)
        done.append(replace(row, out=out))
    return done


def _after(value: Lin, out: dict[str, Lin], i: int) -> Lin | None:
    """`value`, over the operands a row reads, written over what stands after the row; None where
    that is impossible.
    """
    step, c = out["x"], value.get("x", 0.0)
    if c:
        a = step.get("x", 0.0)
        if not a:
            return None
        rest = Lin({k: v for k, v in step.items() if k != "x"})
        value = (value - c * X).put("x", ZERO) + (c / a) * X - (c / a) * rest
    else:
        value = Lin(value)
    value = _trim(value)
    if "m" in value:  # only a kept m has a name after the row
        name = next((k for k, v in out.items() if k != "x" and v == M), None)
        if name is None:
            name = f"m of row {i}"
            out[name] = Lin(M)
        value = value.put("m", R(name))
    return value


def _trim(value: Lin) -> Lin:
    """Drop terms that cancelled: what is left of them is rounding."""
    big = max((abs(c) for c in value.values()), default=0.0)
    return Lin({k: c for k, c in value.items() if abs(c) > 1e-13 * big})


def _preview(stored: str, a: float, s: float) -> tuple[float, float]:
    """(dx, dm) with x0 = dx x + dm m."""
    if stored == "x0":
        return 0.0, 1.0
    if stored == "flow":
        return 1.0 / (a + s), -s / (a + s)
    return 1.0 / a, -s / a
