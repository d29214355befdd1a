"""A thread that ticks an Engine, those who submit to it and wait, and how it is closed."""

import asyncio
import subprocess
import sys
import threading
import time
import weakref

import pytest
import torch
from cases import same
from company import EXPECTED, MADE, SHAPE, ask, plan, told

import fastsample as fs

LONG = 60.0  # seconds after which a test that waits in vain fails


class Held:
    """A model that waits for `go` before it answers, and says by `asked` that it waits."""

    def __init__(self, answer=lambda x: x):
        self.asked, self.go, self.answer = threading.Event(), threading.Event(), answer

    def __call__(self, x, t, **cond):
        self.asked.set()
        assert self.go.wait(LONG)
        return self.answer(x)


@pytest.fixture
def held():
    """One that is let go at the end, whatever fails."""
    model = Held()
    yield model
    model.go.set()


def submit(engine, n=3, seed=0, **words):
    return engine.submit(plan("euler", n), seed=seed, **words)


def together(engine, calls):
    """Submit so that all enter before the same tick."""
    with engine._lock:
        return [call() for call in calls]


def by_threads(count, work):
    """Run work(k) in threads k = 0..count-1; what one raises is raised."""
    errors = []

    def one(k):
        try:
            work(k)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=one, args=(k,)) for k in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
    assert not errors, errors


@pytest.mark.parametrize("capacity", [5, 64])
def test_eight_threads_submit_and_wait(capacity):
    results = {}
    with fs.Engine(ask, SHAPE, capacity, waiting=64).serve() as engine:

        def work(k):
            mine = {n: engine.submit(MADE[n][0], **MADE[n][1]) for n in range(k, 64, 8)}
            results.update({n: ticket.result(LONG) for n, ticket in mine.items()})

        by_threads(8, work)
    assert all(same(results[n], EXPECTED[n]) for n in range(64))


def test_a_submit_does_not_wait_for_the_model_nor_do_others(held):
    engine = fs.Engine(held, SHAPE, 4).serve()
    first, gone = together(engine, [lambda: submit(engine)] * 2)
    assert held.asked.wait(LONG)  # and answers when this thread lets it
    second = submit(engine)
    gone.cancel()
    assert (first.state, second.state, gone.state) == ("running", "waiting", "cancelled")
    assert first.x0 is None and engine.waiting == (second,) and gone in engine.running
    with pytest.raises(RuntimeError, match="the request is cancelled"):
        gone.result(LONG)
    with pytest.raises(TimeoutError, match=r"at row 0 of 4 of those waiting after 0\.01 s"):
        second.result(timeout=0.01)
    held.go.set()
    assert same(first.result(LONG), second.result(LONG)) and gone.row < 4
    engine.close()


def test_nobody_waits_where_nobody_ticks():
    engine = fs.Engine(ask, SHAPE)
    ticket = submit(engine, cond=told(0))

    async def wait():
        return await ticket

    for call in (ticket.result, lambda: ticket.result(3.0), lambda: asyncio.run(wait())):
        with pytest.raises(RuntimeError, match="is at row 0 of 4; one that is done"):
            call()
    engine.run()
    assert same(asyncio.run(wait()), ticket.result())
    with pytest.raises(ValueError, match="^Ticket.result: timeout=-1; a number of seconds"):
        ticket.result(-1)


# -- asyncio ---------------------------------------------------------------------------------------
def test_tickets_are_awaited_in_any_loop():
    results = {}
    with fs.Engine(ask, SHAPE, 5, waiting=64).serve() as engine:

        async def one(n):
            results[n] = await engine.submit(MADE[n][0], **MADE[n][1])

        async def some(k):
            await asyncio.wait_for(asyncio.gather(*map(one, range(k, 24, 3))), LONG)

        by_threads(3, lambda k: asyncio.run(some(k)))
    assert all(same(results[n], EXPECTED[n]) for n in range(24))


def test_a_coroutine_that_is_cancelled_cancels_its_request(held):
    with fs.Engine(held, SHAPE, 4).serve() as engine:

        async def wait(ticket):
            return await ticket

        async def main():
            kept, gone, late = (submit(engine, seed=k) for k in range(3))
            tasks = [asyncio.create_task(wait(ticket)) for ticket in (kept, gone)]
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(late, 0.01)
            tasks[1].cancel()
            with pytest.raises(asyncio.CancelledError):
                await tasks[1]
            assert (kept.done, gone.state, late.state) == (False, "cancelled", "cancelled")
            assert "coroutine that awaited the request was cancelled" in str(gone.reason)
            held.go.set()
            return await asyncio.wait_for(tasks[0], LONG), kept

        x, kept = asyncio.run(main())
        assert same(x, kept.result())


