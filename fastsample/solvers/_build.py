"""Builder: what every solver is compiled with, ours and a user's own.

A maker describes each model evaluation by what it does to the state, in symbols, and the Builder
turns that into a Plan::

    def mine(model, grid, *, prediction=None, start=None, inpaint=False, clip=0.0):
        b = Builder(model, grid, prediction=prediction, start=start, inpaint=inpaint, clip=clip)
        for i in range(b.n):
            a = b.sigma[i + 1] / b.sigma[i]
            x = a * X + (b.alpha[i + 1] - a * b.alpha[i]) * M
            b.row(b.t[i], to=b.t[i + 1], x=x)
        return b.build("mine", order=1, citations=[...])

    register("mine", mine)

X is the state where the model is asked, M the prediction in the stored kind, R(name) a value that
an earlier row was told to keep (`keep={"m3": M}`; slots are named, and reused), b.noise(i) the
noise of step i, F() the model's raw output and F(g) that of one branch. `x=` is the next state, at
the point `to`. A row without a call (churn) is `b.pre(...)`: it is multiplied into the row before
it. `anchor=` names the value a later row comes back to (the x a Runge-Kutta step starts from, the
corrected x of UniPC): R("anchor"). It is eliminated: written as a combination of x', slots and
noises, so a row writes x' and one slot. With `inpaint=True` rows edit x, so the anchor keeps a
slot.

Without inpaint a term that is 0, or cancels, is dropped and its operand not read. `reads=` names
operands that are read all the same: those whose coefficients are still to be learned.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .. import caller
from ..plan import Plan, PlanError
from ..plan.consistency import CONSISTENT, accepted
from ..schedules import Schedule
from ._given import falling, resolve, start_index
from ._pack import INITIAL_NOISE, Row, pack

CANCELLED = 4e-15
FLOAT32 = 2.0**29  # its rounding in units of float64's
ROUNDED = 1e-6  # relative: a time this close to the schedule's noise end is that end


class Lin(dict):
    """A linear combination {operand: coefficient}; operands are "x", "m", "f", ("f", g), ("n", id),
    ("r", name).
    """

    __array_ufunc__ = None  # a number of NumPy leaves a product with one to __rmul__ at once

    def plus(self, scale: float, other: Lin) -> Lin:
        """self + scale·other, in one go."""
        out = Lin(self)
        for k, c in other.items():
            out[k] = out.get(k, 0.0) + scale * c
        return out

    def __add__(self, other: Lin) -> Lin:
        return self.plus(1.0, other)

    def __mul__(self, scale: float) -> Lin:
        out, scale = Lin(), float(scale)
        for k, c in self.items():
            out[k] = scale * c
        return out

    __rmul__ = __mul__

    def __sub__(self, other: Lin) -> Lin:
        return self.plus(-1.0, other)

    def __neg__(self) -> Lin:
        return -1.0 * self

    def __truediv__(self, scale: float) -> Lin:
        return self * (1.0 / scale)

    def put(self, name: object, value: Lin) -> Lin:
        """This combination with `value` in place of operand `name`."""
        rest = Lin(self)
        scale = rest.pop(name, None)
        return rest if scale is None else rest.plus(scale, value)


X, M, ZERO = Lin({"x": 1.0}), Lin({"m": 1.0}), Lin()


def R(name: str) -> Lin:
    """A value kept by an earlier row."""
    return Lin({("r", name): 1.0})


def F(branch: int | None = None) -> Lin:
    """The model's raw output: the weighted sum of its branches, or one of them, counted from 0."""
    return Lin({"f" if branch is None else ("f", branch): 1.0})


def N(noise_id: int) -> Lin:
    """The noise with this id: 1, 2, ...; the same id is the same noise again. `Builder.noise` is
    the one of a step.
    """
    return Lin({("n", int(noise_id)): 1.0})


ANCHOR = ("r", "anchor")
LEVELS = "alpha", "sigma", "half_log_snr"


