"""The Engine's queue: who enters when, who is overtaken how often, who has room."""

import pickle
import random

import pytest

import fastsample as fs
from fastsample.runtime.queue import POLICIES, Queue, Room


class Asking:
    """What the queue reads of a ticket."""

    def __init__(self, name, left=3, model=0, branches=1):
        self.name, self.left, self.model, self.overtaken = name, left, model, 0
        self.branches = branches

    def __repr__(self):
        return self.name


def entered(queue, running=(), places=100):
    has = Room(places, None).beside(running)
    return [ticket.name for ticket in queue.entering(running, has)]


def queue_of(policy, tickets, overtakes=100):
    queue = Queue(policy, overtakes)
    queue.waiting.extend(tickets)
    return queue


def last(waiting, running):
    return waiting[::-1]


def test_the_order_of_each_policy():
    made = lambda: [Asking("a", 5, 0), Asking("b", 2, 1), Asking("c", 5, 1), Asking("d", 2, 0)]
    assert set(POLICIES) == {"first", "shortest", "grouped"}
    assert entered(queue_of("first", made())) == ["a", "b", "c", "d"]
    assert entered(queue_of("shortest", made())) == ["b", "d", "a", "c"]
    assert entered(queue_of("grouped", made())) == ["a", "d"]  # nobody runs: as the first to come
    running = [Asking("x", model=1), Asking("y", model=1), Asking("z", model=0)]
    assert entered(queue_of("grouped", made()), running) == ["b", "c"]
    assert entered(queue_of("grouped", made()), running[1:]) == ["a", "d"]  # the lower number
    assert entered(queue_of("grouped", made()), [Asking("x", model=2)]) == []
    assert entered(queue_of(last, made())) == ["d", "c", "b", "a"]
    nobody = lambda waiting, running: []
    assert entered(queue_of(nobody, made()), running) == []
    assert entered(queue_of(nobody, made())) == ["a"]
    assert entered(queue_of("first", [])) == []


def test_nothing_passes_a_head_without_room():
    tickets = [Asking("a"), Asking("b", branches=3), Asking("c")]
    queue, room = queue_of("first", tickets), Room(9, 3)
    assert [t.name for t in queue.entering((), room.beside(()))] == ["a"]
    assert queue.waiting == tickets[1:] and tickets[1].overtaken == 0


@pytest.mark.parametrize("policy", ["shortest", "grouped", last])
@pytest.mark.parametrize("overtakes", [0, 3])
def test_nobody_is_overtaken_more_often_than_is_said(policy, overtakes):
    """One that the policy would let wait for ever, among arrivals without end."""
    met = set()
    for order in range(20):
        chance, running, log = random.Random(order), [], []
        queue = queue_of(policy, [Asking("first", 9, 1)], overtakes)
        if policy == "grouped":
            running = [Asking(f"x{k}") for k in range(2)]
        came = ["first"]
        for k in range(60):
            running = [ticket for ticket in running if chance.random() < 0.7]
            for n in range(chance.randrange(3)):
                came.append(f"{k}.{n}")
                queue.waiting.append(Asking(came[-1], chance.randrange(1, 9)))
            has = Room(3, None).beside(running)
            for ticket in queue.entering(running, has):
                log.append(ticket.name)
                running.append(ticket)
        most = {
            name: sum(came.index(other) > came.index(name) for other in log[: log.index(name)])
            for name in log
        }
        assert "first" in log
        met |= {*most.values()}
    assert max(met) == overtakes


def test_a_policy_that_names_others_is_refused():
    one, two = Asking("a"), Asking("b")
    for policy, error, said in (
        (lambda waiting, running: [one, one], ValueError, "named 2 requests.*each once"),
        (lambda waiting, running: [Asking("c")], ValueError, "not waiting"),
        (lambda waiting, running: [[one], [two]], ValueError, "named 2 requests.*not waiting"),
        (lambda waiting, running: "ab", ValueError, "named 2 requests.*not waiting"),
        (lambda waiting, running: {"a": 1}, ValueError, "named 1 requests.*not waiting"),
        (lambda waiting, running: None, TypeError, "returned a NoneType"),
    ):
        queue = queue_of(policy, [one, two])
        with pytest.raises(error, match=f"^Engine: the policy .*{said}"):
            entered(queue)
        assert queue.waiting == [one, two]


def test_room():
    running = [Asking("a", left=4, branches=2), Asking("b", left=2)]
    waiting = [Asking("c"), Asking("d", branches=2), Asking("e")]
    for room, names in (
        (Room(9, None), ""),
        (Room(4, None), "e"),
        (Room(2, None), "cde"),
        (Room(9, 4), "de"),
        (Room(9, 6), "e"),
    ):
        assert "".join(t.name for t in room.beyond(running, waiting)) == names
    assert Room(9, 6).rows_until(running, waiting[0]) == 0
    assert Room(2, None).rows_until(running, waiting[0]) == 2
    assert Room(9, 4).rows_until(running, waiting[1]) == 2
    assert Room(9, 3).rows_until(running, waiting[1]) == 4  # b alone leaves two branches taken


def test_an_error_that_says_when_survives_a_pickle():
    error = pickle.loads(pickle.dumps(fs.EngineFull("Engine.submit: full", 0.5)))
    assert str(error) == "Engine.submit: full" and error.retry_after == 0.5
    assert issubclass(fs.EngineFull, RuntimeError) and issubclass(fs.DeadlineExceeded, TimeoutError)
