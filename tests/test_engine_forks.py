"""A process that is forked beside an Engine: the child has a copy of its own, or a sentence."""

import os
import select
import signal
import threading

import pytest
import torch
from company import SHAPE, plan

import fastsample as fs
from fastsample.runtime import serving

pytestmark = pytest.mark.alone
LONG = 60


def model(x, t):
    return x / (1 + x.abs())


def of_child(work):
    """What work() says in a child of this process, which is killed where it hangs."""
    there, here = os.pipe()
    child = os.fork()
    if child == 0:
        said = "nothing"
        try:
            said = work()
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        finally:
            os.write(here, said.encode())
            os._exit(0)
    os.close(here)
    if not select.select([there], [], [], LONG)[0]:
        os.kill(child, signal.SIGKILL)
    with os.fdopen(there) as file:
        said = file.read()
    os.waitpid(child, 0)
    return said or "it hung"


def said_by(*calls):
    """What each of them raises, in lines."""

    def work():
        said = []
        for call in calls:
            try:
                said.append(str(call()))
            except Exception as error:
                said.append(f"{type(error).__name__}: {error}")
        return "\n".join(said)

    return of_child(work).split("\n")


@pytest.fixture
def busy():
    """An Engine that serves, whose model is being asked while another thread has the lock."""
    asked, held, go = threading.Event(), threading.Event(), threading.Event()

    def waits(x, t):
        asked.set()
        assert go.wait(LONG)
        return model(x, t)

    def hold(engine):
        with engine._lock:
            held.set()
            assert go.wait(LONG)

    with fs.Engine(waits, SHAPE, 1).serve() as engine:
        tickets = [engine.submit(plan("euler", 3), seed=k) for k in range(2)]
        assert asked.wait(LONG)
        holder = threading.Thread(target=hold, args=(engine,))
        holder.start()
        assert held.wait(LONG)
        yield engine, tickets
        go.set()
        holder.join(LONG)
        for ticket in tickets:
            assert ticket.result(LONG) is not None  # here it goes on


def test_one_that_serves_says_so_in_the_child(busy):
    engine, tickets = busy
    at_work = "it is at work in the process that this one was forked from"
    refused = f"{at_work}; another Engine is accepted"
    assert said_by(
        lambda: engine.submit(plan(), seed=1),
        engine.serve,
        tickets[0].result,
        tickets[1].result,
        lambda: [engine.serving, engine.running, engine.waiting, engine.tick()],
        lambda: engine.metrics().running,
        engine.close,
        lambda: serving._each(serving.Serving._last),  # as the end of the process does
    ) == [
        f"RuntimeError: Engine.submit: {refused}",
        f"RuntimeError: Engine.serve: {refused}",
        *[f"RuntimeError: Engine: {at_work}, and so is this request"] * 2,
        "[False, (), (), []]",
        "0",
        "None",
        "None",
    ]


def test_an_engine_of_the_childs_own(busy):
    def work():
        with fs.Engine(model, SHAPE).serve() as engine:
            return str(engine.submit(plan("euler", 3), seed=1).result(LONG).tolist())

    right = fs.Sampler(plan("euler", 3), model)(shape=(1, *SHAPE), seed=1)
    assert of_child(work) == str(right.tolist())


def test_one_that_nobody_is_at_is_copied():
    engine = fs.Engine(model, SHAPE, 1)
    tickets = [engine.submit(plan("euler", 4), seed=k) for k in range(2)]
    engine.tick(), engine.tick()

    def ends():
        engine.run()
        return str([ticket.result().tolist() for ticket in tickets])

    there = of_child(ends)
    assert [ticket.row for ticket in tickets] == [2, 0] and there == ends()


def test_a_callback_may_fork():
    """Who forks within a tick has all that the tick has."""
    said, engine = [], fs.Engine(model, SHAPE)
    metrics = lambda ticket: said.append(of_child(lambda: str(engine.metrics().running)))
    ticket = engine.submit(plan("euler", 3), seed=1, callback=metrics)
    engine.run()
    assert said == ["1"] * 3 and ticket.state == "result"


def test_one_that_another_thread_ticks_says_so_in_the_child():
    asked, go = threading.Event(), threading.Event()

    def waits(x, t):
        asked.set()
        assert go.wait(LONG)
        return model(x, t)

    engine = fs.Engine(waits, SHAPE)
    ticket = engine.submit(plan("euler", 2), seed=1)
    ticker = threading.Thread(target=engine.run)
    ticker.start()
    assert asked.wait(LONG)
    (said,) = said_by(ticket.result)
    assert said.startswith("RuntimeError: Engine: it is at work in the process that this one was")
    go.set()
    ticker.join(LONG)
    assert torch.isfinite(ticket.result()).all()
