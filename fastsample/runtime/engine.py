"""Engine: many requests in one batch, each with its own plan, row, seed, guidance and conditions.

The loop is the caller's, or a thread's until the block ends:

    engine = Engine(model, shape=(4, 64, 64), capacity=64)
    ticket = engine.submit(plan, seed=7, cond={"y": label}, uncond={"y": none}, guidance=5.0)
    engine.run()     # or engine.tick() after tick(), with submit() and cancel() in between
    ticket.result()  # [1, 4, 64, 64]

    with Engine(model, shape=(4, 64, 64)).serve() as engine:
        ticket = engine.submit(plan, seed=7, deadline=2.0)  # from any thread; EngineFull says
        x0 = ticket.result()                                # when to come; or: await ticket
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from time import monotonic
from typing import Any

import torch
from torch import Tensor

from .. import caller
from ..kernels import transforms
from ..kernels.backend import select
from ..plan import Plan
from . import arguments, conditions, ladder, said, sources
from .admission import told_how
from .budget import Budget, most_bytes
from .places import Places
from .request import Request, Requests, leaves
from .select import ALIKE, chosen
from .serving import Serving
from .stack import Stack
from .tick import Tick
from .ticket import Ticket
from .track_requests import TrackRequests
from .window import Brownian, Window


class Engine(Serving):
    """Requests of one sample each through one model: a tick asks the model once for all of them, a
    row of its batch for each branch of each request, and makes one launch.

    model        callable(x [N,*], t [N], **cond) -> prediction, as for a Sampler; x and t are not
                 to be written to, and hold until it returns. Or a list of them where plans ask
                 several (`solvers.experts`): each is asked once, for the requests whose row asks it
    shape        of a sample, without the batch; a dict of them by track where plans are dicts
                 (`fastsample.runtime.track_requests`)
    capacity     requests in flight at most
    waiting      further requests that wait at most, None: as many; another is refused (EngineFull)
    policy       "first", "shortest", "grouped", or callable(waiting, running) -> the waiting in the
                 order in which they are to enter; overtakes: how often a request is overtaken at
                 most (`fastsample.runtime.queue` has the rules)
    max_bytes    of memory, of which `fastsample.runtime.budget` says what counts, are never passed:
                 a request that would is refused before it takes any; None: no end
    pad_to       a model's batch always has this many rows, the last one repeated; a request whose
                 branches find no room waits. None: as many rows as are asked for
    preview      False: ticket.x0 is not formed
    density      True: ticket.drawn is, at the price of a further launch for the rows that draw
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
    the model's rows do. Those of a model of exactly rounded operations do. A network's depend on
    the batch size, by which its libraries choose their kernels, and may depend on where in the
    batch a row stands: pad_to makes the size one and the same, and a request then equals its run
    alone in an Engine of the same pad_to as far as rows have the same bits wherever they stand.

    A plan of another layout grows the memory between ticks. Any thread may submit, cancel and read
    results, none of which waits for the model; ticks, of any thread, or of the one of `serve()`,
    and `select` are one at a time. A result is handed out of the Engine's memory when the
    request ends, read or not. In a child forked from its process an Engine is a copy of its own,
    unless another thread served or ticked it: then it refuses there what it is asked.
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
        density: bool = False,
        waiting: int | None = None,
        policy: str | Callable = "first",
        overtakes: int = 64,
        max_bytes: int | None = None,
    ) -> None:
        models, sizes, shapes = _sizes(model, shape, capacity, pad_to, collate)
        pad_to = None if pad_to is None else sizes[1]
        arguments.dtypes("Engine", state_dtype, model_dtype)
        with arguments.named("Engine"):
            self._judged = arguments.judged(check)
            _, self._device = arguments.place(None, None, (1,), device)
        super().__init__(sizes[0], pad_to, waiting, policy, overtakes)
        self._sizes = shapes
        self.shape = self._named([size for _, size in shapes])
        self._dtypes = state_dtype, model_dtype or state_dtype
        choice = select("step", self._device, state_dtype, backend)
        own = state_dtype, self._device, self._judged
        makers = {name: Requests(models, size, *own) for name, size in shapes}
        self._requests = makers.get(None) or TrackRequests(makers, models, density)
        self._seats: list[Ticket | None] = [None] * self.capacity  # by place
        kind, names = (*self._dtypes, self._device, preview, choice), [name for name, _ in shapes]
        places = [Places((sizes[0], *size), *kind) for _, size in shapes]
        self._memory = [(each, Stack(state_dtype, self._device)) for each in places]
        self._places, self._stack = self._memory[0]
        words = pad_to, self._dtypes[1], collate, self._lock, density
        self._tick = Tick(models, self._memory, None if names == [None] else names, *words)
        self._collate, self._models = collate, len(models)
        self._no_grad = torch.no_grad()  # entered by one thread at a time; to make one takes 1.5 µs
        self._budget = Budget(most_bytes(max_bytes), self._memory, self._batch)

    __repr__ = said.engine

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
        deadline: float | None = None,
        callback: Callable[[Ticket], object] | None = None,
        every: int = 1,
        after: Ticket | tuple[Ticket, int] | None = None,
    ) -> Ticket:
        """Take in a request, a Sampler's call with a batch of one: noise, latent, mask and known
        [1,*], every leaf of a condition that goes with samples one long, and left as it is until
        the request has ended. Without noise and latent the noise is drawn from the seed;
        noise_source: in the window that the sample is, or along `fs.brownian()`. No tick is waited
        for: it enters between two (`fastsample.runtime.queue`), at once if none is under way.

        deadline: seconds from now, after which it ends without a result.
        callback: callable(ticket), called every `every` rows that have run, but after the last, by
        who ticks, between ticks; may submit, cancel and read `ticket.x0`; what it raises ends its
        request.
        after: the request behind which it stands in a ladder, a row behind, or (that one, rows): so
        many (`fastsample.runtime.ladder`).
        Raises ValueError, TypeError or RuntimeError (EngineFull: it may come again), one sentence,
        and is then as if not called.
        """
        where, came = "Engine.submit", monotonic()
        with arguments.named(where):
            self._refuse_closed(where)
            begin = noise, latent, start, seed, stage, noise_source
            told = cond, uncond, branches, guidance
            image, blend = (strength, level), (mask, known)
            request = self._requests.made(plan, begin, told, image, blend)
            self._check_numbers(request)
            own = told_how(came, deadline, callback, every)
            ticket = Ticket(self, request, came, *own)
            self._come(ticket, ladder.behind(self, after))
            return ticket

    def select(self, index, *, seeds=None, tickets: Sequence[Ticket] | None = None) -> list[Ticket]:
        """Of the requests in flight, or of `tickets` among them: go on with those of numbers index
        [n], as `Run.select` has it, and cancel the others; one that is named again goes on as a
        copy, too, from where it stands. The tickets [n] in that order.

        seeds: an int s (s, s+1, ...) or n of them, new ones. Raises ValueError, TypeError or
        RuntimeError, one sentence, and is then as if not called.
        """
        where = "Engine.select"
        with self._alone(where), self._lock, arguments.named(where):
            self._sweep()  # one that was cancelled meanwhile is none of those in flight
            transforms.refuse(where, index, seeds)
            if len(self._memory) > 1:
                raise TypeError(f"{where}: requests of several tracks; of one tensor are accepted")
            tickets = self.running if tickets is None else self._in_flight(where, tickets)
            going = [tickets[k] for k in chosen(where, index, len(tickets)).tolist()]
            seeds = _new_seeds(going, seeds)
            others = [ticket for ticket in self.running if ticket not in tickets]
            self._refuse_copies(where, others, going)
            for ticket in {*tickets} - {*going}:
                ticket.cancel()
            self._sweep()
            for k, seed in enumerate(seeds):
                if going[k] in going[:k]:
                    place = self._free()
                    going[k] = self._seats[place] = going[k]._copied(place)
                    self._count(going[k], 1)
                if seed is not None:
                    self._places.host["seed"][going[k]._place] = seed
            self.running = (*others, *going)
            return going

    def tick(self) -> list[Ticket]:
        """The next row of every request in flight: the model is asked once, with a time for each
        row of its batch, for those whose row asks it. Requests whose deadline has come end before,
        and others enter. Returns those that ended by their last row, a fault or a deadline.

        A model that raises, or returns what does not fit, leaves every request where it was.
        """
        if self._served_elsewhere():
            raise RuntimeError(
                "Engine.tick: a thread ticks this Engine; its tickets' result() and await, or an "
                "Engine without serve(), are accepted"
            )
        with self._alone("Engine.tick"):
            with self._lock:
                ended = self._enter() + self._row()
            return ended + self._call_back()

    def run(self) -> None:
        """Tick until no request is in flight, and none waits."""
        while self.running or self._queue.waiting:
            self.tick()

    def __reduce__(self) -> tuple:
        raise TypeError(
            "Engine: its requests stay in their process; pickle the plans and the model, and make "
            "an Engine of them there"
        )

    # -- requests are chosen among -----------------------------------------------------------------
    def _in_flight(self, where: str, tickets: object) -> tuple[Ticket, ...]:
        """These tickets, of which each is running and named once."""
        given = tuple(tickets) if isinstance(tickets, Iterable) else (tickets,)
        numbers = [*map(id, given)]
        if len({*numbers}) < len(numbers) or not {*numbers} <= {*map(id, self.running)}:
            raise ValueError(
                f"{where}: of {len(given)} tickets one is not in flight, or given twice; "
                "requests that run, each once, are accepted"
            )
        return given

    def _refuse_copies(self, where: str, others: list[Ticket], going: list[Ticket]) -> None:
        """Refuse copies for which there is no room beside the others, or too little memory."""
        if beyond := self._room.beyond((), [*others, *going]):
            raise RuntimeError(
                f"{where}: {len(others)} requests and {len(going)} chosen, of which "
                f"{len(beyond)} have no room; capacity={self.capacity} requests with "
                f"pad_to={self.pad_to} branches are accepted"
            )
        self._budget.refuse_copies([*others, *going], self._queue.waiting)

    # -- a request comes ---------------------------------------------------------------------------
    def _check_numbers(self, request: Request) -> None:
        for (_, stack), each in zip(self._memory, request.tracks, strict=True):
            stack.check(each.plan, each.masked)

    def _come(self, ticket: Ticket, after: tuple[Ticket, int] | None) -> None:
        with self._lock:
            self._refuse_closed("Engine.submit")
            self._take_in(ticket, self.serving)
            ladder.join(ticket, after)

    def _fits(self, ticket: Ticket) -> dict:
        """What the conditions are like of those that are in, this one among them; it is refused
        where it cannot be told beside them.
        """
        request = ticket._request
        coming = [other._request.tracks for other in self._queue.waiting[:1]]
        for k, (_, stack) in enumerate(self._memory):
            stack.agree(request.tracks[k].plan, [tracks[k].plan for tracks in coming])
        if self._collate is not None:
            ticket._told = [conditions.told(tree) for tree in request.trees.values()]
            return {}
        like, ticket._told = leaves(request.trees, self._like)
        return like

    def _seat(self, ticket: Ticket) -> None:
        place, tracks = self._free(), []
        for (places, stack), request in zip(self._memory, ticket._request.tracks, strict=True):
            masked, first = request.masked, request.first
            rows = stack.rows(request.plan, masked)
            places.fit(stack.table, self._batch(stack.table.layout.G), masked)
            before = rows.first + first - 1 if first else None
            given = request.given, request.blend, request.words, before, request.window
            places.seat(place, *given)
            tracks.append(rows)
        ticket._enter(tracks, place)
        self._seats[place], self.running = ticket, (*self.running, ticket)

    def _batch(self, branches: int) -> int:
        """Rows of the models' batches at most, for requests of so many branches."""
        return self._models * (self.pad_to or 0) or self.capacity * branches

    def _copies(self, place: int) -> tuple[Any, Any]:
        """State [1,*] and preview [1,*] or None, by track where there are several, of a place, as
        they are now.
        """
        x, x0 = zip(*(places.copies(place) for places, _ in self._memory), strict=True)
        return self._named(x), None if x0[0] is None else self._named(x0)

    def _words(self, place: int) -> Tensor:
        """Status words [tracks] of a place, likewise."""
        each = [places.pool.status[place : place + 1] for places, _ in self._memory]
        return torch.cat(each)

    def _named(self, each: Sequence) -> Any:
        """What there is of each track, by its name where there are several."""
        names = [name for name, _ in self._sizes]
        return each[0] if names == [None] else dict(zip(names, each, strict=True))

    def _free(self) -> int:
        """A place for a request."""
        return self._seats.index(None)

    # -- a tick ------------------------------------------------------------------------------------
    def _row(self) -> list[Ticket]:
        """The next row of every request in flight; those that ended with it. Under the lock, which
        is let go while the model is asked.
        """
        if not self.running:
            return []
        begun, asked, going = monotonic(), self._tick.rows, len(self.running)
        with self._no_grad:
            self._tick.launch(self.running, self._like)
            over = self._tick.advance(self._judged)
        took = monotonic() - begun
        self._meter.tick(going, took)
        if self._tick.rows > asked:
            self._times.append(took)
        over = [ticket for ticket in over if not ticket.done]
        for ticket in over:
            self._over(ticket)
        return over

    def _over(self, ticket: Ticket) -> None:
        """Its last row has run, or it is known to be non-finite."""
        words = [p.status(ticket._place) if self._judged else 0 for p, _ in self._memory]
        error = None if None in words else ticket._fault(words)
        if error is None:
            ticket._take_out(None in words)
        self._ends(ticket, "result" if error is None else "failed", error)


