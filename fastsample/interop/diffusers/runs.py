"""Runs: from what set_timesteps was asked for to a Loop, for one source and its settings, or for
one plan.
"""

from __future__ import annotations

import warnings
from functools import partial

from ...plan import Plan
from . import config as diffusers_config
from .calls import check_set_timesteps
from .grids import Points
from .loop import Loop
from .peer import peer_points, words
from .plan import check_length, from_point, is_whole

KEPT_PLANS = 16  # compiled plans that a scheduler and its copies remember


class Runs:
    """source: the diffusers class, with its settings; or given: the plan that is the schedule. A
    scheduler's copies share one.
    """

    def __init__(self, source: type | None, settings: dict, given: Plan | None):
        self.source, self.settings, self.given, self._compiled = source, settings, given, {}

    def loop(self, asked: tuple, compat: bool, lenient: bool, **about: object) -> Loop:
        """A loop, on the source's own grid with compat; where that cannot be and lenient says so,
        an exact one, with a warning.

        asked: steps, timesteps, sigmas, mu, original_inference_steps, and pairs (name, value) of
        what else the source takes; about: what a Loop is told besides.
        """
        check_set_timesteps(self.source, dict(asked[-1]), exact=False)
        why = None
        if compat:
            try:
                return self._loop(asked, True, about)
            except ValueError as error:
                if not lenient:
                    raise
                why = words(error)
        made = self._loop(asked, False, about)
        if why:
            warnings.warn(f"{why}; this run is exact instead, as with compat=None", stacklevel=4)
        return made

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_compiled": {}}

    # -- inside ------------------------------------------------------------------------------------
    def _loop(self, asked: tuple, compat: bool, about: dict) -> Loop:
        if self.given is not None:
            check_length(self.given, *asked[:3])
            points = Points(None, None, whole=is_whole(self.given))
        elif compat:
            points = peer_points(self.source, self.settings, *asked)
            about = about | {"draws": diffusers_config.draws(self.source.__name__, self.settings)}
        else:
            check_set_timesteps(self.source, dict(asked[-1]), exact=True)
            points = diffusers_config.layout(self.source.__name__, self.settings, *asked[:-1])
        compile = partial(self._compile, asked, points, compat)
        return Loop(compile(0, 0.0), compile, points.whole, compat=compat, **about)

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
            if len(self._compiled) >= KEPT_PLANS:
                self._compiled.clear()
            self._compiled[key] = plan
        return plan
