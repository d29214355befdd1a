"""Engine: many requests in one batch, each with its own plan, row, seed, guidance and conditions.

engine = Engine(model, shape=(4, 64, 64), capacity=64)
ticket = engine.submit(plan, seed=7, cond={"y": label}, uncond={"y": none}, guidance=5.0)
engine.run()          # or engine.tick() after tick(), with submit() and cancel() in between
ticket.result()       # [1, 4, 64, 64]
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from threading import RLock

import torch
from torch import Tensor

from ..kernels import transforms
from ..kernels.backend import select
from ..plan import Plan
from . import arguments, conditions, images, inpainting, sources
from .places import Places
from .sampler import Sampler
from .select import ALIKE, chosen
from .stack import Stack
from .tick import Tick
from .ticket import Ticket
from .window import Brownian, Window, parted


class Engine:
    """Requests of one sample each through one model: a tick asks the model once for all of them, a
    row of its batch for each branch of each request, and makes one launch.

    model        callable(x [N,*], t [N], **cond) -> prediction, as for a Sampler; x and t are not
                 to be written to, and hold until it returns. Or a list of them where plans ask
                 several (`solvers.experts`): each is asked once, for the requests whose row asks it
    shape        of a sample, without the batch
    capacity     requests in flight at most; a further one is refused
    pad_to       a model's batch always has this many rows, the last one repeated; a request whose
                 branches find no room is refused. None: as many rows as are asked for
    preview      False: ticket.x0 is not formed
    state_dtype, model_dtype (by default the state's), device, backend    as for Run
    collate      callable(trees) -> tree: what the model is told of requests whose conditions differ
                 in length, by padding and masks. trees: for each row of the model's batch the
                 keywords of its branch, as they were submitted, one sample each, by place, and
                 within a request by branch; under pad_to the last one again. The tree: one dict of
                 keywords for all of these rows. Called only when the rows are no longer the same
                 requests' same branches; None: leaves are joined, and must be alike
    check        "end": noise that is no unit normal is refused, and a request that becomes
                 non-finite ends alone (at once on the CPU), its result() raising; None: neither

    The same to the bit, whoever else is in flight and in whatever order they came, are the noise
    and all that the solver does: a request equals its run alone through Sampler or Run as far as
    the model's rows do. Those of an elementwise model do. A network's depend on the batch size, by
    which its libraries choose their kernels: with pad_to they are the same in any company, and a
    request equals its run alone in an Engine of the same pad_to, though not in a Sampler.

    A plan of another layout grows the memory between ticks. Any thread may submit, tick, cancel and
    read results, one at a time: a submit waits for the tick that runs.
    """

    def __init__(
        self,
        model: Callable | Sequence[Callable],
        shape: Sequence[int],
        capacity: int = 64,
        *,
        pad_to: int | None = None,
        preview: bool = True,
        state_dtype: torch.dtype = torch.float32,
        model_dtype: torch.dtype | None = None,
        device=None,
        backend: str | None = None,
        check: str | None = "end",
        collate: Callable | None = None,
    ) -> None:
        sizes = shape if isinstance(shape, Sequence) else (None,)
        batch = 1 if pad_to is None else pad_to
        numbers = [arguments.integer(n) for n in (capacity, batch, *sizes)]
        if collate is not None and not callable(collate):
            raise TypeError(
                f"Engine: collate is a {type(collate).__name__}; a callable(trees) -> tree is "
                "accepted"
            )
        models = tuple(model) if isinstance(model, (list, tuple)) else (model,)
        right = models and all(map(callable, models))
        if not right or not all(n is not None and n > 0 for n in numbers):
            raise ValueError(
                f"Engine: model {model!r:.60}, shape={shape!r}, capacity={capacity!r}, "
                f"pad_to={pad_to!r}; a callable or a list of them, and whole numbers of 1 or more, "
                "are accepted"
            )
        arguments.dtypes("Engine", state_dtype, model_dtype)
        with arguments.named("Engine"):
            self._judged = arguments.judged(check)
            _, self._device = arguments.place(None, None, (1,), device)
        self.shape, self.capacity, self.pad_to = tuple(numbers[2:]), numbers[0], pad_to
        self._dtypes = state_dtype, model_dtype or state_dtype
        choice = select("step", self._device, state_dtype, backend)
        asked = lambda plan: models[: max(int(plan.call.max()), 0) + 1]
        self._sampler = lru_cache(self.capacity)(lambda plan: Sampler(plan, asked(plan)))
        self._lock = RLock()
        self._seats: list[Ticket | None] = [None] * self.capacity  # running, or done and not read
        self._stack = Stack(state_dtype, self._device)
        size = (self.capacity, *self.shape)
        self._places = Places(size, *self._dtypes, self._device, preview, choice)
        self._tick = Tick(models, self._places, self._stack, pad_to, self._dtypes[1], collate)
        self._collate, self._models = collate, len(models)
        self._like: dict = {}  # what the conditions in flight are like
        self.running: tuple[Ticket, ...] = ()  # the requests in flight, first come first

    def submit(
        self,
        plan: Plan,
        *,
        noise: Tensor | None = None,
        latent: Tensor | None = None,
        seed: int | None = None,
        stage: int | None = None,
        start: int | None = None,
        strength: float | None = None,
        level: float | None = None,
        cond: dict | None = None,
        uncond: dict | None = None,
        branches: Sequence[dict] | None = None,
        guidance=None,
        mask: Tensor | None = None,
        known: Tensor | None = None,
        noise_source: Window | Brownian | None = None,
    ) -> Ticket:
        """Take in a request, a Sampler's call with a batch of one: noise, latent, mask and known
        [1,*], every leaf of a condition that goes with samples one long. Without noise and latent
        the noise is drawn from the seed; noise_source: in the `fastsample.window` that the sample
        is, or along `fastsample.brownian()`. Its first row runs in the next tick. Raises
        ValueError, TypeError or RuntimeError, one sentence, and is then as if not called.
        """
        where, masked = "Engine.submit", mask is not None
        with self._alone(where), arguments.named(where):
            transforms.refuse(where, noise, latent, seed, guidance, mask, known)
            trees = conditions.branches_of(where, cond, uncond, branches, 1, self._device)
            _refuse_plan(where, plan)
            sampler = self._sampler(images.plan_for(where, plan, latent, start, strength, level))
            plan, guidance = sampler._plan_for(len(trees), guidance)
            like, told = self._conditions(where, trees)
            begin = noise, latent, start, seed, noise_source
            first, given, window, seed = self._given(plan, masked, *begin)
            sizes, dtype = (1, *self.shape), self._dtypes[0]
            blend = inpainting.blend(plan, mask, known, sizes, dtype, self._device)
            scale = arguments.scales(plan, guidance, 1, dtype, "cpu")
            sampler._warn(where, self.shape, guidance, stacklevel=3)
            words = seed, sources.stages(stage, plan, first, 1, "cpu"), scale
            self._check_room(where, self.running, plan.G)
            place, rows = self._free(), self._stack.rows(plan, masked)
            batch = self._models * (self.pad_to or 0) or self.capacity * self._stack.table.layout.G
            self._places.fit(self._stack.table, batch, masked)
            before = rows.first + first - 1 if first else None
            self._places.seat(place, given, blend, words, before, window)
            ticket = self._seats[place] = Ticket(self, rows, place, first, told, window)
            self.running, self._like = (*self.running, ticket), like
            return ticket

    def select(self, index, *, seeds=None, tickets: Sequence[Ticket] | None = None) -> list[Ticket]:
        """Of the requests in flight, or of `tickets` among them: go on with those of numbers index
        [n], as `Run.select` has it, and cancel the others; one that is named again goes on as a
        copy, too, from where it stands. The tickets [n] in that order.

        seeds: an int s (s, s+1, ...) or n of them, new ones. Raises ValueError, TypeError or
        RuntimeError, one sentence, and is then as if not called.
        """
        where = "Engine.select"
        with self._alone(where), arguments.named(where):
            transforms.refuse(where, index, seeds)
            tickets = self.running if tickets is None else tuple(tickets)
            if len({*tickets}) < len(tickets) or not {*tickets} <= {*self.running}:
                raise ValueError(
                    f"{where}: of {len(tickets)} tickets one is not in flight, or given twice; "
                    "requests that run, each once, are accepted"
                )
            going = [tickets[k] for k in chosen(where, index, len(tickets)).tolist()]
            seeds = _new_seeds(going, seeds)
            others = [ticket for ticket in self.running if ticket not in tickets]
            self._check_room(where, [*others, *going])
            for ticket in {*tickets} - {*going}:
                ticket.cancel()
            for k, seed in enumerate(seeds):
                if going[k] in going[:k]:
                    place = self._free()
                    going[k] = self._seats[place] = going[k]._copied(place)
                if seed is not None:
                    self._places.host["seed"][going[k]._place] = seed
            self.running = (*others, *going)
            return going

    def tick(self) -> list[Ticket]:
        """The next row of every request in flight: the model is asked once, with a time for each
        row of its batch, for those whose row asks it. Returns the requests that ended.

        A model that raises, or returns what does not fit, leaves every request where it was.
        """
        with self._alone("Engine.tick"), torch.no_grad():
            if not self.running:
                return []
            self._tick.launch(self.running, self._like)
            ended = self._tick.advance(self._judged)
            if ended:
                self.running = tuple(ticket for ticket in self.running if not ticket.done)
            if not self.running:
                self._like = {}
                self._tick.forget()
            return ended

    def run(self) -> None:
        """Tick until no request is in flight."""
        while self.running:
            self.tick()

    def __reduce__(self) -> tuple:
        raise TypeError(
            "Engine: its requests stay in their process; pickle the plans and the model, and make "
            "an Engine of them there"
        )

    # -- a request comes ---------------------------------------------------------------------------
    def _conditions(self, where: str, trees: dict[str, dict]) -> tuple[dict, list]:
        """What the conditions in flight are like, and the leaves of these, which must be, too; for
        collate, which takes any, the trees.
        """
        if self._collate is not None:
            return {}, [conditions.told(tree) for tree in trees.values()]
        like = self._like if self.running else next(iter(trees.values()))
        elsewhere = "the requests in flight" if self.running else next(iter(trees))
        return like, [
            conditions.leaves_like(where, elsewhere, like, *branch) for branch in trees.items()
        ]

    def _given(
        self, plan: Plan, masked: bool, noise, latent, start, seed, source
    ) -> tuple[int, Tensor | None, Window | Brownian | None, Tensor]:
        """The first row, what the request starts from (None: noise of its seed), the window that it
        is, and its seed [1].
        """
        one, image = (1, *self.shape), plan.sigma[0] == 0
        drawn = one if noise is None and latent is None else None
        begin = noise, latent, drawn, self._device
        given, size, _ = arguments.start(*begin, image, look=self._judged)
        if size != one:
            raise ValueError(
                f"Engine.submit: {list(size)} was given; one sample, {list(one)}, is accepted"
            )
        first = arguments.entry(plan, latent is not None, start, noise is not None, masked)
        again = noise is not None and (plan.ids == 0).any()
        if again and 0 in arguments.drawn_from(plan, first, masked):
            raise ValueError(
                "Engine.submit: noise= is given and the plan draws its first noise again (for a "
                "mask or an image); seed= is accepted"
            )
        window, other = parted(source, one, plan)
        if other is not None:
            raise TypeError(
                f"Engine.submit: noise_source is a {type(other).__name__}; a fastsample.window or "
                "fastsample.brownian() is accepted, and draws of one's own by a Run"
            )
        drawn = given is None or sources.seeded(plan, first, noise, None, False, masked)
        samples = None if window is None else window.samples
        return first, given, window, sources.seeds(seed, 1, "cpu", drawn, samples)

    def _check_room(self, where: str, tickets: Sequence[Ticket], branches: int = 0) -> None:
        """Refuse more than these requests, and a further one of so many branches, can be."""
        rows, more = sum(ticket.plan.G for ticket in tickets), branches > 0
        if len(tickets) + more > self.capacity or rows + branches > (self.pad_to or math.inf):
            raise RuntimeError(
                f"{where}: {branches} branch(es) beside {len(tickets)} requests in flight with "
                f"{rows}; capacity={self.capacity} requests with pad_to={self.pad_to} branches are "
                "accepted, a further one after one is done or cancelled"
            )

    def _free(self) -> int:
        """A place for a request: a free one, or of one done and never read."""
        if None not in self._seats:
            next(ticket for ticket in self._seats if ticket.done)._leave()
        return self._seats.index(None)

    @contextmanager
    def _alone(self, where: str) -> Iterator[None]:
        """One thread at a time, and never the model that a tick asks."""
        with self._lock:
            if self._tick.asking:
                raise RuntimeError(f"{where}: called by the model; between ticks is accepted")
            yield


def _new_seeds(tickets: Sequence[Ticket], seeds: object) -> list[int | None]:
    """The new seed of each, None where it keeps its own; with a warning where copies draw alike."""
    left = [ticket._left_to_draw() for ticket in tickets]
    if seeds is None:
        copied = [ids for k, ids in enumerate(left) if tickets[k] in tickets[:k]]
        if any(copied):
            arguments.warn(ALIKE.format("Engine.select"))
        return [None] * len(tickets)
    if any(0 in ids for ids in left):
        raise ValueError(
            "Engine.select: seeds are given and a plan draws its first noise again (for a mask or "
            "an image); without seeds= is accepted"
        )
    return sources.seeds(seeds, len(tickets), "cpu", needed=True).tolist()


def _refuse_plan(where: str, plan: object) -> None:
    """Refuse what is no plan of one tensor."""
    if isinstance(plan, Mapping):
        raise TypeError(
            f"{where}: plan is a dict of tracks, and one call of an Engine's model packs one "
            "tensor of each request; a Plan, or fs.Sampler(plans, model), is accepted"
        )
    if not isinstance(plan, Plan):
        raise TypeError(f"{where}: plan is a {type(plan).__name__}; a Plan is needed")
