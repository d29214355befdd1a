"""What other threads do between the end of a tick and the sweep after it, step by step; and old
news: tick times of a slow spell, rows of a table that has been written over.
"""

import asyncio
import contextlib
import threading
import time

import pytest
import torch
from company import SHAPE, plan

import fastsample as fs


def model(x, t):
    return x / (1 + x.abs())


def alone(made, seed):
    return fs.Sampler(made, model)(shape=(1, *SHAPE), seed=seed)


@pytest.fixture
def unswept():
    """An Engine of two requests, the first cancelled while somebody ticked who has not swept."""
    engine = fs.Engine(model, SHAPE, 2)
    tickets = [engine.submit(plan("euler", 6), seed=k) for k in range(2)]
    engine.tick()
    after, engine._turn._after = engine._turn._after, lambda: None
    with engine._turn:
        tickets[0].cancel()
    engine._turn._after = after
    return engine, *tickets


def test_select_sees_no_request_that_has_ended(unswept):
    engine, _, second = unswept
    with pytest.raises(ValueError, match="index names sample 1 of 1"):
        engine.select([0, 1])
    (same,) = engine.select([0])
    third = engine.submit(plan("euler", 6), seed=7)
    engine.run()
    assert same is second
    for ticket, seed in ((second, 1), (third, 7)):
        assert torch.equal(ticket.result(), alone(ticket.plan, seed))
    engine.close(drain=False)


def test_a_place_is_given_away_once(unswept):
    engine, _, second = unswept
    third = engine.submit(plan("euler", 6), seed=7)
    engine._sweep_up()  # whoever ticked, late
    assert {t._place for t in engine.running} == {0, 1}
    engine.run()
    for ticket, seed in ((second, 1), (third, 7)):
        assert torch.equal(ticket.result(), alone(ticket.plan, seed))


def test_a_slow_spell_does_not_end_all_who_come_after_it():
    slow = iter([0.3])

    def sometimes(x, t):
        time.sleep(next(slow, 0.0))
        return model(x, t)

    engine = fs.Engine(sometimes, SHAPE, 2)
    tickets = []
    for k in range(4):
        tickets.append(engine.submit(plan("euler", 4), seed=k, deadline=0.6))
        engine.run()
    assert [ticket.state for ticket in tickets] == ["failed", "result", "result", "result"]


def test_closing_waits_for_a_tick_and_is_refused_within_one():
    asked, go = threading.Event(), threading.Event()

    def held(x, t):
        asked.set()
        assert go.wait(60)
        return model(x, t)

    engine = fs.Engine(held, SHAPE, 2)
    ticket = engine.submit(plan("euler", 4), seed=0, callback=lambda _: engine.close())
    engine.tick()  # the first row asks no model
    assert ticket.state == "failed" and "Engine.close: called by" in str(ticket.reason)
    other = engine.submit(plan("euler", 4), seed=1)  # it is open yet
    engine.tick()
    ticker = threading.Thread(target=engine.tick)
    ticker.start()
    assert asked.wait(60)
    closer = threading.Thread(target=engine.close, args=(False,))
    closer.start()
    closer.join(0.2)
    assert closer.is_alive() and other.state == "cancelled"
    go.set()
    closer.join(60)
    ticker.join(60)
    assert not closer.is_alive() and engine.running == ()


@pytest.mark.parametrize("raised", [SystemExit(3), KeyboardInterrupt()])
def test_what_is_no_error_ends_its_request_and_is_not_the_clients_own(raised):
    def break_off(ticket):
        raise raised

    with fs.Engine(model, SHAPE, 2).serve() as engine:
        own = engine.submit(plan("euler", 4), seed=0, callback=break_off)
        other = engine.submit(plan("euler", 4), seed=1)
        assert torch.equal(other.result(60), alone(other.plan, 1))
        name = type(raised).__name__
        with pytest.raises(RuntimeError, match=f"a model or a callback raised {name}") as caught:
            own.result(60)
        assert caught.value.__cause__ is raised and engine.serving


