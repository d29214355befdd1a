"""How requests come into an Engine and end: places, the queue, deadlines, callbacks."""

import pytest
import torch
from cases import same
from company import EXPECTED, MADE, SHAPE, ask, normal, plan, told

import fastsample as fs


class Clock:
    """Seconds that pass when the model is asked, and when a test says so."""

    def __init__(self, monkeypatch, a_call=1.0):
        self.now, self.a_call = 100.0, a_call
        for module in ("admission", "engine"):
            monkeypatch.setattr(f"fastsample.runtime.{module}.monotonic", lambda: self.now)

    def model(self, x, t, **cond):
        self.now += self.a_call
        return ask(x, t, **cond) if cond else x


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def submit(engine, n=4, seed=0, solver="euler", **words):
    return engine.submit(plan(solver, n), seed=seed, **words)


def states(tickets):
    return " ".join(ticket.state for ticket in tickets)


# -- places and the queue --------------------------------------------------------------------------
def test_those_without_a_place_wait_for_one_and_nobody_can_tell():
    engine = fs.Engine(ask, SHAPE, 3, waiting=40)
    tickets = [engine.submit(p, **words) for p, words in MADE[:40]]
    assert engine.running == tuple(tickets[:3]) and engine.waiting == tuple(tickets[3:])
    assert states(tickets[2:5]) == "running waiting waiting"
    while not all(ticket.done for ticket in tickets):
        engine.tick()
        inside = (*engine.running, *engine.waiting)
        assert inside == tuple(ticket for ticket in tickets if not ticket.done)
    assert {ticket.state for ticket in tickets} == {"result"}
    assert all(same(t.result(), x) for t, x in zip(tickets, EXPECTED, strict=False))


def test_the_queue_has_an_end_and_says_when_it_may_be_tried_again(clock):
    engine = fs.Engine(clock.model, SHAPE, 2, waiting=2)
    first, second = submit(engine, 4), submit(engine, 7)
    third, fourth = submit(engine, 5), submit(engine, 5)
    said = (
        "Engine.submit: 1 branch(es) beside 2 requests in flight with 2 and 2 that wait; "
        "capacity=2 requests with pad_to=None branches and waiting=2 are accepted, a further one "
        "in about 1 s"
    )
    with pytest.raises(fs.EngineFull) as full:
        submit(engine)
    assert str(full.value) == said and full.value.retry_after == 1.0  # no tick so far
    engine.tick()  # asks nobody
    clock.a_call = 2.0
    for left in (4, 3, 2):
        engine.tick()
        clock.a_call += 1.0
        with pytest.raises(fs.EngineFull) as full:
            submit(engine)
        mean = {4: 2.0, 3: 2.5, 2: 3.0}[left]
        assert first.left == left - 1 and full.value.retry_after == (left - 1) * mean
    engine.tick()
    assert first.done and states([second, third, fourth]) == "running waiting waiting"
    third.cancel()
    again = submit(engine)
    assert engine.running == (second, fourth) and engine.waiting == (again,)
    with pytest.raises(fs.EngineFull, match="beside 2 requests"):
        submit(engine), submit(engine)
    engine.run()
    assert states([second, third, fourth, again]) == "result cancelled result result"


@pytest.mark.parametrize("waiting", [0, 1, 3])
@pytest.mark.parametrize("pad_to", [None, 3])
def test_who_comes_again_when_it_is_told_is_taken_in(clock, waiting, pad_to):
    engine = fs.Engine(clock.model, SHAPE, 3, waiting=waiting, pad_to=pad_to)
    two = {"uncond": told(0), "guidance": 2.0}
    for k in range(99):
        words = two if k % 3 == 0 else {}
        try:
            submit(engine, 3 + 5 * k % 7, cond=told(k), **words)
        except fs.EngineFull as full:
            if not engine._times:  # so far it is a guess
                engine.tick(), engine.tick()
                continue
            again = clock.now + full.retry_after
            while clock.now < again:
                engine.tick()
            submit(engine, 3, cond=told(k), **words)
    assert clock.now > 150


