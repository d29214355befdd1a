"""Held: calls of the model that leave the state where it is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..model import Model
from ..plan import Plan
from ..plan.given import integer
from ..plan.row import FIELDS
from ..schedules import from_json
from ._pack import shown


def held(plan: Plan, *, before: int = 0, after: int = 0) -> Plan:
    """The plan with rows that ask the model and hold (x' = x): `before` of them where it is first
    asked, `after` of them at the end, where it is told the time of the end.

    For a track that begins later or ends earlier than those beside it (`runtime.tracks`):

        action waits while video runs, which then stays     {"video": held(video, after=10),
                                                              "action": held(action, before=3)}

    What the model answers in these rows is not read. `remake` keeps them. ValueError, one sentence,
    for counts below 0, a plan that says nothing of its model, or an end of which the model's time
    is not finite.
    """
    counts = [integer(before), integer(after)]
    if any(n is None or n < 0 for n in counts):
        raise ValueError(
            f"held: before = {before!r:.40}, after = {after!r:.40}; whole numbers from 0 up are "
            "accepted"
        )
    asking = np.flatnonzero(plan.call >= 0)
    if not {"schedule", "prediction", "grid", "model"} <= plan.note.keys() or not len(asking):
        raise ValueError(
            "held: the plan's note does not name its schedule, prediction, grid and model; a "
            "solver's plan is accepted"
        )
    note, first, end = plan.note, int(asking[0]), plan.rows - 1
    order = [*range(first), *[first] * counts[0], *range(first, end), *[end] * counts[1], end]
    arrays = {field.name: getattr(plan, field.name)[order] for field in FIELDS}
    words = {k: note["model"].get(k) for k in ("time", "input_scale", "sigma_data")}
    model = Model(None, from_json(note["schedule"]), note["prediction"], **words)
    if counts[0]:
        early = slice(first, first + counts[0])
        _still(arrays, early)
        # a row keeps what the next one's model is told
        for name in ("t", "c"):
            arrays[name][early] = getattr(plan, name)[first - 1]
        if len(model.told) > 1:
            with np.errstate(divide="ignore"):
                level = np.log(plan.alpha[first]) - np.log(plan.sigma[first])
            begin = model.schedule.time(level)
            told = slice(early.start - 1, early.stop - 1)
            arrays["t"][told, :2] = model.scalars([begin], [begin])
    if counts[1]:
        late = slice(end + counts[0], len(order) - 1)
        _still(arrays, late)
        _at_the_end(arrays, plan, late, model)
    earlier = note.get("held", [0, 0])
    counts = [n + m for n, m in zip(counts, earlier, strict=True)]
    return replace(plan, **arrays, note={**note, "held": counts} if any(counts) else note)


def _still(arrays: dict[str, np.ndarray], rows: slice) -> None:
    """Make these rows hold: nothing but x is read, and nothing is written beside it."""
    arrays["M"][rows], arrays["reads"][rows] = 0.0, 1
    arrays["M"][rows, 0, 0] = 1.0
    arrays["dst"][rows], arrays["ids"][rows] = -1, -1
    arrays["known"][rows], arrays["known_reads"][rows] = 0.0, 0


def _at_the_end(arrays: dict[str, np.ndarray], plan: Plan, rows: slice, model: Model) -> None:
    """What a model is told and asked in rows that stand at the end of the plan."""
    end, asked = np.array([plan.note["grid"][-1]]), np.flatnonzero(plan.call >= 0)[-1]
    # the row before the first of them says it too, and the last row of all, which is not asked
    told, scalars = slice(rows.start - 1, rows.stop + 1), model.scalars(end, end)
    arrays["t"][told, : scalars.shape[1]], arrays["c"][told] = scalars, model.scales(end)
    alpha, sigma = plan.alpha[-1], plan.sigma[-1]
    if sigma:
        arrays["p"][rows], arrays["q"][rows] = model.answer(plan.stored, alpha, sigma)
        arrays["preview"][rows] = shown(plan.stored, alpha, sigma)
    for name in ("call", "U", "V", "branches"):
        arrays[name][rows] = getattr(plan, name)[asked]
