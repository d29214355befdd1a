"""Builder: what every solver file compiles its rows with.

A maker describes each model evaluation by what it does to the state, in symbols, and the Builder
turns that into a Plan::

    b = Builder(model_or_schedule, grid, prediction=prediction, stored="x0", start=start,
    inpaint=inpaint)
    for i in range(b.n):
        b.row(b.t[i], to=b.t[i + 1], x=a * X + g * M, keep={f"m{i}": M})   # slots are named; reading R("m3") finds the slot
    return b.build("ddim", order=1, eta=eta, citations=[...])

X is the state where the model is asked, M the prediction in the stored kind, R(name) a kept value,
N(id) a
noise. `x=` is the next state, at the point `to`. A row without a call (churn) is `b.pre(...)`: it
is multiplied into the row before it. `anchor=` names the value a later row comes back to (the x a
Runge-Kutta step starts from, the corrected x of UniPC): R("anchor"). It is eliminated: written as a
combination of x', slots and noises, so a row writes x' and one slot. With `inpaint=True` rows edit
x, so the anchor keeps a slot.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ..model import Model, to_kind
from ..plan import Plan, PlanError

INITIAL_NOISE = 0  # id of the noise a run starts from; makers draw ids from 1
# a defect above this is a wrong formula, not rounding (sound rows show about 1e-15, at N = 1000
# 1e-12) ...
CONSISTENT = 1e-9
# ... unless weights are huge (a Heun step over many decades): rounding grows with the sum of their
# sizes
ROUNDING = 1e-14


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


@dataclass
class _Row:
    out: dict[str, Lin]  # "x" and the names of kept values
    call: int = -1
    point: tuple[float, float] = (0.0, 1.0)  # alpha, sigma where the model is asked
    time: float = 0.0
    scale: float = 1.0
    p: float = 0.0
    q: float = 0.0
    clip: float = 0.0
    preview: tuple[float, float] = (0.0, 0.0)
    target: tuple[float, float] = (1.0, 0.0)  # alpha, sigma of x'
    slots: dict[str, int] = field(default_factory=dict)


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
        self.schedule, self.stored, self.inpaint, self.clip = (
            self.model.schedule,
            stored,
            bool(inpaint),
            float(clip),
        )
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
        self._levels = dict(
            zip(
                self.t.tolist(),
                zip(self.alpha.tolist(), self.sigma.tolist(), strict=True),
                strict=True,
            )
        )
        a, s = self.level(self.t[0])
        if self.start is None:
            first = _Row({"x": s * X}, target=(a, s))
        else:
            first = _Row({"x": a * X + s * N(INITIAL_NOISE)}, point=(1.0, 0.0), target=(a, s))
        self._rows: list[_Row] = [first]

    @property
    def half_log_snr(self) -> np.ndarray:
        """lambda = log(alpha / sigma) at the grid's points [n+1]; -inf where alpha = 0, +inf where
        sigma = 0.
        """
        return self.schedule.half_log_snr(self.t)

    def level(self, t: float) -> tuple[float, float]:
        """(alpha, sigma) at time t."""
        return self._levels.get(float(t)) or (
            float(self.schedule.alpha(t)),
            float(self.schedule.sigma(t)),
        )

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
        self._rows.append(
            _Row(
                out,
                call,
                (a, s),
                float(self.model.times(np.array([t]))[0]),
                float(self.model.scales(np.array([t]))[0]),
                float(p),
                float(q),
                self.clip,
                _preview(self.stored, a, s),
                to if isinstance(to, tuple) else self.level(to),
            )
        )

    def pre(self, *, to: float | tuple[float, float], x: Lin) -> None:
        """A change of the state without a call (churn, restart), multiplied into the row before "
        "it."""
        last = self._rows[-1]
        last.out["x"] = x.put("x", last.out["x"])
        last.target = to if isinstance(to, tuple) else self.level(to)

    def build(
        self, solver: str, *, arguments: dict | None = None, consistent: bool = True, **note: object
    ) -> Plan:
        """Compile. The note records the solver, its arguments, the schedule, the grid and "
        "`note`."""
        rows = self._rows if self.inpaint else eliminate_anchor(self._rows)
        S = allocate(rows)
        plan = Plan(**self._pack(rows, S), note=self._note(solver, arguments, consistent, note))
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

    def _pack(self, rows: list[_Row], S: int) -> dict[str, np.ndarray]:
        n, ids = len(rows) + 1, [sorted(_noises(r, self.inpaint)) for r in rows]
        L = max(map(len, ids))
        W = 4 + S + L
        plan = {
            "M": np.zeros((n, 3, W)),
            "p": np.zeros(n),
            "q": np.zeros(n),
            "clip": np.zeros(n),
            "U": np.ones((n, 1)),
            "V": np.zeros((n, 1, 0)),
            "known": np.zeros((n, 1 + L)),
            "c": np.ones(n),
            "t": np.zeros((n, 1)),
            "preview": np.zeros((n, 2)),
            "alpha": np.zeros(n),
            "sigma": np.zeros(n),
            "reads": np.zeros(n, np.int64),
            "branches": np.zeros(n, np.int64),
            "known_reads": np.zeros(n, np.int64),
            "dst": np.full((n, 2), -1),
            "call": np.full(n, -1),
            "ids": np.full((n, L), -1),
        }
        where, fixed = {}, {"x": 0, "m": 1 + S, "f": 2 + S, ("f", 0): 3 + S}
        for i, r in enumerate(rows):
            plan["ids"][i, : len(ids[i])] = ids[i]
            noise = {k: 4 + S + at for at, k in enumerate(ids[i])}
            for o, (name, value) in enumerate(
                sorted(r.out.items(), key=lambda kept: kept[0] != "x")
            ):
                for operand, number in value.items():
                    column = (
                        fixed[operand]
                        if operand in fixed
                        else noise[operand[1]]
                        if operand[0] == "n"
                        else 1 + where[operand[1]]
                    )
                    plan["M"][i, o, column] += number
                    plan["reads"][i] |= 1 << column
                if o:
                    plan["dst"][i, o - 1] = r.slots[name]
            where |= r.slots
            plan["p"][i], plan["q"][i], plan["clip"][i], plan["preview"][i] = (
                r.p,
                r.q,
                r.clip,
                r.preview,
            )
            plan["call"][i], plan["branches"][i] = r.call, int(r.call >= 0)
            plan["alpha"][i], plan["sigma"][i] = r.point
            after = rows[i + 1] if i + 1 < len(rows) else None
            plan["c"][i], plan["t"][i, 0] = (after.scale, after.time) if after else (1.0, r.time)
            if self.inpaint:
                plan["known"][i, 0], plan["known_reads"][i] = r.target[0], 1
                if r.target[1]:
                    at = ids[i].index(INITIAL_NOISE)
                    plan["known"][i, 1 + at], plan["known_reads"][i] = (
                        r.target[1],
                        3 if at == 0 else 1 | 2 << at,
                    )
        plan["M"][-1, 0, 0], plan["reads"][-1], plan["preview"][-1] = 1.0, 1, (1.0, 0.0)
        (plan["alpha"][-1], plan["sigma"][-1]), plan["t"][-1, 0] = rows[-1].target, rows[-1].time
        return plan


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
        return steps - max(
            1, int(steps * float(str(start)))
        )  # float32(0.7) is meant as 0.7, not as 0.69999999
    if isinstance(start, (int, np.integer)) and not isinstance(start, bool) and 0 <= start < steps:
        return int(start)
    raise ValueError(
        f"start: {start!r} for a grid of {steps} steps; an index 0..{steps - 1} or a float "
        "strength in (0.0, 1.0] is accepted"
    )