def test_without_a_queue_there_is_room_or_not():
    engine = fs.Engine(lambda x, t: x, SHAPE, 1, waiting=0)
    ticket = submit(engine)
    with pytest.raises(fs.EngineFull):
        submit(engine)
    ticket.cancel()
    assert submit(engine).state == "running"


def test_what_waits_is_no_longer_its_callers_memory():
    inpaint, words = next((p, w) for p, w in MADE if "mask" in w)
    mine = {name: words[name].clone() for name in ("mask", "known")}
    noise = MADE[0][1]["noise"].clone()
    engine = fs.Engine(ask, SHAPE, 1, waiting=2)
    submit(engine, 1, cond=told(0))
    tickets = [engine.submit(MADE[0][0], **MADE[0][1] | {"noise": noise})]
    tickets += [engine.submit(inpaint, **words | mine)]
    for memory in (noise, *mine.values()):
        memory.fill_(3.0)
    engine.run()
    expected = EXPECTED[0], EXPECTED[next(k for k, (_, w) in enumerate(MADE) if w is words)]
    assert all(same(t.result(), x) for t, x in zip(tickets, expected, strict=True))


def test_a_policy_sees_tickets_and_says_who_enters():
    seen = []

    def longest(waiting, running):
        seen.append([(ticket.left, ticket.model, ticket.overtaken) for ticket in waiting])
        return sorted(waiting, key=lambda ticket: -ticket.left)

    for policy, order in (
        ("first", [9, 5, 7, 1, 4]),
        ("shortest", [9, 1, 4, 5, 7]),
        (longest, [9, 7, 5, 4, 1]),
    ):
        engine = fs.Engine(lambda x, t: x, SHAPE, 1, policy=policy, waiting=9)
        tickets, ended = [submit(engine, n) for n in (9, 5, 7, 1, 4)], []
        while engine.running or engine.waiting:
            ended += engine.tick()
        assert [ticket.plan.nfe for ticket in ended] == order and set(ended) == {*tickets}
    assert seen[0] == [(10, 0, 0)]  # as soon as it comes
    assert seen[-3:] == [
        [(6, 0, 1), (2, 0, 0), (5, 0, 0)],
        [(2, 0, 0), (5, 0, 0)],
        [(2, 0, 1)],
    ]


@pytest.mark.parametrize("policy", ["shortest", lambda waiting, running: waiting[::-1]])
def test_an_engine_overtakes_nobody_more_often_than_it_says(policy):
    engine = fs.Engine(lambda x, t: x, SHAPE, 1, policy=policy, waiting=2, overtakes=4)
    submit(engine, 2)
    slow, ended = submit(engine, 30), []
    while slow not in ended:
        if slow.state == "waiting" and len(engine.waiting) < 2:
            submit(engine, 1)
        ended += engine.tick()
    assert slow.overtaken == 4 and len(ended) == 1 + 4 + 1


@pytest.mark.parametrize("served", [False, True])
def test_a_policy_may_cancel_whom_it_names(served):
    def policy(waiting, running):
        waiting[0].cancel()
        return waiting

    engine = fs.Engine(lambda x, t: x, SHAPE, 1, policy=policy, waiting=2)
    with engine._turn:  # nobody enters yet
        tickets = [submit(engine, 2) for _ in range(3)]
        if served:
            engine.serve()
    engine.close()
    assert states(tickets) == "cancelled result cancelled"


def test_a_policy_sees_those_in_flight_in_order_of_arrival():
    """Though a later one entered before, and `select` put them in an order of its own."""
    seen = []

    def last(waiting, running):
        seen.append(running)
        return waiting[::-1]

    engine = fs.Engine(lambda x, t: x, SHAPE, 3, policy=last)
    with engine._turn:
        one, two = submit(engine), submit(engine)
    engine.tick()
    assert engine.running == (two, one)
    three = submit(engine)
    two_again, one_again = engine.select([2, 0, 0], seeds=5)[1:]
    assert two_again is two and engine.running == (three, two, one_again)
    one.cancel(), three.cancel()
    submit(engine)
    assert seen == [(), (one, two), (two, one_again)]


