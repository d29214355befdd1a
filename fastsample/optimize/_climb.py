"""The rungs of `optimize.search`: each makes its plans once, keeps them, and is judged on noise
that no plan was made with.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import ROUND_CEILING, Context
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import metrics
from ..plan import Plan
from ..plan.given import real
from ..runtime.drive import bar
from ..trajectories import Denoiser
from . import _newton, _paths, _teacher
from ._checkpoint import Checkpoint
from ._given import cut
from ._probe import other, probe
from ._search import Rung, figure
from ._setting import Setting
from .fit import fit_with
from .model_free import model_free

SHOWN = 8  # of the held-out noises, whose end points are kept to be looked at
FEWEST = 32  # noises that a polish needs
SCREENED = 540  # plans by hand of one budget, at most


class TimeUp(Exception):
    """The limit is reached, or would be by the next part."""


@dataclass
class Climb:
    """What a search has, and how far it has come.

    setting: of all noises; held_out [B2,*] and `words` of its samples; options: of the fit;
    newton: of the polish; searched: noises that the fit sees. limit: seconds, from `begin`.
    """

    setting: Setting
    kept: Checkpoint
    held_out: Tensor
    budgets: Sequence[int]
    rows: str
    options: _paths.Options
    newton: _newton.Options
    solver: str
    searched: int
    limit: float
    begin: float = field(default_factory=time.perf_counter)
    pace: float = 0.0  # seconds of an evaluation of one sample, measured
    over: bool = False  # nothing more is made: a polish that was cut stands as it is

    # -- what every rung needs -----------------------------------------------------------------
    def part(self, name: str, make: Callable[[], tuple[int, dict, dict]]) -> dict[str, Any]:
        """A part's findings, kept; make() -> (evaluations of all samples, JSON, arrays)."""

        def timed() -> tuple[dict, dict]:
            began = time.perf_counter()
            rows, said, arrays = make()
            return {**said, "rows": rows, "seconds": time.perf_counter() - began}, arrays

        return self.kept.part(name, timed)

    def room(self, rows: float) -> None:
        """Raises TimeUp where so many evaluations would go beyond the limit."""
        if self.after(rows) > self.limit:
            raise TimeUp

    def after(self, rows: float) -> float:
        """Seconds of the climb once so many evaluations are done, as the first process counts."""
        passed = self.setting.words["ranks"].told(lambda: time.perf_counter() - self.begin)
        return passed + rows * self.pace

    def words(self, index: Tensor | slice, **more: Any) -> dict[str, Any]:
        """What `metrics.run` is told of some of the samples."""
        it = self.setting
        state = torch.promote_types(it.dtype, torch.float32)
        own = {"ranks": it.words["ranks"], "state_dtype": state}
        return {**cut(it.words, index), **own, **more}

    def weight(self, index: np.ndarray | slice) -> np.ndarray | None:
        """The elements' weights of some of the samples, in their shape."""
        all_of_them = self.setting.weight
        if all_of_them is None:
            return None
        return all_of_them[index].reshape(-1, *self.setting.z.shape[1:])

    @property
    def unseen(self) -> Tensor:
        """Which sample's words each held-out noise has."""
        return torch.arange(len(self.held_out), device="cpu") % len(self.setting.z)

    # -- the teacher ---------------------------------------------------------------------------
    def look(self) -> None:
        """The model is asked whether it answers at all, and how fast; every time anew."""
        it = self.setting
        grid, ask = it.teacher.grid, it.words["ranks"].told
        pace, rows, said = ask(lambda: probe("search", it.model, it.z, grid, it.words))
        self.pace = pace / it.words["ranks"].size
        if "look" in self.kept.done:
            other("search", self.kept.arrays["look"].get("answers", said), said)
        else:
            self.kept.keep("look", {"rows": rows, "seconds": 0.0}, {"answers": said})
        nfe, B2 = it.teacher.plan.nfe, len(self.held_out)
        needed = 3 * nfe * min(_teacher.JUDGED, len(it.z)) + nfe * B2
        try:
            self.room(0 if "held out" in self.kept.done else needed)
        except TimeUp:
            raise ValueError(
                f"search: an evaluation of one sample takes {self.pace:.3g} s, and the teacher "
                f"with the {B2} noises held out needs {needed} of them; a time_limit above "
                f"{upward(self.after(needed))} s, a smaller teacher= or fewer held_out= is accepted"
            ) from None

    def teacher(self) -> None:
        """The teacher settled, and its end points of the held-out noises."""
        it = self.setting

        def settled() -> tuple[int, dict, dict]:
            grid, words = it.teacher.grid[::-1].copy(), it.words
            rows = 3 * it.teacher.plan.nfe * min(_teacher.JUDGED, len(it.z))
            shows = bar("search", it.shown, rows, unit=" evaluations", desc="teacher")
            with torch.no_grad(), shows as b:
                asked = {"dtype": it.dtype, "asked": b and b.update}
                ask = Denoiser(it.model, grid, it.z, **asked, **words)
                found = _teacher.settle("search", it.teacher, ask, it.z, words, it.weight)
            said = {"plan": found.plan.to_json(), "agreement": found.agreement}
            return ask.rows, said, {}

        said = self.part("teacher", settled)
        plan, agreement = Plan.from_json(said["plan"]), said["agreement"]
        it.teacher = replace(it.teacher, make=None, plan=plan, agreement=agreement)
        self.part("held out", lambda: self._ends(self.held_out, self.words(self.unseen)))
        self.target = self.kept.arrays["held out"]["ends"]

    def _ends(self, z: Tensor, words: Mapping[str, Any]) -> tuple[int, dict, dict]:
        """The teacher's end points of some noises."""
        it, plan = self.setting, self.setting.teacher.plan
        shows = it.shown, plan.nfe * len(z)
        with bar("search", *shows, unit=" evaluations", desc="end points") as b:
            end = metrics.run(plan, it.model, z, asked=b and b.update, **words)
        return plan.nfe * len(z), {}, {"ends": end.cpu().numpy()}

    # -- the rungs -----------------------------------------------------------------------------
    def by_hand(self) -> None:
        """The best that the usual solvers make of the usual grids, chosen on the noises it is
        judged on, which favours it.
        """
        it = self.setting

        def best(m: int, b: Any) -> tuple[int, dict, dict]:
            given = self.words(self.unseen, weight=self.weight(self.unseen.numpy()), solver=None)
            given |= {"asked": b and b.update}
            target = torch.from_numpy(self.target)
            plan = metrics.best_hand_made(it.model, self.held_out, m, target, **given)
            return plan.note["found"]["evaluations"], {"plan": plan.to_json()}, {}

        rows = {m: m * (SCREENED * 4 + 5 * len(self.held_out)) for m in self.budgets}
        left = {m: n for m, n in rows.items() if f"by hand {m}" not in self.kept.done}
        words = {"unit": " evaluations", "desc": "by hand"}
        with bar("search", it.shown, sum(left.values()), **words) as b:
            for m, n in left.items():
                self.room(n)
                self.part(f"by hand {m}", lambda m=m: best(m, b))

    def model_free(self) -> None:
        """Times that need no model."""

        def made() -> tuple[int, dict, dict]:
            plans = {m: model_free(self.setting.model, m, self.solver) for m in self.budgets}
            return 0, {"plans": {str(m): plan.to_json() for m, plan in plans.items()}}, {}

        self.part("model-free", made)

    def fit(self) -> None:
        """Times and rows together, on the first noises."""
        few, own = slice(self.searched), self.setting
        words = {**cut(own.words, few), "ranks": own.words["ranks"]}
        weight = None if own.weight is None else own.weight[few]
        seen = {"z": own.z[few], "words": words, "weight": weight, "held_out": None, "where": "fit"}
        teacher = replace(own.teacher, nfe=0.0)

        def made() -> tuple[int, dict, dict]:
            self.room(len(seen["z"]) * (own.teacher.plan.nfe + self.options.evaluations(own.N)))
            search = fit_with(replace(own, teacher=teacher, **seen), self.rows, self.options)
            said = {"plans": {str(m): plan.to_json() for m, plan in search.plans.items()}}
            said["indices"] = {str(m): at.tolist() for m, at in search.indices.items()}
            return round(search.nfe * search.samples), said | {"bytes": search.bytes}, {}

        self.part("fit", made)

    def polish(self) -> None:
        """Every number of the fitted plans, on the noises that the fit has not seen."""
        rest = slice(self.searched, None)
        z = self.setting.z[rest]
        if self.rows != "free" or len(z) < FEWEST or "fit" not in self.kept.done:
            return
        words = self.words(rest)
        if "to polish" not in self.kept.done:
            self.room(self.setting.teacher.plan.nfe * len(z))
        self.part("to polish", lambda: self._ends(z, words))
        target = torch.from_numpy(self.kept.arrays["to polish"]["ends"]).to(z.device).flatten(1)
        for m in self.budgets:
            self._polished(m, z, target, words)
            self.judged()

    def _polished(self, m: int, z: Tensor, target: Tensor, words: Mapping[str, Any]) -> None:
        """Go on with the polish of one budget, kept after every step."""
        it, name = self.setting, f"polish {m}"
        said = self.kept.done.get(name)
        if said and said["done"]:
            return
        state = said and _newton.State.of(self.kept.arrays[name])
        begin = Plan.from_json(self.kept.done["fit"]["plans"][str(m)])
        spent = time.perf_counter() - (said["seconds"] if said else 0.0)
        rest = slice(self.searched, None)
        weight = None if it.weight is None else it.weight[rest]
        own = {"wide": words["state_dtype"], "weight": weight}
        shows = it.shown, self.newton.iterations
        if state is None:
            self.room(2 * self.newton.held * m)
        with bar("search", *shows, unit=" steps", desc=name) as b:
            polisher = _newton.Polisher(
                it.model, begin, z, target, words, self.newton, state=state, **own
            )
            if state is None:
                self._kept(name, polisher, spent)
            while not polisher.done:
                self.room(polisher.evaluations)
                polisher.advance()
                self._kept(name, polisher, spent)
                if b is not None:
                    b.update()

    def _kept(self, name: str, polisher: _newton.Polisher, begin: float) -> None:
        found = {"plan": polisher.plan.to_json(), "note": polisher.note()}
        found |= {"rows": polisher.state.rows, "done": polisher.done}
        found["seconds"] = time.perf_counter() - begin
        self.kept.keep(name, found, polisher.state.arrays())

    # -- judged --------------------------------------------------------------------------------
    def standing(self) -> dict[str, dict[int, Plan]]:
        """{rung: {M: plan}} of all that is finished, the rungs from the lowest."""
        done, rungs = self.kept.done, {}
        by_hand = {m: done.get(f"by hand {m}") for m in self.budgets}
        polished = {m: done.get(f"polish {m}") for m in self.budgets}
        polished = {m: one for m, one in polished.items() if one and (one["done"] or self.over)}
        for name, each in (("by hand", by_hand), ("polish", polished)):
            rungs[name] = {m: Plan.from_json(one["plan"]) for m, one in each.items() if one}
        for name in ("model-free", "fit"):
            plans = done.get(name, {"plans": {}})["plans"]
            rungs[name] = {int(m): Plan.from_json(text) for m, text in plans.items()}
        order = ("by hand", "model-free", "fit", "polish")
        return {name: rungs[name] for name in order if rungs[name]}

    def judged(self, ask: bool = True) -> tuple[Rung, ...]:
        """Every rung on the held-out noises; a plan is run once, whatever is resumed. ask: False
        leaves out what has not been run.
        """
        rungs = (self._judged(name, plans, ask) for name, plans in self.standing().items())
        return tuple(rung for rung in rungs if rung.plans)

    def _judged(self, name: str, plans: Mapping[int, Plan], ask: bool) -> Rung:
        for m, plan in plans.items():
            # A polish that goes on has another plan.
            part = f"judged {name} {m}"
            if self.kept.done.get(part, {}).get("plan") != plan.to_json():
                self.kept.done.pop(part, None)
            if ask:
                self.part(part, lambda plan=plan: self._figures(plan))
        plans = {m: plan for m, plan in plans.items() if f"judged {name} {m}" in self.kept.done}
        each = {m: self.kept.done[f"judged {name} {m}"] for m in plans}
        shown = {m: self.kept.arrays[f"judged {name} {m}"].get("ends") for m in plans}
        own = [v for k, v in self.kept.done.items() if k == name or k.startswith(f"{name} ")]
        return Rung(
            name,
            dict(plans),
            {m: tuple(map(float, one["psnr"])) for m, one in each.items()},
            {m: float(one["pooled"]) for m, one in each.items()},
            sum(part["rows"] for part in own) / len(self.setting.z),
            sum(part["seconds"] for part in own),
            {m: ends for m, ends in shown.items() if ends is not None},
        )

    def _figures(self, plan: Plan) -> tuple[int, dict, dict]:
        rows, said = plan.nfe * len(self.held_out), {"plan": plan.to_json()}
        given = self.words(self.unseen, weight=self.weight(self.unseen.numpy()))
        try:
            score = metrics.score(plan, self.setting.model, self.held_out, self.target, **given)
        except FloatingPointError:
            lost = {"psnr": ["-inf"] * 4, "pooled": "-inf", "error": "inf"}
            return rows, said | lost, {}
        said["psnr"] = [figure(v) for v in (score.mean, *score.quartiles)]
        error = metrics.mse(score.end, self.target, given["weight"])
        said |= {"pooled": figure(score.psnr), "error": figure(error)}
        return rows, said, {"ends": score.end[:SHOWN].float().cpu().numpy()}

    @property
    def spent(self) -> tuple[float, float]:
        """(evaluations per sample, seconds) of all that was done."""
        parts = self.kept.done.values()
        rows, seconds = (sum(part[k] for part in parts) for k in ("rows", "seconds"))
        return rows / len(self.setting.z), seconds


def upward(seconds: float) -> str:
    """The next number that is whole from 10 on, of two digits below: none that is less."""
    if seconds >= 10:
        return str(math.ceil(seconds))
    return f"{Context(prec=2, rounding=ROUND_CEILING).create_decimal_from_float(seconds):f}"


def limit_of(time_limit: Any) -> float:
    """Seconds; inf for None."""
    if time_limit is None:
        return math.inf
    seconds = math.inf if time_limit == math.inf else real(time_limit)
    if not seconds or seconds < 0:
        raise ValueError(
            f"search: time_limit={time_limit!r:.60}; seconds above 0, or None, is accepted"
        )
    return seconds
