"""Requests of several tracks (`fastsample.runtime.tracks`) to an Engine whose shape is a dict:

    engine = Engine(model, {"video": (3, 8, 32, 32), "audio": (64,)})
    ticket = engine.submit({"video": plan_v, "audio": plan_a}, seed=7)
    engine.run()
    ticket.result()["video"]                                  # [1, 3, 8, 32, 32]

The model is told dicts by track and answers with one; a tick makes one upload and one launch a
track. Words of submit are, as for a Sampler of tracks, dicts by track (all tensors) or one value
for all; conditions are common. The bits are those of fs.Sampler(plans, model), as far as the
model's rows are. Every row of a request must ask alike in all tracks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from ..model import Model
from ..plan import Plan
from . import images, sources
from .arguments import integer
from .by_track import STAGES, by_track, check_plans, found, one_call, track, wanted
from .request import Request, Requests

# words of submit, in the order of `Requests.made`
BEGIN = "noise", "latent", "start", "seed", "stage", "noise_source"
OTHERS = "guidance", "strength", "level", "mask", "known"


class TrackRequests:
    """Makes requests of several tracks. makers: of one of them, by name; the others are what the
    Engine was given, of which some is refused with tracks.
    """

    def __init__(
        self,
        makers: Mapping[str, Requests],
        models: Sequence[Callable],
        density: bool,
    ) -> None:
        if density:
            raise ValueError(
                "Engine: density=True with shapes by track; an Engine without it is accepted, or "
                "one of one tensor a request"
            )
        if any(isinstance(model, Model) for model in models):
            raise ValueError(
                "Engine: model is an fs.Model, whose words are those of one tensor; the callable "
                "of all tracks is accepted, whose plans know their schedules"
            )
        self._makers = makers

    def made(
        self, plans: object, begin: Sequence, told: Sequence, image: Sequence, blend: Sequence
    ) -> Request:
        """The first track's request, with the others'; raises as `Requests.made` does."""
        where = "Engine.submit"
        if not isinstance(plans, Mapping) or plans.keys() != self._makers.keys():
            raise TypeError(f"{where}: plan is {found(plans)}; {wanted(self._makers)}")
        check_plans(where, plans)
        *conds, guidance = told
        words = (*begin, guidance, *image, *blend)
        own = by_track(where, plans, dict(zip(BEGIN + OTHERS, words, strict=True)))
        made = {}
        for name, maker in self._makers.items():
            with track(where, name):
                plan, its = _begun(plans[name], own[name])
                start, rest = [its[word] for word in BEGIN], [its[word] for word in OTHERS]
                told = *conds, rest[0]
                made[name] = maker.made(plan, start, told, (None, None), rest[3:])
        _check_alike(where, made)
        first, *others = made.values()
        return replace(first, others=tuple(others))


def _begun(plan: Plan, its: dict) -> tuple[Plan, dict]:
    """A track's plan, of strength and level too, and its words, the stage its own."""
    begin = [its[word] for word in ("latent", "start", "strength", "level")]
    plan = images.plan_for("Engine.submit", plan, *begin)
    stage, k = its["stage"], its.get("track", 0)
    if k and stage is None:
        stage = sources.default_stage(plan, integer(its["start"]) or 0)
    return plan, its | {"stage": stage if stage is None else stage + k * STAGES}


def _check_alike(where: str, made: Mapping[str, Request]) -> None:
    """Refuse tracks of which some row asks otherwise than that of another."""
    calls = {k: [call for call, _ in _asks(request) if call >= 0] for k, request in made.items()}
    one_call(where, calls)
    (name, first), *others = ((k, (request.first, _asks(request))) for k, request in made.items())
    for other, its in others:
        if its != first:
            raise ValueError(
                f"{where}: track {name!r} enters at row {first[0]} with rows that ask (model, "
                f"branches) {first[1]!s:.200}, and {other!r} at row {its[0]} with {its[1]!s:.200}; "
                "tracks of which every row asks alike are accepted, and any by "
                "fs.Sampler(plans, model)"
            )


def _asks(request: Request) -> list[tuple[int, tuple[bool, ...]]]:
    """Of each row left the model that it asks, -1: none, and the branches that it needs."""
    plan, rows = request.plan, request.plan.program.rows[request.first : request.plan.rows - 1]
    needed = lambda row: tuple(row.branches_needed(plan.layout)) if row.call >= 0 else ()
    return [(row.call, needed(row)) for row in rows]