def test_a_policy_that_raises_takes_nobody_in():
    policy = lambda waiting, running: [] if engine.running else waiting + waiting
    engine = fs.Engine(lambda x, t: x, SHAPE, 2, policy=policy)
    with pytest.raises(ValueError, match="the policy named 2 requests, one of them"):
        submit(engine)
    assert engine.running == engine.waiting == ()


def test_what_cannot_be_had_when_its_turn_comes_is_refused(monkeypatch):
    engine = fs.Engine(ask, SHAPE, 1, waiting=2)
    submit(engine, 1, cond=told(0))
    waits, other = (engine.submit(p, **words) for p, words in MADE[:2])
    right, error = engine._places.seat, MemoryError("no more")

    def seat(place, given, *words):
        if given is not None:
            raise error
        return right(place, given, *words)

    monkeypatch.setattr(engine._places, "seat", seat)
    engine.run()
    assert waits.state == "refused" and waits.reason is error and waits.x0 is None
    with pytest.raises(MemoryError, match="no more"):
        waits.result()
    assert same(other.result(), EXPECTED[1])
    with pytest.raises(MemoryError, match="no more"):
        engine.submit(MADE[0][0], **MADE[0][1])
    assert engine.running == engine.waiting == () and engine._seats == [None]


# -- deadlines -------------------------------------------------------------------------------------
def test_a_deadline_ends_a_request_before_the_model_is_asked_for_it(clock):
    engine = fs.Engine(clock.model, SHAPE, 2)
    none, late = submit(engine, 9), submit(engine, 9, deadline=3.5)
    waits = submit(engine, 9, deadline=3.5)
    engine.tick()  # asks nobody
    assert engine.tick() == [] and late.row == 2 and clock.now == 101.0  # an evaluation takes 1 s
    assert engine.tick() == [late, waits]
    assert none.row == 3 and states([none, late, waits]) == "running failed failed"
    with pytest.raises(fs.DeadlineExceeded) as error:
        late.result()
    assert str(error.value) == (
        "Ticket.result: the request is at row 2 of 10 after 1 s with 8 evaluations left, of 1 s or "
        "more, and deadline=3.5 s; a later one is accepted"
    )
    assert isinstance(waits.reason, TimeoutError) and late.x0 is None
    engine.run()
    assert none.state == "result"


@pytest.mark.parametrize(("deadline", "state"), [(3.0, "result"), (2.99, "failed"), (0, "failed")])
def test_a_deadline_is_met_at_its_second(clock, deadline, state):
    engine = fs.Engine(clock.model, SHAPE)
    submit(engine, 1)
    engine.run()  # an evaluation takes 1 s
    ticket = submit(engine, 3, deadline=deadline)
    clock.now += 1e-9 if deadline == 0 else 0
    engine.run()
    assert ticket.state == state and ticket.row == (4 if state == "result" else 0)


def test_a_result_is_one_however_late(clock):
    engine = fs.Engine(clock.model, SHAPE)
    ticket = submit(engine, 2, deadline=2.0)
    clock.a_call = 50.0
    engine.tick()
    clock.now += 2.0
    engine.tick()  # its deadline has come, not passed, and no evaluation has been timed
    assert ticket.row == 2 and engine.tick() == [ticket] and ticket.state == "failed"
    last = submit(engine, 1, deadline=60.0)
    engine.run()
    assert last.state == "result"


