"""What a caller gives by track: dicts of the tracks' names, or one value for all of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..kernels import transforms
from ..plan import Plan
from ..plan.given import integer

if TYPE_CHECKING:
    from typing_extensions import Self

# what every track has of its own, and no two can share
APART = ("noise", "latent", "shape", "noise_source", "mask", "known", "out")
STAGES = 1 << 24  # of a track


class Several:
    """A class whose name stands for its own objects with a plan, and for those of
    `fastsample.runtime.tracks` with a dict of plans.
    """

    def __new__(cls, plan: object = None, *given: object, **words: object) -> Self:
        if not isinstance(plan, Mapping):
            return object.__new__(cls)
        from . import tracks  # which stands on both

        return tracks.KINDS[cls.__name__](plan, *given, **words)


def by_track(where: str, plans: Mapping, words: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The words of each track, of dicts by track and of values that all share; a stage that they
    share is each one's own. ValueError or TypeError, one sentence.
    """
    own: dict[str, dict] = {name: {} for name in plans}
    for word, value in words.items():
        shared = not isinstance(value, Mapping)
        if (shared and word in APART and value is not None) or (
            not shared and not value.keys() <= own.keys()
        ):
            raise ValueError(f"{where}: {word} is {found(value)}; {wanted(own)}")
        for name, its in own.items():
            its[word] = value if shared else value.get(name)
            if isinstance(its[word], Tensor) and its[word].requires_grad:
                raise RuntimeError(
                    f"{where}: {word} of track {name!r} requires grad, and tracks keep none; a "
                    "detached one is accepted"
                )
    stage = words.get("stage")
    if not isinstance(stage, Mapping):
        first = None if stage is None else integer(stage)
        if stage is not None and (first is None or not 0 <= first < STAGES):
            raise ValueError(
                f"{where}: stage is {stage!r:.60} for tracks; a whole number from 0 to 2^24 - 1, "
                "beyond which are the next track's, or a dict by track, is accepted"
            )
        for k, its in enumerate(own.values()):
            its["stage"], its["track"] = first, k  # which `tracks.begun` makes one of
    return own


def outside(where: str, *given: object) -> None:
    """RuntimeError, one sentence, under a transform."""
    name = transforms.active(*given)
    if name is not None:
        raise RuntimeError(
            f"{where}: called under {name}, which cannot see the steps of tracks; a call outside "
            "it is accepted"
        )


def check_plans(where: str, plans: Mapping) -> None:
    """Refuse what is no dict of one or more plans by name."""
    wrong = [k for k, v in plans.items() if not (isinstance(k, str) and isinstance(v, Plan))]
    if wrong or not plans:
        kind = f"{wrong[0]!r:.40}: a {type(plans[wrong[0]]).__name__}" if wrong else "nothing"
        raise TypeError(
            f"{where}: plan is a dict of {kind}; a fastsample.Plan, or a dict of one by the name "
            "of each track, is accepted"
        )


def one_call(where: str, calls: dict[str, list[int]]) -> None:
    """Refuse tracks that cannot be asked together: with other numbers of calls, or other models."""
    counts = {name: len(each) for name, each in calls.items()}
    if len({*counts.values()}) > 1:
        most, least = max(counts, key=counts.get), min(counts, key=counts.get)
        lacks = counts[most] - counts[least]
        raise ValueError(
            f"{where}: track {most!r} asks the model {counts[most]} times and {least!r} "
            f"{counts[least]}; as many are accepted, and fs.solvers.held(plan, after={lacks}), or "
            f"before={lacks}, adds calls that leave the state of {least!r}"
        )
    first, *others = calls
    for name in others:
        if calls[name] != calls[first]:
            raise ValueError(
                f"{where}: track {first!r} asks the models {calls[first]} and {name!r} "
                f"{calls[name]}; the same one in every call is accepted"
            )


def alike(where: str, what: str, values: dict[str, int]) -> None:
    if len({*values.values()}) > 1:
        said = ", ".join(f"{name!r} {what} {value}" for name, value in values.items())
        raise ValueError(f"{where}: {said}; one number for all tracks is accepted")


@contextmanager
def track(where: str, name: str) -> Iterator[None]:
    """What is refused inside says of which track it is."""
    try:
        yield
    except (ValueError, TypeError, RuntimeError) as error:
        said = f"{where}: track {name!r}: {error}"
        try:
            named = type(error)(said)
        except TypeError:  # of a class that is made otherwise
            raise error from None
        raise named from error


def found(value: object) -> str:
    if isinstance(value, Mapping):
        return f"a dict of {', '.join(map(repr, value)) or 'nothing'}"
    return f"a {type(value).__name__}"


def wanted(tracks: Mapping) -> str:
    return f"a dict of the tracks {', '.join(map(repr, tracks))} is accepted"
