"""Runs: from what set_timesteps was asked for to a Loop, for one source and its settings, or for
one plan.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import partial

import numpy as np

from ...plan import Plan
from ...runtime.spares import Spares
from . import config as diffusers_config
from .calls import check_set_timesteps
from .grids import Points
from .loop import Loop
from .manners import manner
from .peer import made, peer_points, words
from .plan import check_length, from_point, is_whole
from .sources import find

KEPT = 16  # loops, and compiled plans, that a scheduler and its copies remember


class Runs:
    """source: the diffusers class, with its settings; or given: the plan that is the schedule. A
    scheduler's copies share one.
    """

    def __init__(self, source: type | None, settings: dict, given: Plan | None):
        self.source, self.settings, self.given = source, settings, given
        self._compiled, self._loops, self._spares, self._peer = {}, {}, Spares(), None

    def kept(self, asked: tuple) -> Loop | None:
        """The loop that was made for this before; 4 is asked for by 4, not by 4.0 or True."""
        try:
            return self._loops.get((asked, asked[0].__class__))
        except TypeError:  # lists in it, which are refused where a loop is made
            return None

    def made(self, asked: tuple, compat: bool, lenient: bool, **about: object) -> Loop:
        """A loop for others to be taken from (`Loop.fresh`), on the source's own grid with compat;
        where that cannot be and lenient says so, an exact one, with a warning.

        asked: steps, timesteps, sigmas, mu, original_inference_steps, and pairs (name, value) of
        what else the source takes; about: what a Loop is told besides.
        """
        check_set_timesteps(self.source, dict(asked[-1]), exact=False)
        try:
            loop = self._loop(asked, compat, about)
        except ValueError as error:
            if not compat:
                raise
            # what no mode can do has a sentence of its own
            loop, why = self._loop(asked, False, about), words(error)
            if not lenient:
                raise
            warnings.warn(f"{why}; this run is exact instead, as with compat=None", stacklevel=4)
            return loop  # not kept: it is said every time
        _keep(self._loops, (asked, asked[0].__class__), loop)
        return loop

    def __getstate__(self) -> dict:
        return {"source": self.source, "settings": self.settings, "given": self.given}

    def __setstate__(self, state: dict) -> None:
        self.__init__(state["source"], state["settings"], state["given"])

    # -- inside ------------------------------------------------------------------------------------
    def _loop(self, asked: tuple, compat: bool, about: dict) -> Loop:
        if self.source is not None:
            about = about | {"manner": manner(self.source.__name__, self.settings, compat)}
        if self.given is not None:
            check_length(self.given, *asked[:3])
            points = Points(None, None, whole=is_whole(self.given))
        elif compat:
            self._peer = self._peer or made(self.source, self.settings)
            points = peer_points(self._peer, self.settings, *asked)
            about = about | {"result": find(self.source.__name__).result}
            if points.legs is not None:
                about = about | {"apart": partial(self._apart, asked, points, about)}
        else:
            check_set_timesteps(self.source, dict(asked[-1]), exact=True)
            points = diffusers_config.layout(self.source.__name__, self.settings, *asked[:-1])
        compile = partial(self._compile, asked, points, compat)
        return Loop(compile(0, 0.0), compile, points.whole, self._spares, compat=compat, **about)

    def _apart(self, asked: tuple, points: Points, about: dict, timestep: float) -> Loop | None:
        """The loop of the one step from a timestep of the table that is none of these points, where
        the source goes by timesteps alone.
        """
        legs = points.legs
        if timestep not in range(len(legs)):
            return None
        key = asked, timestep
        loop = self._loops.get(key)
        if loop is None:
            one = replace(points, grid=legs[int(timestep)], labels=np.array([timestep]))
            compile = partial(self._compile, key, one, True)
            plan = compile(0, 0.0)
            loop = Loop(plan, compile, points.whole, self._spares, compat=True, **about)
            _keep(self._loops, key, loop)
        return loop

    def _compile(self, asked: tuple, points: Points, compat: bool, first: int, eta: float) -> Plan:
        """The plan from grid point `first` on, remembered."""
        key = (asked, compat, first, eta)
        plan = self._compiled.get(key)
        if plan is None:
            if self.given is not None:
                plan = from_point(self.given, first)
            else:
                plan = diffusers_config.plan(
                    self.source.__name__, self.settings, points, first=first, eta=eta, compat=compat
                )
            _keep(self._compiled, key, plan)
        return plan


def _keep(kept: dict, key: tuple, value: object) -> None:
    if len(kept) >= KEPT:
        kept.clear()
    kept[key] = value