# -- callbacks -------------------------------------------------------------------------------------
def test_a_callback_is_told_every_k_rows_but_after_the_last():
    seen = {every: [] for every in (1, 2, 3, 9)}
    engine = fs.Engine(ask, SHAPE, 5)
    whole = engine.submit(plan("dpmpp_2m", 6), seed=3, cond=told(1))
    for every, rows in seen.items():
        callback = lambda ticket, rows=rows: rows.append((ticket.row, ticket.x0))
        words = {"callback": callback, "every": every, "cond": told(1)}
        engine.submit(plan("dpmpp_2m", 6), seed=3, **words)
    x0 = {}
    while engine.running:
        engine.tick()
        x0[whole.row] = whole.x0
    for every, rows in seen.items():
        assert [row for row, _ in rows] == [*range(every, 7, every)]
        assert all(x is x0[row] is None or same(x, x0[row]) for row, x in rows)


def test_what_a_callback_raises_ends_its_request_and_no_other():
    error, calls = KeyError("of the callback"), []

    def callback(ticket):
        calls.append(ticket)
        with pytest.raises(RuntimeError, match="called by the model, or by a callback"):
            engine.tick()
        if ticket is second:
            third.cancel()
            calls.append(submit(engine, 1, cond=told(0)))
            raise error

    engine = fs.Engine(ask, SHAPE, 3)
    first, second, third = (
        engine.submit(plan(), seed=5, callback=callback, cond=told(0)) for k in range(3)
    )
    assert engine.tick() == [second] and calls[:2] == [first, second] and len(calls) == 3
    assert states([first, second, third, calls[2]]) == "running failed cancelled waiting"
    assert second.reason is error and engine.running == (first,)
    with pytest.raises(KeyError, match="of the callback"):
        second.result()
    engine.run()
    assert same(first.result(), fs.Sampler(plan(), ask)(seed=5, shape=(1, *SHAPE), cond=told(0)))


@pytest.mark.parametrize(
    ("words", "error", "said"),
    [
        ({"deadline": -1}, ValueError, "Engine.submit: deadline=-1; a number of seconds, 0 or"),
        ({"deadline": "soon"}, ValueError, "Engine.submit: deadline='soon'; a number of sec"),
        ({"callback": 3}, TypeError, r"Engine.submit: callback is a int; a callable\(ticket\)"),
        ({"every": 0}, ValueError, "Engine.submit: every=0; a whole number of rows, 1 or more"),
        ({"every": True}, ValueError, "Engine.submit: every=True; a whole number"),
    ],
)
def test_words_of_a_request_are_refused(words, error, said):
    engine = fs.Engine(lambda x, t: x, SHAPE)
    with pytest.raises(error, match=f"^{said}"):
        engine.submit(plan(), noise=normal(1), **words)
    assert engine.running == engine.waiting == ()


def test_words_of_an_engine_are_refused():
    for words, said in (
        ({"waiting": -1}, "Engine: waiting=-1, overtakes=64; whole numbers of requests, 0 or"),
        ({"waiting": 1.5}, "Engine: waiting=1.5"),
        ({"overtakes": -2}, "Engine: waiting=None, overtakes=-2"),
        ({"policy": "last"}, "Engine: policy is 'last'; first, shortest, grouped, or a callable"),
        ({"policy": ["first"]}, r"Engine: policy is \['first'\]"),
    ):
        with pytest.raises(ValueError, match=f"^{said}"):
            fs.Engine(ask, SHAPE, **words)


def test_states_and_their_reasons():
    def model(x, t, label):
        return torch.where((label == 1).view(-1, 1, 1), torch.nan, x)

    engine = fs.Engine(model, SHAPE)
    right, bad, gone = (
        engine.submit(plan(n=2), seed=1, cond={"label": torch.tensor([k])}) for k in range(3)
    )
    assert right.reason is None and right.left == 3
    gone.cancel()
    engine.run()
    assert states([right, bad, gone]) == "result failed cancelled"
    assert right.reason is None and right.left == 0
    assert isinstance(bad.reason, FloatingPointError) and bad.x0 is None
    assert isinstance(gone.reason, RuntimeError)
    gone.cancel(), right.cancel(), bad.cancel()
    assert states([right, bad, gone]) == "result failed cancelled"