def test_a_model_that_breaks_off_ends_those_it_was_asked_for():
    left = iter([SystemExit(3)])

    def broken(x, t):
        with contextlib.suppress(StopIteration):
            raise next(left)
        return model(x, t)

    with fs.Engine(broken, SHAPE, 2).serve() as engine:
        first = engine.submit(plan("euler", 4), seed=0)
        with pytest.raises(RuntimeError, match="raised SystemExit: 3"):
            first.result(60)
        second = engine.submit(plan("euler", 4), seed=1)
        assert torch.equal(second.result(1e12), alone(second.plan, 1))


def test_a_fault_is_read_by_where_its_rows_stood(monkeypatch):
    """On a device the status is looked at late, when the table may hold other plans."""
    engine = fs.Engine(lambda x, t: x * torch.nan, SHAPE, 1)
    monkeypatch.setattr(engine._places, "status", lambda k: None)
    first = engine.submit(plan("euler", 3), seed=0)
    engine.run()
    first._tracks[0].first += 1000
    assert first.state == "failed" and first.reason is not None
    with pytest.raises(FloatingPointError, match="became non-finite at row"):
        first.result()


class Written:
    """Status words on a device that is not done yet."""

    def __init__(self):
        self.asked, self.go = threading.Event(), threading.Event()

    def tolist(self):
        self.asked.set()
        assert self.go.wait(60)
        return [0]


@pytest.fixture
def unread(monkeypatch):
    """An Engine that serves and whose request has ended, for all that is known without a look."""
    with fs.Engine(model, SHAPE, 1).serve() as engine:
        monkeypatch.setattr(engine._places, "status", lambda k: None)
        ticket = engine.submit(plan("euler", 3), seed=0)
        while not ticket.done:
            time.sleep(0)
        words = Written()
        ticket._unread = words, None
        yield engine, ticket, words
        words.go.set()


def test_a_look_that_waits_for_a_device_holds_nobody_up(unread):
    engine, ticket, words = unread
    looker = threading.Thread(target=lambda: ticket.state)
    looker.start()
    assert words.asked.wait(60)
    other = engine.submit(plan("euler", 3), seed=1)
    while not other.done:
        time.sleep(0)
    assert engine.metrics().ended["result"] == 2 and looker.is_alive()
    words.go.set()
    looker.join(60)
    assert torch.equal(ticket.result(60), alone(ticket.plan, 0))


def test_a_coroutine_that_waits_for_a_device_lets_others_run(unread):
    _, ticket, words = unread

    async def wait():
        return await ticket

    async def both():
        waits = asyncio.create_task(wait())
        while not words.asked.is_set():
            await asyncio.sleep(0)
        words.go.set()
        return await waits

    assert torch.equal(asyncio.run(both()), alone(ticket.plan, 0))


def test_a_device_is_waited_for_before_its_words_are_read(monkeypatch):
    calls = []

    class Event:
        def record(self):
            calls.append("record")

        def synchronize(self):
            calls.append("wait")

    monkeypatch.setattr("fastsample.runtime.capturable.KIND", "cpu")
    monkeypatch.setattr("fastsample.runtime.capturable.CUDA.Event", Event)
    engine = fs.Engine(lambda x, t: x * torch.nan, SHAPE, 1)
    monkeypatch.setattr(engine._places, "status", lambda k: None)
    ticket = engine.submit(plan("euler", 3), seed=0)
    engine.run()
    assert calls == ["record"] and ticket._state == "result"
    assert ticket.state == "failed" and calls == ["record", "wait"] and ticket.x0 is None


def test_one_who_closes_while_another_serves_waits_for_the_thread():
    engine = fs.Engine(model, SHAPE, 1)
    tickets = [engine.submit(plan("euler", 5), seed=k) for k in range(2)]
    right = engine._shut

    def shut(drain):
        engine.serve()  # just before
        right(drain)

    engine._shut = shut
    engine.close()
    assert [ticket.state for ticket in tickets] == ["result"] * 2 and not engine.serving


def test_a_thread_that_cannot_be_had_leaves_the_engine_as_it_was(monkeypatch):
    def start(thread):
        raise RuntimeError("can't start new thread")

    engine = fs.Engine(model, SHAPE, 1)
    ticket = engine.submit(plan("euler", 3), seed=0)
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="start new thread"):
        patch.setattr(threading.Thread, "start", start)
        engine.serve()
    engine.tick()
    assert not engine.serving and engine.serve().serving
    assert torch.equal(ticket.result(60), alone(ticket.plan, 0))
    engine.close()
