"""An Engine under clients of every kind: who join at random, cancel, have deadlines, callbacks that
raise, conditions of which a model makes NaN, and a model that fails now and then.

10,000 requests by `make soak`, a few hundred of them by `make test`.
"""

import asyncio
import contextlib
import gc
import os
import random
import threading
import time
from collections import Counter

import pytest
import torch
from cases import same
from company import EXPECTED, MADE, SHAPE, ask
from hypothesis import settings

import fastsample as fs
from fastsample.runtime.meter import ENDS

WHOLE = settings.default.max_examples >= 2000
FIRST, ALL = (2_000, 10_000) if WHOLE else (60, 240)
LONG, CLIENTS, FEW, MOST_GROWN = 120.0, 4, 12, 5 << 20


class Failing:
    """`ask`, NaN for label -1, an error of its own in one call of 400."""

    def __init__(self):
        self.calls = 0

    def __call__(self, x, t, label, text):
        self.calls += 1
        if self.calls % 400 == 0:
            raise ModelDown(self.calls)
        f = ask(x, t, label, text)
        return torch.where((label == -1).view(-1, 1, 1), torch.nan, f)


class ModelDown(Exception):
    pass


class CallbackDown(Exception):
    pass


class Client:
    """A thread of requests, each seen to its end."""

    def __init__(self, engine, number):
        self.engine, self.chance = engine, random.Random(number)
        self.ends, self.errors = Counter(), []

    def asked(self):
        """What it asks for, and the reasons for which it may have no result."""
        k, kind = self.chance.randrange(len(MADE)), self.chance.randrange(10)
        words, reasons = dict(MADE[k][1]), [ModelDown]
        if kind == 0:
            words["cond"] = {"label": torch.tensor([-1.0]), "text": [""]}
            reasons.append(FloatingPointError)
        elif kind == 1:
            words["deadline"] = self.chance.choice([0.0, 1e-3, 60.0])
            reasons.append(fs.DeadlineExceeded)
        elif kind == 2:
            at = self.chance.randrange(1, 9)
            words |= {"callback": self.raising(at), "every": self.chance.randrange(1, 4)}
            reasons.append(CallbackDown)
        elif kind == 3:
            reasons.append(RuntimeError)  # to be cancelled
        return k, words, reasons

    def raising(self, at):
        def callback(ticket):
            assert ticket.x0 is None or ticket.x0.shape == (1, *SHAPE)
            if ticket.row >= at:
                raise CallbackDown(at)

        return callback

    def submitted(self, k, words):
        while True:
            try:
                return self.engine.submit(MADE[k][0], **words)
            except fs.EngineFull as full:
                assert full.retry_after > 0
                time.sleep(min(full.retry_after, 1e-3))

    def judged(self, k, ticket, reasons, x, error):
        """Every ticket ends in one state, with its reason."""
        assert ticket.done and ticket.state in ENDS and ticket.reason is error
        if error is None:
            assert ticket.state == "result"
            # one that is NaN in its first condition alone differs, and ends otherwise
            assert FloatingPointError in reasons or same(x, EXPECTED[k])
        else:
            assert isinstance(error, tuple(reasons)), error
            assert ticket.state == ("cancelled" if RuntimeError in reasons else "failed") or (
                isinstance(error, ModelDown)
            )
            assert ticket.x0 is None
        self.ends[ticket.state] += 1

    def wait(self, k, ticket, reasons):
        x = error = None
        try:
            x = ticket.result(LONG)
        except Exception as raised:
            error = raised
        self.judged(k, ticket, reasons, x, error)

    def run(self, count):
        try:
            held = []
            for _ in range(count):
                k, words, reasons = self.asked()
                held.append((k, self.submitted(k, words), reasons))
                if RuntimeError in reasons and self.chance.random() < 0.5:
                    held[-1][1].cancel()
                self.look(held[-1][1])
                if len(held) == FEW or self.chance.random() < 0.1:
                    self.wait(*self.left(held))
            while held:
                self.wait(*self.left(held))
        except BaseException as error:
            self.errors.append(error)

    def look(self, ticket):
        """Now and then, at what others change meanwhile; and choose it, which moves nothing."""
        if self.chance.random() < 0.9:
            return
        metrics = self.engine.metrics()
        assert metrics.running <= self.engine.capacity and metrics.requests > 0
        with contextlib.suppress(ValueError):  # it is not in flight
            assert self.engine.select([0], tickets=[ticket]) == [ticket]

    def left(self, held):
        request = held.pop(self.chance.randrange(len(held)))
        if RuntimeError in request[2]:
            request[1].cancel()
        return request


class AsyncClient(Client):
    """The same in an event loop, by coroutines that are cancelled."""

    async def one(self, k, words, reasons):
        ticket, x, error = self.submitted(k, words), None, None
        gone = RuntimeError in reasons
        try:
            x = await asyncio.wait_for(ticket, self.chance.random() * 1e-3 if gone else LONG)
        except Exception as raised:
            error = ticket.reason if gone else raised
            if error is None:  # it ended just before the coroutine was cancelled
                x = ticket.result()
        self.judged(k, ticket, reasons, x, error)

    async def some(self, count):
        for _ in range(-(-count // FEW)):
            await asyncio.gather(*(self.one(*self.asked()) for _ in range(min(FEW, count))))
            count -= FEW

    def run(self, count):
        try:
            asyncio.run(self.some(count))
        except BaseException as error:
            self.errors.append(error)


def resident():
    """Bytes of this process in memory, and its tensors."""
    gc.collect()
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[1])
    tensors = sum(issubclass(type(value), torch.Tensor) for value in gc.get_objects())
    return pages * os.sysconf("SC_PAGE_SIZE"), tensors


def busy(engine, clients, count):
    """All clients at once, `count` requests in all, until every one has ended."""
    threads = [threading.Thread(target=c.run, args=(count // len(clients),)) for c in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for client in clients:
        if client.errors:
            raise client.errors[0]
    with engine._alone("test"):  # one that was cancelled leaves after the tick that is under way
        pass
    assert engine.running == engine.waiting == () and engine.serving


@pytest.mark.hypothesis
def test_a_soak():
    engine = fs.Engine(Failing(), SHAPE, 16, waiting=8, policy="shortest", overtakes=20).serve()
    clients = [Client(engine, k) for k in range(CLIENTS - 1)] + [AsyncClient(engine, 9)]
    busy(engine, clients, FIRST)
    before = resident()
    busy(engine, clients, ALL - FIRST)
    after = resident()
    ends = sum((client.ends for client in clients), Counter())
    metrics = engine.metrics()
    assert ends.total() == metrics.requests == ALL and metrics.ended == {"refused": 0} | ends
    assert min(ends["result"], ends["cancelled"], ends["failed"]) > ALL // 50
    assert after[1] == before[1] and not any(rows.users for rows in engine._stack._held.values())
    engine.close()
    if WHOLE:
        assert after[0] - before[0] < MOST_GROWN
