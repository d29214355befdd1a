"""What a plan was made for and found with, as its rows and its note say, beside the model and the
call it is used with.

A plan of another schedule, shift or prediction gives wrong samples, and is refused; one that was
found on other samples, with another guidance or for another model may be worse than its note says,
which is said once. A model is anything with the words and methods of `fastsample.model.Model`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .text import printable

if TYPE_CHECKING:
    from .plan import Plan

ALIKE = 1e-3  # relative: a table that was float32 is the same table
LEARNED = {"rows", "changed"}  # what the notes of rows that are no solver's formula say


# -- the model it was made for ---------------------------------------------------------------------
def agree(where: str, plan: Plan, models: Iterable[Any]) -> None:
    """Refuse a model (None: one without words) that the plan was not made for: a ValueError, one
    sentence, in the name of `where`. Call k of the plan asks model k.
    """
    for call, model in enumerate(models):
        unlike = None if model is None else difference(plan, model, call)
        if unlike is not None:
            word, theirs, ours = unlike
            raise ValueError(
                f"{where}: the plan was made for {word} = {theirs!r:.80} and the model's is "
                f"{ours!r:.80}; make it for this model"
            )


def difference(plan: Plan, model: Any, call: int = 0) -> tuple[str, Any, Any] | None:
    """(word, the plan's, the model's) of the first word by which the rows that ask model `call`
    were made for another one, or None. Compared, to 1e-3, are

        prediction                 the note's word: near the data all predictions are alike
        alpha, sigma of the rows   the schedule's at the same log(alpha/sigma)
                                   the schedule's at the note's times, where the note names another
                                   schedule: a shift that moves the grid alone is seen there
        p, q of rows that read m   of what the model predicts, with its sigma_data
        t, c before the rows       what the model is told, and what x is multiplied by

    but nothing that `Plan.with_numbers` replaced. A schedule of somebody's own that cannot answer
    is not compared.
    """
    rows, note = np.flatnonzero(plan.call == call), said(plan, call)
    try:
        for word in _unlike(plan, model, rows, note) if len(rows) else ():
            ours = model.schedule.to_json() if word == "schedule" else getattr(model, word)
            return word, note.get(word, "another"), ours
    except (AttributeError, TypeError):
        pass
    return None


def said(plan: Plan, call: int = 0) -> dict:
    """The plan's note, with what it says of model `call` beside the rest."""
    told = plan.note.get("models") or [plan.note.get("model")]
    own = told[call] if isinstance(told, list) and call < len(told) else None
    return {**plan.note, **(own if isinstance(own, dict) else {})}


def _unlike(plan: Plan, model: Any, rows: np.ndarray, note: dict) -> Iterator[str]:
    """Names of the model's words that these rows contradict."""
    if note.get("prediction") not in (None, model.prediction):
        yield "prediction"
    changed, mine = {*(note.get("changed") or ())}, model.schedule
    alpha, sigma = plan.alpha[rows], plan.sigma[rows]
    with np.errstate(divide="ignore"):
        level = np.log(alpha) - np.log(sigma)
    top = getattr(mine, "t_top", mine.t_max)
    t = np.clip(mine.time(np.maximum(level, mine.half_log_snr(top))), mine.t_zero, top)
    if not changed & {"alpha", "sigma"}:
        off = _apart(mine.alpha(t), alpha) or _apart(mine.sigma(t), sigma)
        if off or (note.get("schedule") != mine.to_json() and not _visits(plan, mine)):
            yield "schedule"
    read = rows[plan.reads[rows] >> plan.layout.m & 1 == 1]
    if not changed & {"p", "q"} and _answers_otherwise(plan, model, read):
        yield "sigma_data" if note.get("prediction") else "prediction"
    if "t" not in changed and _apart(model.times(t), plan.t[rows - 1, 0]):
        yield "time"
    ours, theirs = getattr(model, "told", ()), note.get("time")
    if (len(ours) > 1 or isinstance(theirs, list)) and theirs != model.to_json()["time"]:
        yield "time"
    if "c" not in changed and _apart(model.scales(t), plan.c[rows - 1]):
        yield "input_scale"


def _apart(a: np.ndarray, b: np.ndarray) -> bool:
    size = np.abs(b)
    return not (np.abs(a - b) <= ALIKE * (size + size.max())).all()


def _answers_otherwise(plan: Plan, model: Any, rows: np.ndarray) -> bool:
    """Are p and q of these rows not those of what the model predicts?"""
    try:
        p, q = model.answer(plan.stored, plan.alpha[rows], plan.sigma[rows])
    except ValueError:  # there are none, as of eps at alpha = 0
        return True
    off = np.abs(p - plan.p[rows]) + np.abs(q - plan.q[rows])
    return bool((off > ALIKE * (np.abs(p) + np.abs(q))).any())