class Builder:
    """Collects rows and compiles them.

    model       a Model, a schedule with prediction=, or a list of them on one schedule: row's
                call= counts them from 0
    grid        [n+1] times of the schedule that never rise, noise to data
    stored      what M is: "x0", "eps", "flow" (eps - x0), "d" ((x/alpha - x0)/(sigma/alpha))
    start, inpaint, clip   as `fastsample.solvers` says
    rising      the grid rises instead, data to noise, and a run begins with the state at its first
                point (`solvers.inverted`)

    `t` [n+1] is the grid from start on, `n` its steps; `alpha`, `sigma` and `half_log_snr` [n+1]
    are the levels there, lambda = ln(alpha/sigma) = -inf where alpha = 0 and inf where sigma = 0.
    """

    def __init__(
        self,
        model: object,
        grid: Sequence[float],
        *,
        prediction: str | None = None,
        stored: str = "x0",
        start: int | None = None,
        inpaint: bool = False,
        clip: float = 0.0,
        rising: bool = False,
    ):
        several = model if isinstance(model, (list, tuple)) else [model]
        if not several:
            raise ValueError("model: an empty list; a Model, a schedule or a list is accepted")
        self.models = [resolve(each, prediction) for each in several]
        self.model = self.models[0]
        self.schedule, self.stored = self.model.schedule, stored
        if any(each.schedule.to_json() != self.schedule.to_json() for each in self.models[1:]):
            raise ValueError("model: several on unlike schedules; models on one are accepted")
        if len({len(each.told) for each in self.models}) > 1:
            raise ValueError("model: some are told one time and some two; one number is accepted")
        self.inpaint, self.clip = bool(inpaint), float(clip)
        if self.clip < 0 or (self.clip and stored != "x0"):
            raise ValueError(
                f"clip: {clip} on the stored kind {stored!r}; a bound >= 0 (0 = none) on solvers "
                "that store x0 is accepted"
            )
        full = falling(self.schedule, grid[::-1] if rising else grid)
        full = full[::-1] if rising else full
        self.start = start_index(len(full) - 1, start)
        self.grid, self.t = full, full[self.start or 0 :]
        self.n = len(self.t) - 1
        if self.n < 1:
            raise ValueError(
                f"grid: {len(full)} times leave {self.n} steps; at least one step is needed"
            )
        self._levels: dict[float, tuple[tuple[float, float], float]] = {}
        self.alpha, self.sigma, self.half_log_snr = self.visit(self.t)
        a, s = self.level(self.t[0])
        if rising:
            first = Row({"x": X}, (a, s), point=(1.0, 0.0))
        elif self.start is None:
            first = Row({"x": s * X}, (a, s))
        else:
            first = Row({"x": a * X + s * N(INITIAL_NOISE)}, (a, s), point=(1.0, 0.0))
        self._rows: list[Row] = [first]

    def noise(self, i: int, draw: int = 0, of: int = 1) -> Lin:
        """The noise of step i, counted from 0, with the step's place in the whole grid, from 1, for
        its id: a plan made with start= draws what the whole plan draws there. A solver that draws
        several times a step says which draw it is, from 0, `of` how many.
        """
        return N(((self.start or 0) + i) * of + draw + 1)

    def visit(self, times: np.ndarray | float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """alpha, sigma and half_log_snr at times [n]: at all of them at once, which takes little
        longer than at one.
        """
        if isinstance(self.schedule, Schedule):
            found = self.schedule.levels_at(times, "alpha")
        else:
            found = tuple(getattr(self.schedule, name)(times) for name in LEVELS)
        known = (np.ravel(values).tolist() for values in (times, *found))
        for t, alpha, sigma, half_log_snr in zip(*known, strict=True):
            self._levels[t] = (alpha, sigma), half_log_snr
        return found

    def level(self, t: float) -> tuple[float, float]:
        """(alpha, sigma) at time t."""
        if (found := self._levels.get(t)) is None:
            found = self._at(t)
        return found[0]

    def rise(self, t: float, to: float) -> float:
        """half_log_snr at time to less that at t; 0 for a step of length 0."""
        return self._at(to)[1] - self._at(t)[1] if t != to else 0.0

    def _at(self, t: float) -> tuple[tuple[float, float], float]:
        if (found := self._levels.get(t)) is None:
            self.visit(float(t))
            found = self._levels[t]
        return found

    def row(
        self,
        t: float,
        *,
        to: float | tuple[float, float],
        x: Lin,
        keep: dict[str, Lin] | None = None,
        anchor: Lin | None = None,
        call: int = 0,
        scalars: Sequence[float] = (),
        U: Sequence[float] = (1.0,),
        V: Sequence[Sequence[float]] = (),
        reads: Lin = ZERO,
        spares: Sequence[str] = (),
    ) -> None:
        """One evaluation of the model at time `t`, where x stands; `x` is the next state, standing
        at `to` (a time, or (alpha, sigma)).

        call        number of the model asked
        scalars     what it is told beside its time or two, as it is: as many in every row
        U, V        weights of its branches in f, w_g = U[g] + sum_k scale_k V[g][k] with the
                    scales of a run: U [G], V [G][K] or nothing; all G branches are read
        reads       operands read whatever their coefficients: a sum of them, R("m0") + N(3)
        spares      kept values whose slots no row writes to before this one has run
        """
        if not 0 <= call < len(self.models):
            raise ValueError(f"row: call = {call}; 0 to {len(self.models) - 1} is accepted")
        if not len(U) or len(V) not in (0, len(U)):
            raise ValueError(
                f"row: U weighs {len(U)} branches and V {len(V)}; one or more, and as many in V or "
                "none, are accepted"
            )
        before = len(self._rows[-1].scalars)
        if len(scalars) != before and len(self._rows) > 1:
            raise ValueError(
                f"row: {len(scalars)} scalars beside the time, where the row before has {before}; "
                "as many in every row are accepted"
            )
        out = {"x": x, **keep} if keep else {"x": x}
        if anchor is not None:
            out["anchor"] = anchor
        told = tuple(map(float, scalars))
        row = Row(out, self._point(to), self.level(t), call, t, to, told, U, V, reads, spares)
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
        """Compile. The note records the solver, its arguments, the schedule, the grid and `note`;
        remake calls the solver of that name with those arguments. PlanError where rows leave the
        schedule though every prediction is exact, unless they are meant to: consistent=False; a
        warning where that is what they make of rounding.
        """
        if not self.inpaint:
            eliminate_anchor(self._rows)
        arrays = pack(self._rows, self.models, self.stored, self.clip, self.inpaint)
        plan = Plan(**arrays, note=self._note(solver, arguments, consistent, note))
        if consistent and (defect := plan.consistency()) > CONSISTENT:
            if not defect <= (most := accepted(plan)):
                raise PlanError(
                    f"{solver}: rows leave the schedule by {defect:.1e} with exact predictions; "
                    f"{most:.0e} is accepted"
                )
            caller.warn(
                f"{solver}: rows enlarge rounding on this grid, in float64 to {defect:.0e} of the "
                f"state and in float32 to about {defect * FLOAT32:.0e}; another first level or "
                "other options may keep it small"
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
        if len(self.models) > 1:
            out["models"] = [model.to_json() for model in self.models]
        end = float(getattr(self.schedule, "t_finite", self.schedule.t_max))
        if self.grid[-1] < self.grid[0] < end * (1.0 - ROUNDED):
            out["noise_end"] = end  # a state at the first point is what another run left there
        return out | note


def eliminate_anchor(rows: list[Row]) -> None:
    """Write R("anchor") as a combination of the state, kept values and noises wherever it is read,
    and keep it in no slot.

    After a row, old x = (x' - rest) / a with a the coefficient of x in x'; substituting gives the
    anchor over what is still there. Exact algebra, possible while a is not 0. The rows of a plan
    with masks edit x, which breaks it: they keep the anchor in a slot instead.
    """
    at: Lin | None = None  # the anchor, over "x", ("r", name) and ("n", id)
    for i, row in enumerate(rows):
        for name, value in row.out.items():
            if ANCHOR in value:
                if at is None:
                    raise PlanError(
                        f"row {i} comes back to an anchor that is gone; make the plan with "
                        "inpaint=True to keep it in a slot"
                    )
                row.out[name] = _trim(value.put(ANCHOR, at))
            elif 0.0 in value.values():
                row.out[name] = Lin({k: c for k, c in value.items() if c})
        new = row.out.pop("anchor", at)
        if new is not None:
            at = _after(new, row.out, i)


def _after(value: Lin, out: dict[str, Lin], i: int) -> Lin | None:
    """`value`, over the operands a row reads, written over what stands after the row; None where
    that is impossible.
    """
    if (found := _off_both(value, out)) is not None:
        return _trim(found)
    value, step = Lin(value), out["x"]
    c = value.pop("x", 0.0)
    if c:
        a = step.get("x", 0.0)
        if not a:
            return None
        for k, v in step.items():
            value[k] = c / a if k == "x" else value.get(k, 0.0) - c / a * v
    value = _trim(value)
    if any(k[0] == "f" for k in value):  # the next row's output has that name
        return None
    if "m" in value:  # only a kept m has a name after the row
        name = next((k for k, v in out.items() if k != "x" and v == M), None)
        if name is None:
            name = f"m of row {i}"
            out[name] = Lin(M)
        value = value.put("m", R(name))
    return value


def _off_both(value: Lin, out: dict[str, Lin]) -> Lin | None:
    """The same where the row keeps a sum of its x and m (eps, on plans that store x0): both are
    read off x' and off that sum. None where it keeps none.
    """
    kept = next((k for k, v in out.items() if k != "x" and v.keys() == {"x", "m"}), None)
    if kept is None or not value.keys() & {"x", "m"}:
        return None
    (c, d), rest = (out[kept][k] for k in "xm"), Lin(out["x"])
    a, b = rest.pop("x", 0.0), rest.pop("m", 0.0)
    if not (whole := a * d - b * c):
        return None
    x = (d / whole) * (X - rest) - (b / whole) * R(kept)
    m = (a / whole) * R(kept) - (c / whole) * (X - rest)
    others = Lin({k: v for k, v in value.items() if k not in ("x", "m")})
    return others + value.get("x", 0.0) * x + value.get("m", 0.0) * m


def _trim(value: Lin) -> Lin:
    """Drop terms that cancelled: what is left of them is rounding, 5e-16 of the largest at most on
    the tests' grids; a step of length 1e-4 has terms of 1e-13.
    """
    sizes = [*map(abs, value.values())]
    if not sizes or min(sizes) > (least := CANCELLED * max(sizes)):
        return value
    return Lin({k: c for k, c in value.items() if abs(c) > least})