def test_a_loop_that_is_gone_harms_nobody(held):
    with fs.Engine(held, SHAPE, 4).serve() as engine:
        ticket, loop = submit(engine), asyncio.new_event_loop()
        waiting = ticket._awaited()
        loop.call_soon(loop.stop)
        task = loop.create_task(waiting)
        loop.run_forever()
        loop.close()
        held.go.set()
        assert ticket.result(LONG).shape == (1, *SHAPE) and engine.serving
        waiting.close()
        del task


# -- faults ----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("answer", "error", "said"),
    [
        (lambda x: {}["its own"], KeyError, "its own"),
        (lambda x: x[:1], ValueError, "the model returned"),
        (lambda x: x.double(), TypeError, "the model returned torch.float64"),
    ],
)
def test_a_model_that_fails_ends_the_requests_it_was_asked_for(answer, error, said):
    """And not one whose row asks nobody, nor those that come later."""
    fail, others, words = threading.Event(), [], {"cond": told(1)}

    def model(x, t, label, text):
        if not fail.is_set():
            return ask(x, t, label, text)
        fail.clear()
        return answer(x)

    def begin(ticket):
        if ticket.row == 2 and not others:
            fail.set()
            others.append(submit(engine, 2, seed=5, **words))  # enters before the next tick

    with fs.Engine(model, SHAPE, 4).serve() as engine:
        asked = lambda k: submit(engine, 4, k, callback=begin, **words)
        tickets = together(engine, [lambda k=k: asked(k) for k in range(2)])
        for ticket in tickets:
            with pytest.raises(error, match=said):
                ticket.result(LONG)
            assert ticket.state == "failed" and ticket.row == 2 and ticket.x0 is None
        assert tickets[0].reason is tickets[1].reason
        own = fs.Sampler(plan("euler", 2), ask)(seed=5, shape=(1, *SHAPE), **words)
        assert same(others[0].result(LONG), own)
        assert same(submit(engine, 2, seed=5, **words).result(LONG), own) and engine.serving
    assert engine._seats == [None] * 4


def test_an_error_holds_no_memory_of_the_model():
    """Though its traceback does: a ticket is kept, and what stood in the model's frames is not."""
    left = []

    def model(x, t):
        much = x * 2
        left.append(weakref.ref(much))
        raise KeyError("its own")

    with fs.Engine(model, SHAPE).serve() as engine:
        ticket = submit(engine)
        with pytest.raises(KeyError) as error:
            ticket.result(LONG)
        assert error.traceback[-1].name == "model" and ticket.reason is error.value
        engine.close()
    assert [ref() for ref in left] == [None]


def test_nan_and_a_callback_end_one_request():
    error = KeyError("of the callback")

    def callback(ticket):
        raise error

    def model(x, t, label):
        return torch.where((label == 1).view(-1, 1, 1), torch.nan, x)

    with fs.Engine(model, SHAPE, 4).serve() as engine:
        cond = lambda k: {"label": torch.tensor([k])}
        tickets = [
            submit(engine, cond=cond(k), callback=callback if k == 2 else None) for k in (0, 1, 2)
        ]
        assert tickets[0].result(LONG) is not None
        with pytest.raises(FloatingPointError):
            tickets[1].result(LONG)
        with pytest.raises(KeyError):
            tickets[2].result(LONG)
        assert tickets[2].reason is error


def test_a_policy_that_raises_ends_the_thread_and_all_requests(held):
    def policy(waiting, running):
        if running:
            raise KeyError("of the policy")
        return waiting

    engine = fs.Engine(held, SHAPE, 2, policy=policy).serve()
    first = submit(engine)
    assert held.asked.wait(LONG)
    second = submit(engine)
    held.go.set()
    for ticket in (first, second):
        with pytest.raises(KeyError, match="of the policy"):
            ticket.result(LONG)
        assert ticket.state == "failed"
    engine._thread.join(LONG)
    assert not engine.serving and engine.running == engine.waiting == ()
    said = "its thread has died of KeyError: 'of the policy'; another Engine is accepted"
    for call in (lambda: submit(engine), engine.serve):
        with pytest.raises(RuntimeError, match=f"^Engine.s.*: {said}"):
            call()
    engine.close()


