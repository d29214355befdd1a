"""The arguments that every search takes, checked before a model is asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..plan import Plan
from ..plan.given import integer, plain
from ..runtime import arguments
from ..runtime.conditions import take

Made = TypeVar("Made", bound=Callable[..., Any])
STATES = (torch.float32, torch.float64, torch.bfloat16)


@dataclass(frozen=True)
class Given:
    """The arguments that every search takes beside its own.

    teacher      the grid searched, and the plan that says where to arrive: None: 40 steps of
                 `grids.fine`; N: that many; or a grid in the schedule's t. The plan is dpmpp_3m on
                 that grid, whose every interval is cut in 1, 2, 4, ... parts (`grids.refined`), up
                 to 320 steps, until its end points agree to 60 dB PSNR with those at twice its
                 evaluations; below 45 dB at the end a warning says so. A deterministic Plan stays
                 the teacher as it is, and its times are searched unless grid= says which
    grid         the grid searched, apart from a Plan that teaches: N or times, as `teacher` takes
                 them, from the Plan's first time to its last. Where the Plan does not stand at all
                 of them, its own solver teaches on its grid cut in 2, 4 or 8 parts, the first that
                 does. None: what teacher says
    all_budgets  True: plans of 1..budget evaluations; False: of exactly budget
    cond, uncond, guidance   model words, trees that follow their samples as
                 `fastsample.runtime.conditions` says; guidance needs uncond. Plans have one branch,
                 and their notes the guidance: the Sampler adds it
    weight       what each element counts, in every cost and every dB, as `metrics.element_weights`
                 takes it: numbers or a mask that stretches to [B,*], scaled to a mean of 1 in each
                 sample; padding has 0
    seed         of the noise where z is a shape; None: a fresh one, kept in the note
    held_out     unit noise [B2,*] the search never saw: each plan is compared on it with the
                 schedules made by hand, every grid of `metrics.hand_made` with every deterministic
                 solver. Noise b has the words and weights of sample b mod B. None: nothing is spent
    batch_size   rows of one model call, per branch
    state_dtype  what states and targets are kept in: float32, float64 or, in half the memory,
                 bfloat16, rounded once from the float32 that all is computed in (default: float64
                 for float64 noise, else float32). The teacher and the comparison run in float32
    state_device where they are kept; "cpu" for a model on a device whose memory is short: all but
                 the model is computed there (default: the noise's)
    model_dtype  what the model is asked in and answers in (default: the noise's); for a network in
                 bfloat16, or under autocast, torch.bfloat16
    max_bytes    most that states and targets may take; a search that needs more is refused before
                 the model is asked (default: whatever it takes, as `search.bytes` says)
    progress     True: a tqdm bar of evaluations; or a class that is used as tqdm's is, such as
                 tqdm.notebook.tqdm: made with total=, unit= and desc= for every part of a search,
                 entered, told update(n), set_postfix_str(text) and its total where that changes
    group        processes that model calls are dealt to, a torch.distributed group (default: the
                 default one, where there is one, as under torchrun); beside one that carries no
                 tensors of the host, as NCCL's, one of gloo is made. All run the same search on the
                 same noise; calls of `batch_size` rows are dealt, so a bit never depends on how
                 many they are. What fails in one fails in all; a seed that is not given is the
                 first one's, which alone warns
    """

    teacher: None | int | Sequence[float] | Plan = None
    grid: None | int | Sequence[float] = None
    all_budgets: bool = True
    cond: Mapping | None = None
    uncond: Mapping | None = None
    guidance: float | None = None
    weight: Any = None
    seed: int | None = None
    held_out: Tensor | None = None
    batch_size: int = 256
    state_dtype: torch.dtype | None = None
    state_device: torch.device | str | None = None
    model_dtype: torch.dtype | None = None
    max_bytes: int | None = None
    progress: bool | Callable = False
    group: Any = None

    @classmethod
    def of(cls, where: str, given: Mapping[str, Any]) -> Given:
        """Raises TypeError or ValueError, one sentence, for a name or a value it does not know."""
        names = [one.name for one in fields(cls)]
        strange = [name for name in given if name not in names]
        if strange:
            listed = ", ".join(names)
            raise TypeError(
                f"{where}: there is no argument {strange[0]!r}; its own and {listed} are accepted"
            )
        it = cls(**given)
        whole(where, batch_size=it.batch_size)
        if it.max_bytes is not None:
            whole(where, max_bytes=it.max_bytes)
        for name, accepted in (("state_dtype", STATES), ("model_dtype", arguments.MODELS)):
            value, (*most, last) = getattr(it, name), (str(dtype)[6:] for dtype in accepted)
            if value not in (None, *accepted):
                listed = f"torch.{', '.join(most)} or {last}"
                raise ValueError(f"{where}: {name}={value!r}; {listed} is accepted")
        if (it.uncond is None) != (it.guidance is None):
            why = "one of guidance and uncond is given; pass both, or neither"
            raise ValueError(f"{where}: {why}")
        return it


def call(where: str, z: Any, own: Mapping[str, Any], given: Given) -> str:
    """The call that makes a search again: every word that says itself, `...` for what is data. z: a
    shape, or anything else for noise that was given.
    """
    noise = "z" if isinstance(z, Tensor) else str([*z])
    said, silent = {}, ("progress", "max_bytes", "group", "state_device")
    for one in fields(given):
        value = getattr(given, one.name)
        if one.name not in silent and value is not None and value is not one.default:
            said[one.name] = value
    words = [f"{name}={_said(value)}" for name, value in {**own, **said}.items()]
    return f"fastsample.optimize.{where}(model, {', '.join([noise, *words])})"


def _said(value: Any) -> str:
    short = isinstance(value, (str, int, float, torch.dtype, type(None)))
    listed = isinstance(value, (list, tuple)) and all(isinstance(v, (int, float)) for v in value)
    return repr(value) if short or listed else "..."


def cut(words: Mapping[str, Any], index: slice | Tensor) -> dict[str, Any]:
    """The words of some of the samples, that this process asks alone."""
    given = {k: take(v, index) if k in ("cond", "uncond") else v for k, v in words.items()}
    given.pop("ranks", None)
    return given


def numbered(search: Made) -> Made:
    """The search, told every number of NumPy or torch as Python's own."""

    @wraps(search)
    def told(*args: Any, **words: Any) -> Any:
        return search(*map(plain, args), **{name: plain(value) for name, value in words.items()})

    return told


def whole(where: str, **counts: Any) -> None:
    """Refuse what is no whole number of at least 1."""
    for name, value in counts.items():
        if (integer(value) or 0) < 1:
            raise ValueError(f"{where}: {name}={value!r}; an integer of at least 1 is needed")


def one_of(where: str, value: Any, name: str, accepted: Iterable[str]) -> None:
    """Refuse a word that is not among those accepted."""
    if value not in list(accepted):
        listed = " or ".join(map(repr, accepted))
        raise ValueError(f"{where}: {name}={value!r}; {listed} is accepted")