def eliminate_anchor(rows: list[_Row]) -> list[_Row]:
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
        done.append(_Row(**{**row.__dict__, "out": out}))
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
        value = (
            (value - c * X).put("x", ZERO)
            + (c / a) * X
            - (c / a) * Lin({k: v for k, v in step.items() if k != "x"})
        )
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


def allocate(rows: list[_Row]) -> int:
    """Give every kept value a slot while it is still to be read, drop those nobody reads; returns
    the number of slots.
    """
    live: set[str] = set()
    after: list[set[str]] = []
    for row in reversed(rows):
        row.out = {k: v for k, v in row.out.items() if k == "x" or k in live}
        after.append(set(live))
        live -= set(row.out)
        live |= {k[1] for v in row.out.values() for k in v if isinstance(k, tuple) and k[0] == "r"}
    if live:
        raise PlanError(f"rows read {sorted(live)} before any row kept it")
    held: dict[str, int] = {}
    free: list[int] = []
    size = 0
    for row, needed in zip(rows, reversed(after), strict=True):
        for name in [k for k in held if k not in needed or k in row.out]:
            free.append(held.pop(name))
        row.slots = {}
        for name in row.out:
            if name != "x":
                free.sort()
                held[name] = row.slots[name] = free.pop(0) if free else size
                size = max(size, held[name] + 1)
        if len(row.slots) > 2:
            raise PlanError(f"a row keeps {sorted(row.slots)}; at most two values can be written")
    return size


def _noises(row: _Row, inpaint: bool) -> set[int]:
    ids = {k[1] for v in row.out.values() for k in v if isinstance(k, tuple) and k[0] == "n"}
    return ids | ({INITIAL_NOISE} if inpaint and row.target[1] else set())


def _preview(stored: str, a: float, s: float) -> tuple[float, float]:
    """(dx, dm) with x0 = dx x + dm m."""
    if stored == "x0":
        return 0.0, 1.0
    if stored == "flow":
        return 1.0 / (a + s), -s / (a + s)
    return 1.0 / a, -s / a