# -- the end ---------------------------------------------------------------------------------------
def test_closing_drains_or_cancels(held):
    for drain in (True, False):
        held.asked.clear(), held.go.clear()
        engine = fs.Engine(held, SHAPE, 1).serve()
        tickets = [submit(engine, seed=k) for k in range(2)]
        assert held.asked.wait(LONG)
        closing = threading.Thread(target=engine.close, args=(drain,))
        closing.start()
        while engine._closed is None:
            time.sleep(0)
        with pytest.raises(RuntimeError, match="^Engine.submit: the Engine is closed; another"):
            submit(engine)
        held.go.set()
        closing.join(LONG)
        assert not closing.is_alive() and not engine.serving and engine.running == ()
        assert {ticket.state for ticket in tickets} == {"result" if drain else "cancelled"}
        assert drain or "Engine.close: its requests are cancelled" in str(tickets[0].reason)
        engine.close(), engine.close(drain=False)
        with pytest.raises(RuntimeError, match="^Engine.serve: the Engine is closed"):
            engine.serve()


def test_closing_where_nobody_serves():
    with fs.Engine(ask, SHAPE, 1) as engine:
        drained = [submit(engine, cond=told(0)) for _ in range(2)]
    assert [ticket.state for ticket in drained] == ["result"] * 2
    with pytest.raises(KeyError), fs.Engine(ask, SHAPE, 1) as engine:
        left = [submit(engine, cond=told(0)) for _ in range(2)]
        raise KeyError
    assert [ticket.state for ticket in left] == ["cancelled"] * 2
    assert engine._seats == [None] and engine.tick() == []


def test_a_callback_may_close_and_one_thread_ticks():
    engine = fs.Engine(ask, SHAPE, 2)
    closing = lambda ticket: engine.close(drain=False)
    ticket = submit(engine, 9, cond=told(0), callback=closing, every=3)
    assert engine.serve() is engine
    with pytest.raises(RuntimeError, match="cancelled"):
        ticket.result(LONG)
    engine._thread.join(LONG)
    assert not engine.serving and ticket.row == 3
    with fs.Engine(ask, SHAPE, 2).serve() as engine:
        with pytest.raises(
            RuntimeError, match="^Engine.serve: the thread fastsample.Engine serves"
        ):
            engine.serve()
        for call in (engine.tick, engine.run):
            ticket = submit(engine, 50, cond=told(0))
            with pytest.raises(RuntimeError, match="^Engine.tick: a thread ticks this Engine"):
                call()
        assert engine.select([], tickets=[]) == [] and ticket.result(LONG) is not None


LEFT_OPEN = """
import threading
import torch, fastsample as fs
from fastsample.runtime import serving
schedule, asked = fs.schedules.Flow(), threading.Event()
plan = fs.solvers.euler(schedule, fs.grids.uniform(schedule, 3), prediction="flow")
def stuck(x, t):
    asked.set()
    return x if {ends} else threading.Event().wait()
serving.LAST = 0.5
engine = fs.Engine(stuck, (3,)).serve()
ticket = engine.submit(plan, seed=1)
asked.wait()
print(engine.serving)
"""


@pytest.mark.slow
@pytest.mark.parametrize("ends", [True, False])
def test_a_process_that_leaves_an_engine_open_ends(ends):
    """Also in the middle of a call that never returns."""
    source = LEFT_OPEN.format(ends=ends)
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, timeout=100)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"True\n", b"")


def test_of_two_who_tick_one_is_told_that_a_request_has_ended(held, monkeypatch):
    now = [100.0]
    for module in ("admission", "engine"):
        monkeypatch.setattr(f"fastsample.runtime.{module}.monotonic", lambda: now[0])
    engine, told = fs.Engine(held, SHAPE, 2), []
    short, long = submit(engine, 1, deadline=5.0), submit(engine, 9, deadline=1e6)
    engine.tick()  # the row before the first that asks the model
    first, later = (threading.Thread(target=lambda: told.append(engine.tick())) for _ in "ab")
    first.start()
    assert held.asked.wait(LONG)
    later.start()
    while not engine._turn._line:
        time.sleep(0)
    now[0] = 200.0  # its deadline passes while its last row runs
    held.go.set()
    for thread in (first, later):
        thread.join(LONG)
    assert short.state == "result" and long.state == "running"
    assert [ticket for ended in told for ticket in ended] == [short]
