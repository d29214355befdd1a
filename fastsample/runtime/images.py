"""Runs that begin with an image at a share of the steps, or at a noise level: the plans for them
are made again from the plan's own note.
"""

from __future__ import annotations

from threading import Lock
from typing import Any

from ..plan import Plan
from ..plan.given import real

KEPT = 8  # of a sampler, for the next call


def plan_for(where: str, plan: Plan, latent, start, strength, level) -> Plan:
    """The plan, or where strength= or level= is given the one made from it that begins with the
    image in latent= there.
    """
    if strength is None and level is None:
        return plan
    if latent is None:
        word, value = ("level", level) if strength is None else ("strength", strength)
        raise ValueError(f"{where}: {word}={value!r:.60} without an image; latent= is needed")
    return plan.remake(start, strength=strength, level=level)


class Images:
    """The samplers that were made of one, by strength and level; the last KEPT."""

    def __init__(self) -> None:
        self._made: dict[tuple, Any] = {}
        self._lock = Lock()

    def of(self, sampler: Any, latent, start, strength, level) -> Any:
        """The sampler for the plan that begins with an image there, made once."""
        key = real(strength), real(level), sampler._capture
        found = self._made.get(key) if start is None and latent is not None else None
        if found is None:
            plan = plan_for("Sampler", sampler.plan, latent, start, strength, level)
            found = sampler.for_plan(plan)
            with self._lock:
                if len(self._made) >= KEPT:
                    self._made.clear()
                self._made[key] = found
        return found

    def clear(self) -> None:
        """Let go of them, and with them of their idle runs."""
        with self._lock:
            self._made.clear()
