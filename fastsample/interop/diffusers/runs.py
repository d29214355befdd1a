"""Runs: from what set_timesteps was asked for to a Loop, for one source and its settings, or for
one plan.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor

from ... import caller
from ...plan import Plan
from ...schedules import DiscreteVP
from . import config as diffusers_config
from .calls import check_set_timesteps, check_together
from .consistency import NAME as CM
from .grids import Points
from .loop import Loop
from .manners import PLAIN, manner
from .peer import made, set_peer, twin, words
from .plan import check_length, from_point, is_whole
from .sources import find
from .step_options import Told

KEPT = 16  # loops, and compiled plans, that schedulers of one config remember
SHARED = 32  # configs of which they do
_shared: dict[tuple, Runs] = {}
_lock = threading.Lock()


def runs_of(
    source: type | None, settings: dict, given: Plan | None, shift: float | None = None
) -> Runs:
    """The one Runs of a config: what one scheduler compiled, others of an equal config need not."""
    key = source, given, shift, *((name, _frozen(settings[name])) for name in sorted(settings))
    with _lock:
        try:
            found = _shared.pop(key, None)
        except TypeError:  # an argument that cannot be told from others
            return Runs(source, settings, given, shift)
        found = _shared[key] = found or Runs(source, settings, given, shift)
        if len(_shared) > SHARED:
            del _shared[next(iter(_shared))]
        return found


class Runs:
    """source: the diffusers class, with its settings and the shift of its set_shift, if any; or
    given: the plan that is the schedule.
    """

    def __init__(
        self, source: type | None, settings: dict, given: Plan | None, shift: float | None = None
    ):
        self.source, self.settings, self.given, self.shift = source, settings, given, shift
        self._compiled, self._loops, self._peer = {}, {}, None

    def kept(self, asked: tuple, compat: bool) -> Loop | None:
        """The loop that was made for this before; 4 is asked for by 4, not by 4.0 or True."""
        try:
            return self._loops.get((asked, asked[0].__class__, compat))
        except TypeError:  # lists in it, which are refused where a loop is made
            return None

    def made(self, asked: tuple, compat: bool, lenient: bool, **about: object) -> Loop:
        """A loop for others to be taken from (`Loop.fresh`), on the source's own grid with compat;
        where that cannot be and lenient says so, an exact one, with a warning.

        asked: steps, timesteps, sigmas, mu, original_inference_steps, and pairs (name, value) of
        what else the source takes; about: what a Loop is told besides.
        """
        check_set_timesteps(self.source, dict(asked[-1]), exact=False)
        if self.given is None:
            check_together(self.source, self.settings, asked)
        try:
            loop = self._loop(asked, compat, about)
        except ValueError as error:
            if not compat:
                raise
            # what no mode can do has a sentence of its own
            loop, why = self._loop(asked, False, about), words(error)
            if not lenient:
                raise
            caller.warn(f"{why}; this run is exact instead, as with compat=None")
            return loop  # not kept: it is said every time
        _keep(self._loops, (asked, asked[0].__class__, compat), loop)
        return loop

    def __reduce__(self) -> tuple:
        return runs_of, (self.source, self.settings, self.given, self.shift)

    @property
    def peer(self) -> object | None:
        """The class's own scheduler as it is made; None for a plan, or where it cannot be made."""
        try:
            return None if self.source is None else self._made()
        except ValueError:
            return None

    def training(self, compat: bool, **about: object) -> Loop:
        """The loop of the class as it is made, before its set_timesteps: over every training
        timestep.
        """
        key, peer = ("training", compat), twin(self._made())
        loop = self._loops.get(key)
        if loop is None:
            said = getattr(peer, "sigmas", None)
            if said is not None and len(said) == len(peer.timesteps):
                end = said[-1:] if self.source.__name__ == CM else torch.zeros(1)
                peer.sigmas = torch.cat([said, end])
            loop = self._standing(peer, key, compat, about, said, standing=True)
            loop.steps = getattr(peer, "num_inference_steps", None)
            _keep(self._loops, key, loop)
        return loop

    @cached_property
    def table(self) -> DiscreteVP | None:
        """The noise schedule that the class has; ValueError where no plan has it, None for a
        flow.
        """
        return diffusers_config.peer_table(self.source.__name__, self.settings, self._made())

    def leg(self, t: float, to: float) -> Loop:
        """The loop of one first-order step between two timesteps of the table; below 0 lies its
        end. IndexError for others.
        """
        end = -1.0 if self.settings.get("set_alpha_to_one", True) else 0.0
        size = len(self.table.alphas_cumprod)
        if not (0.0 <= t < size and to <= t):
            raise IndexError(
                f"FsScheduler.step: from timestep {t:g} to {to:g} of {size}; one inside, to a "
                "lower one, is accepted"
            )
        grid, labels = np.array([t, to if to >= 0.0 else end]), np.array([t])
        points = Points(grid, labels, self.table, whole=True)
        about = {"preview": False, "manner": PLAIN, "result": find(self.source.__name__).result}
        return self._through(points, ("leg", t, to), False, about)

    def shifted(self, shift: float) -> Runs:
        """With another flow shift than the config's, as the class's set_shift has it."""
        return runs_of(self.source, self.settings, self.given, shift)

    def __deepcopy__(self, memo: dict) -> Runs:
        """Itself: all that it keeps is looked up by what was asked."""
        return self

    # -- inside ------------------------------------------------------------------------------------
    def _made(self) -> object:
        if self._peer is None:
            self._peer = made(self.source, self.settings)
            if self.shift is not None:
                self._peer.set_shift(self.shift)
        return self._peer

    def _loop(self, asked: tuple, compat: bool, about: dict) -> Loop:
        if self.given is not None:
            check_length(self.given, *asked[:3])
            points = Points(None, None, whole=is_whole(self.given))
        elif compat:
            peer = set_peer(self._made(), self.settings, *asked)
            return self._standing(peer, asked, compat, about)
        else:
            check_set_timesteps(self.source, dict(asked[-1]), exact=True)
            shift = {} if self.shift is None else {"set_shift": self.shift}
            name, words = self.source.__name__, self.settings | shift
            points = diffusers_config.layout(name, words, *asked)
            about = about | {"manner": manner(name, self.settings, compat, len(points.labels))}
        return self._through(points, asked, compat, about)

    def _standing(
        self,
        peer: object,
        asked: tuple,
        compat: bool,
        about: dict,
        sigmas: Tensor | None = None,
        standing: bool = False,
    ) -> Loop:
        """On the levels and timesteps that a scheduler of the class has (standing: see
        `peer_layout`); sigmas: as it says the levels.
        """
        name = self.source.__name__
        points = diffusers_config.peer_layout(name, self.settings, peer, self.table, standing)
        about = about | {"manner": manner(name, self.settings, compat, len(points.labels))}
        about["sigmas"] = getattr(peer, "sigmas", None) if sigmas is None else sigmas
        if compat:
            about = about | {"result": find(name).result}
            if points.legs is not None:
                about = about | {"apart": partial(self._apart, asked, points, about)}
        loop = self._through(points, asked, compat, about)
        loop._kind = torch.float64 if peer.timesteps.dtype == torch.float64 else loop._kind
        return loop

    def _through(self, points: Points, asked: tuple, compat: bool, about: dict) -> Loop:
        compile = partial(self._compile, asked, points, compat)
        name, shown = getattr(self.source, "__name__", None), self.settings
        if name and diffusers_config.is_blind(name, shown, points):
            shown = shown | {"prediction_type": "sample"}
            plan = diffusers_config.plan(name, shown, points, compat=compat)
            about = about | {"manner": replace(about["manner"], blind=True)}
        else:
            plan = compile(0, 0.0)
        return Loop(plan, compile, points.whole, compat=compat, past=points.past, **about)

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
            loop = Loop(plan, compile, points.whole, compat=True, **about)
            _keep(self._loops, key, loop)
        return loop

    def _compile(self, asked: tuple, points: Points, compat: bool, first: int, eta: Told) -> Plan:
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


def _frozen(value: object) -> object:
    """A setting as a part of a key: 1, 1.0 and True are three."""
    if isinstance(value, (list, tuple)):
        return type(value), tuple(_frozen(v) for v in value)
    if isinstance(value, (np.ndarray, Tensor)):
        numbers = np.asarray(value)
        return type(value), numbers.dtype.str, numbers.shape, numbers.tobytes()
    return type(value), value