def _new_seeds(tickets: Sequence[Ticket], seeds: object) -> list[int | None]:
    """The new seed of each, None where it keeps its own; with a warning where copies draw alike."""
    left = [ticket._left_to_draw() for ticket in tickets]
    if seeds is None:
        copied = [ids for k, ids in enumerate(left) if tickets[k] in tickets[:k]]
        if any(copied):
            caller.warn(ALIKE.format("Engine.select"))
        return [None] * len(tickets)
    if any(0 in ids for ids in left):
        raise ValueError(
            "Engine.select: seeds are given and a plan draws its first noise again (for a mask or "
            "an image); without seeds= is accepted"
        )
    return sources.seeds(seeds, len(tickets), "cpu", needed=True).tolist()


def _sizes(model, shape, capacity, pad_to, collate) -> tuple[tuple, list[int], list[tuple]]:
    """The models, capacity and pad_to or 1, and for each track its name (None: the only one's) and
    the sizes of a sample, of an Engine that can be.
    """
    if collate is not None and not callable(collate):
        raise TypeError(
            f"Engine: collate is a {type(collate).__name__}; a callable(trees) -> tree is accepted"
        )
    models = tuple(model) if isinstance(model, (list, tuple)) else (model,)
    shapes = shape if isinstance(shape, Mapping) else {None: shape}
    named = all(isinstance(name, str) for name in shapes) if shape is shapes else True
    listed = all(
        isinstance(size, Sequence) and not isinstance(size, str) for size in shapes.values()
    )
    tracks = {k: [*map(arguments.integer, size)] for k, size in shapes.items()} if listed else {}
    batch = 1 if pad_to is None else pad_to
    numbers = [arguments.integer(n) for n in (capacity, batch)]
    right = models and all(map(callable, models)) and tracks and named
    if not right or not all(n is not None and n > 0 for n in sum(tracks.values(), numbers)):
        raise ValueError(
            f"Engine: model {model!r:.60}, shape={shape!r}, capacity={capacity!r}, "
            f"pad_to={pad_to!r}; a callable or a list of them, and whole numbers of 1 or more, are "
            "accepted"
        )
    return models, numbers, [(name, tuple(size)) for name, size in tracks.items()]
