"""What one thread holds at a time, in the order in which they asked for it."""

import threading
import time

import pytest

from fastsample.runtime.turn import Turn

LONG = 60.0


def in_line(turn, names, went):
    """Threads of these names that wait for the turn in this order, and write that they had it."""

    def one(name):
        with turn:
            went.append(name)

    threads = [threading.Thread(target=one, args=(name,)) for name in names]
    for k, thread in enumerate(threads):
        thread.start()
        while len(turn._line) <= k:
            time.sleep(0)
    return threads


def test_those_who_wait_are_next_and_in_order():
    swept, went = [], []
    turn = Turn(lambda: swept.append(len(went)))
    assert turn.take() and turn.mine and turn.held and not turn.take(wait=False)
    threads = in_line(turn, "abc", went)
    turn.give()
    assert not turn.take(wait=False) or went == ["a", "b", "c"]  # it was handed over
    for thread in threads:
        thread.join(LONG)
    assert went == ["a", "b", "c"] and swept[0] == 0 and len(swept) == 4 and not turn.held


def test_a_thread_that_takes_it_again_and_again_lets_another_in():
    turn, rounds = Turn(lambda: None), 0
    with turn:
        threads = in_line(turn, "a", went := [])
    while not went:
        with turn:
            rounds += 1
    threads[0].join(LONG)
    assert rounds <= 1


@pytest.mark.parametrize("handed", [False, True])
def test_one_that_is_interrupted_leaves_the_line(monkeypatch, handed):
    turn, real = Turn(lambda: None), threading.Lock

    class Interrupted:
        """A lock of somebody who is broken off while he waits, or as it is handed to him."""

        def __init__(self):
            self.calls = 0

        def acquire(self):
            self.calls += 1
            if self.calls == 2:
                if handed:
                    turn.give()
                raise KeyboardInterrupt

        def release(self):
            pass

    turn.take()
    monkeypatch.setattr("fastsample.runtime.turn.Lock", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        turn.take()
    monkeypatch.setattr("fastsample.runtime.turn.Lock", real)
    assert not turn._line and turn.held == (not handed)
    if not handed:
        turn.give()
    assert turn.take(wait=False)
    turn.give()


def test_in_a_forked_process_it_is_free_where_only_this_thread_had_to_do_with_it():
    turn = Turn(lambda: None)
    assert turn.forked()
    with turn:
        assert turn.forked() and turn.mine
    other = threading.Thread(target=turn.take)
    other.start()
    other.join(LONG)
    assert not turn.forked()
