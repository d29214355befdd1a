"""ranks: what a search finds is the same to the bit in a world of any size, and what goes wrong in
one process goes wrong in all.
"""

import warnings

import pytest
import torch
from torch import distributed
from worlds import SCHEDULE, D, few_by_hand, found, model, net, world

import fastsample as fs
from fastsample import metrics
from fastsample.optimize import _climb

pytestmark = pytest.mark.filterwarnings("ignore:.* the teacher .* agrees to")
WORDS = {"seed": 5, "batch_size": 16}
SHAPE = [64, D]


@pytest.fixture
def alone(monkeypatch):
    """This process does as those of a world do: on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(metrics, "by_hand", few_by_hand)
    yield
    torch.set_num_threads(before)


def fine(steps=8):
    return fs.solvers.dpmpp_2m(model(), fs.grids.fine(SCHEDULE, steps))


def climb(fn=None, **words):
    words = {"teacher": fine(), "iterations": 1, "beam": 1, **WORDS, **words}
    return fs.optimize.search(model(fn), SHAPE, [2], **words)


def test_the_models_bits_depend_on_how_many_are_asked_together(alone):
    x = torch.randn(16, D, generator=torch.Generator().manual_seed(1))
    ask, t = net(), torch.ones(16)
    assert not torch.equal(ask(x, t), torch.cat([ask(part, t[:2]) for part in x.split(2)]))


# -- two processes, which are begun once ----------------------------------------------------------
class Odd(Exception):
    """One that cannot be sent."""

    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


def raised(make):
    try:
        make()
    except (Exception, KeyboardInterrupt) as error:
        return type(error).__name__, str(error)


def failing(wrong, begun=(True,)):
    """A model that fails once it has `begun`, in process 1, once."""
    ask, failed = net(), []

    def asked(x, t):
        if distributed.get_rank() == 1 and begun and not failed:
            failed.append(1)
            if isinstance(wrong, BaseException):
                raise wrong
            return x * wrong
        return ask(x, t)

    return asked


def late(rung, wrong):
    """A climb whose model fails in a rung, in process 1."""
    begun, own = [], getattr(_climb.Climb, rung)
    setattr(_climb.Climb, rung, lambda self: (begun.append(1), own(self))[1])
    try:
        return climb(failing(wrong, begun))
    finally:
        setattr(_climb.Climb, rung, own)


def short(fn=None, z=(32, D), **words):
    """A short search: fine() alone asks 16 times."""
    return fs.optimize.gits(model(fn), z, 1, teacher=fine(), **{**WORDS, **words})


def in_two(rank, folder):
    said = {}
    place = folder / ("whole" if rank == 0 else "none")
    said["search"] = found(climb(checkpoint=place))
    for name, wrong in (
        ("value", ValueError("of its own")),
        ("odd", Odd(1, 2)),
        ("nan", torch.nan),
    ):
        said[name] = raised(lambda wrong=wrong: short(failing(wrong)))
    said["by hand"] = found(late("by_hand", torch.nan))
    said["interrupted"] = late("polish", KeyboardInterrupt()).stopped
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        short(z=[4, D])
    said["warned"] = [str(one.message) for one in caught]
    torch.manual_seed(rank)
    fresh = short(seed=None)
    said["fresh"] = found(fresh), fresh.plan.note["found"]["seed"]
    z = torch.randn(4, D)
    said["alike"] = raised(lambda: short(z=z))
    groups = [distributed.new_group([one]) for one in (0, 1)]
    said["own group"] = found(short(group=groups[rank]))
    said["other group"] = raised(lambda: short(group=groups[1 - rank]))
    return said


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    return world(2, folder / "world", in_two, folder), folder


def test_two_processes_find_what_one_does(two, alone):
    said, folder = two
    assert said[0]["search"] == said[1]["search"] == found(climb())
    assert not (folder / "none").exists() and len([*(folder / "whole").iterdir()]) == 2


def test_what_fails_in_one_process_fails_in_all(two):
    said, _ = two
    for one in said:
        assert one["value"] == ("ValueError", "of its own")
        assert one["odd"] == ("RuntimeError", "process 1 failed: Odd: 1 and 2")
        assert "is not finite for sample 16" in one["nan"][1]
        assert one["interrupted"] == "interrupted"
        name, sentence = one["alike"]
        assert name == "ValueError" and sentence.startswith("gits: noise is")
        assert sentence.endswith("in process 1; the same in all is needed")
        name, sentence = one["other group"]
        assert name == "ValueError" and "is not in it; a group of those that call" in sentence


def test_a_plan_whose_run_fails_in_one_process_is_at_minus_infinity_in_all(two):
    said, _ = two
    assert said[0]["by hand"] == said[1]["by hand"]


def test_only_the_first_process_warns_and_draws_a_seed(two, alone):
    said, _ = two
    (warned,) = said[0]["warned"]
    assert warned.startswith("gits: the teacher (dpmpp_2m, 8 evaluations) agrees to")
    assert not said[1]["warned"]
    torch.manual_seed(0)
    own = short(seed=None)
    assert said[0]["fresh"] == said[1]["fresh"] == (found(own), own.plan.note["found"]["seed"])
    assert said[0]["own group"] == said[1]["own group"] == found(short())