def _visits(plan: Plan, schedule: Any) -> bool:
    """Does the plan stand at the schedule's level of every one of its note's times, with or without
    what a row draws (a hotter point is churned from one of them)?
    """
    try:
        times = np.ravel(np.asarray(list(plan.note["times"]), np.float64))
    except (KeyError, TypeError, ValueError):  # it names none
        return True
    try:
        ours = schedule.half_log_snr(times)
    except ValueError:  # beyond the schedule's end
        return False
    drawn = plan.M[:-1, 0, plan.layout.noise(0) :]
    before = np.sqrt(np.maximum(plan.sigma[1:] ** 2 - (drawn**2).sum(1), 0.0))
    with np.errstate(divide="ignore"):
        there = [np.log(plan.alpha[1:]) - np.log(s) for s in (plan.sigma[1:], before)]
    return bool(np.isclose(ours[:, None], np.append(*there), 0.0, 2 * ALIKE).any(1).all())


# -- what it was found with ------------------------------------------------------------------------
def found(plan: Plan) -> dict:
    """What a search wrote into the note; empty where none did."""
    return words_of(plan, "found")


def words_of(plan: Plan, key: str) -> dict:
    """The words of the note under this key; empty where it has none: a file may say anything."""
    value = plan.note.get(key)
    return value if isinstance(value, dict) else {}


def guidance(plan: Plan) -> float | None:
    """The guidance scale that the plan was found with, where its rows take one."""
    scale = found(plan).get("guidance")
    takes_one = plan.G == 1 or plan.K == 1
    return float(scale) if takes_one and _is_number(scale) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def elsewhere(plan: Plan, shape: Sequence[int], scales: Any, models: Sequence[Any]) -> str | None:
    """In words, by what a run on samples of this shape, with these guidance scales (None: none;
    ...: not known) and models (None: one without words), leaves what the plan was found with; None
    where it does not, or the note does not say.
    """
    note, parts = found(plan), []
    if isinstance(note.get("shape"), list) and note["shape"] != list(shape):
        parts.append(f"samples of {note['shape']}, here {list(shape)}")
    theirs = note.get("guidance", ...)
    if scales is not ... and (theirs is None or _is_number(theirs)):
        given = [None] if scales is None else np.unique(scales).tolist()
        same = given == [None] if theirs is None else given != [None] and np.allclose(given, theirs)
        if not same:
            ours = ", ".join(str(scale) for scale in given[:4])
            parts.append(f"guidance {theirs}, here {ours}")
    for call, model in enumerate(models if note else ()):
        theirs = said(plan, call).get("model_id")
        what = None if model is None else other(theirs, model.identity)
        if what is not None:
            parts.append(f"model {printable(theirs):.80}, here {what}")
    return "; ".join(parts) or None


def other(theirs: Any, ours: str) -> str | None:
    """What a model of identity `ours` is to one of identity `theirs`, in words; None where it is
    the same, or one of them is not known.
    """
    if theirs in (None, "unknown", ours) or ours == "unknown":
        return None
    (first, *form), (our_first, *our_form) = (printable(v).split("/") for v in (theirs, ours))
    hashed = first.startswith("sha256:") and our_first.startswith("sha256:")
    if hashed and first == our_first and not form:  # an older note, which has no more
        return None
    if not hashed or not form or form[0] != our_form[0]:
        return f"{printable(ours)}, another one"
    if form == our_form and "sha256:unread" in (first, our_first):
        return None
    if form == our_form:
        return "one of the same parameter names and shapes with other numbers"
    return (
        f"one of the same parameter names and shapes in {our_form[1]} instead of {form[1]}, as "
        "after quantising"
    )


# -- rows that leave the schedule ------------------------------------------------------------------
def on_schedule(where: str, plan: Plan, what: str) -> None:
    """Refuse what only rows that stay on the schedule can do, of found or learned ones that leave
    it (the note: consistent = False, beside `rows` or `changed`): their states are not
    alpha x0 + sigma noise, and they do not take such states to data.
    """
    if plan.note.get("consistent") is False and plan.note.keys() & LEARNED:
        raise ValueError(
            f"{where}: {what} of a plan whose rows leave the schedule (by {plan.consistency():.2g} "
            "with exact predictions); a plan found with rows='consistent', or with a solver's own "
            "rows, is accepted"
        )
