"""Conditions: one tree of keywords, the same samples on every road. Each case says a vector of one
number a sample in another way.
"""

import re
from collections import OrderedDict, UserDict, namedtuple
from dataclasses import make_dataclass
from functools import partial
from types import MappingProxyType, SimpleNamespace

import numpy as np
import pytest
import torch
from cases import same

import fastsample as fs
from fastsample import metrics
from fastsample.optimize import oss
from fastsample.runtime import arguments, compiled
from fastsample.runtime.conditions import branches_of, take, told
from fastsample.trajectories import Denoiser, record

SCHEDULE, B, D = fs.schedules.Flow(shift=3.0), 5, 3
Maps = namedtuple("Maps", "low high")
SAID = torch.tensor([3.0, 0.0, 4.0, 1.0, 2.0])


class Words(dict):
    """A mapping that torch's pytree does not look into."""


def text(v):
    return ["x" * int(n) for n in v]


def length(words):
    return torch.tensor([float(len(w or "")) for w in words])


# name: (keywords that say v [n], v as the model reads it from them)
TREES = {
    "nested": (
        lambda v: {"added": {"text": v / 2, "sizes": (v / 2)[:, None]}},
        lambda added: added["text"] + added["sizes"][:, 0],
    ),
    "list of maps": (
        lambda v: {"maps": [v - 1, torch.ones(len(v), 2)]},
        lambda maps: maps[0] + maps[1][:, 1],
    ),
    "dict in a list": (
        lambda v: {"maps": [{"low": v}, None, "name", v.sum()]},
        lambda maps: maps[0]["low"],
    ),
    "tuple": (
        lambda v: {"pair": (v, v * 2)},
        lambda pair: pair[1] - pair[0] if isinstance(pair, tuple) else None,
    ),
    "named tuple": (lambda v: {"maps": Maps(v, 0.0)}, lambda maps: maps.low + maps.high),
    "ordered dict": (lambda v: {"added": OrderedDict(text=v)}, lambda added: added["text"]),
    "other mappings": (
        lambda v: MappingProxyType({"a": Words(b=UserDict(text=v))}),
        lambda a: a["b"]["text"],
    ),
    "array": (
        lambda v: {"text": v.numpy().astype(np.int64)[::-1].copy()[::-1]},
        lambda text: text.float(),
    ),
    "list of arrays": (
        lambda v: {"text": [v.numpy().astype(">f8")]},
        lambda text: text[0].to(torch.float32),
    ),
    "strings": (
        lambda v: {"text": text(v)},
        lambda text: length(text) if isinstance(text, list) else None,
    ),
    "strings and None": (
        lambda v: {"text": [w or None for w in text(v)]},
        lambda text: length(text),
    ),
    "tuple of numbers": (
        lambda v: {"added": {"n": tuple(v.tolist())}},
        lambda added: torch.tensor(added["n"]),
    ),
    "lists of strings": (
        lambda v: {"text": [text(v), text(v * 0)]},
        lambda text: length(text[0]) + length(text[1]),
    ),
    "shared": (
        lambda v: {"v": v, "w": fs.shared(torch.zeros(B))},
        lambda v, w: v + w.sum() + (len(w) - B),
    ),
    "shared within": (
        lambda v: {"a": {"v": v, "w": fs.shared((8, 8))}},
        lambda a: a["v"] + (len(a["w"]) - 2),
    ),
    "shared twice": (
        lambda v: {"v": v, "w": fs.shared({"n": fs.shared(np.ones(2))})},
        lambda v, w: v + w["n"].log().sum().float(),
    ),
    "nothing": (
        lambda v: {"v": v, "a": {}, "b": [], "c": None, "d": torch.tensor(0.0)},
        lambda v, a, b, c, d: v + d + len(a) + len(b),
    ),
}


@pytest.fixture(scope="module", params=TREES)
def case(request):
    return TREES[request.param]


def model_of(read, calls=None):
    def fn(x, t, **cond):
        if calls is not None:
            calls.append(len(x))
        said = read(**cond)
        assert said.shape == (len(x),)
        return x * 0.3 + x * x * 0.05 * (t.view(-1, 1) + 0.5) + said.to(x.dtype)[:, None] * 0.1

    return fs.Model(fn, SCHEDULE, prediction="flow")


FLAT = model_of(lambda v: v)
PLAN = fs.solvers.dpmpp_2m(FLAT, fs.grids.uniform(SCHEDULE, 4))


def unit():
    return torch.randn(B, D, generator=torch.Generator().manual_seed(0))


def guided(**words):
    return {**words, "guidance": 3.0}


def searched(model, **words):
    found = oss(model, unit(), 2, teacher=4, batch_size=4, **guided(**words))
    return torch.tensor(list(found.error.values()), dtype=torch.float64)


def recorded(model, **words):
    plan = fs.guidance.guided(PLAN)
    return record(plan, model, unit(), batch_size=2, **guided(**words)).x0


def branched(model, cond, uncond):
    words = {"branches": [cond, uncond, cond], "guidance": [2.0, 0.5]}
    return metrics.run(PLAN, model, unit(), batch_size=3, **words)


def sampled(model, differentiable=False, **words):
    return fs.Sampler(PLAN, model, differentiable=differentiable)(noise=unit(), **words)


ROADS = {
    "one": lambda model, cond, uncond: sampled(model, cond=cond),
    "guided": lambda model, **words: sampled(model, **guided(**words)),
    "branches": branched,
    "differentiable": lambda model, **words: sampled(model, True, **guided(**words)),
    "record": recorded,
    "search": searched,
}


@pytest.fixture(scope="module")
def flat():
    words = {"cond": {"v": SAID}, "uncond": {"v": SAID * 0}}
    return {road: run(FLAT, **words) for road, run in ROADS.items()}


@pytest.mark.parametrize("road", ROADS)
def test_a_tree_is_told_as_its_flat_keyword_is(case, road, flat):
    tree, read = case
    got = ROADS[road](model_of(read), cond=tree(SAID), uncond=tree(SAID * 0))
    assert same(got, flat[road])


def test_flat_keywords_are_what_a_model_of_its_own_says(flat):
    """The roads that the cases are held against, held against a model that knows its samples."""
    own = fs.Model(lambda x, t: FLAT.fn(x, t, v=SAID), SCHEDULE, prediction="flow")
    assert same(flat["one"], fs.Sampler(PLAN, own)(noise=unit()))
    words = guided(cond={"v": SAID}, uncond={"v": SAID * 0})
    one_by_one = sampled(FLAT, batched_guidance=False, **words)
    assert same(flat["guided"], one_by_one) and same(flat["differentiable"], one_by_one)
    assert not same(flat["one"], flat["guided"])


def test_hand_made_grids_are_judged_on_some_samples_first():
    """A shared leaf is cut twice there, and as long as the samples once: it must stay whole."""

    def read(text, a):
        return length(text) + a["v"] * 0 + (len(a["w"]) - 2)

    tree = {"text": text(SAID), "a": {"v": SAID, "w": fs.shared(torch.ones(2))}}
    options = {"screen": 2, "finalists": 2}
    found = [
        metrics.best_hand_made(model, unit(), 2, unit(), cond=cond, **options).note["found"]
        for model, cond in ((FLAT, {"v": SAID}), (model_of(read), tree))
    ]
    assert found[0] == found[1]


NAN, TOKEN = torch.tensor(torch.nan), object()
PAIRS = [
    (1.0, 1.0, 1),
    (1.0, 2.0, 2),
    (1, True, 2),
    ("a", "a", 1),
    ("a", "b", 2),
    (None, None, 1),
    (None, SAID, 2),
    (TOKEN, TOKEN, 1),
    (TOKEN, object(), 2),
    (torch.tensor(3.0), torch.tensor(3.0), 1),
    (torch.tensor(3.0), torch.tensor(4.0), 2),
    (NAN, NAN, 1),
    (NAN, NAN.clone(), 2),
    (torch.zeros(B, 2), torch.zeros(B, 3), 2),
    (torch.zeros(B), torch.zeros(B).double(), 2),
    (torch.zeros(B), text(SAID), 2),
    (text(SAID), tuple(text(SAID)), 2),
    (fs.shared((8, 8)), fs.shared((8, 8)), 1),
    (fs.shared((8, 8)), fs.shared((8, 9)), 2),
    (fs.shared({"w": torch.ones(2)}), fs.shared({"w": torch.ones(2)}), 1),
    (fs.shared(torch.ones(B)), fs.shared(torch.zeros(B)), 2),
    (fs.shared(torch.ones(B)), torch.ones(B), 2),
    (torch.Size(range(B)), torch.Size(range(B)), 1),
    (np.ones(B), np.zeros(B), 1),
    (np.array(1.0), np.array(2.0), 2),
    ({}, {}, 1),
    ([], {}, 2),
]


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: re.sub(" at 0x[0-9a-f]+", "", str(pair)))
def test_branches_are_asked_together_where_one_call_can_say_both(pair):
    first, second, each = pair
    seen = []

    def read(v, other):
        seen.append(other)
        return v

    calls = []
    sampler = fs.Sampler(PLAN, model_of(read, calls))
    call = guided(cond={"v": SAID, "other": first}, uncond={"other": second, "v": SAID * 0})
    got = sampler(noise=unit(), **call)
    assert calls == [2 * B // each] * each * PLAN.nfe
    assert same(got, sampler(noise=unit(), **call, batched_guidance=False))
    assert not any(isinstance(v, type(fs.shared(0))) for v in seen)


LONG = torch.zeros(B + 1, 2)
WRONG = {
    "nested": (
        {"added": {"text": LONG}},
        r'["added"]["text"] has 6 samples for a batch of 5; 5, or fs.shared(value), is accepted',
    ),
    "list": ({"maps": [SAID, (LONG,)]}, r'["maps"][1][0] has 6 samples'),
    "named tuple": ({"maps": Maps(SAID, LONG)}, r'["maps"].high has 6 samples'),
    "strings": ({"text": ["a", "b"]}, r'["text"] has 2 samples'),
    "numbers": ({"size": (1024, 1024)}, r'["size"] has 2 samples'),
    "broadcast": ({"text": torch.zeros(1, 7)}, r'["text"] has 1 samples'),
    "array": ({"text": np.zeros((4, 2))}, r'["text"] has 4 samples'),
    "mapping": ({"a": Words(b=UserDict(text=LONG))}, r'["a"]["b"]["text"] has 6 samples'),
    "text array": ({"text": np.array(["a"] * B)}, r'["text"] is an array of <U1'),
}
DOORS = {
    "Sampler: cond": lambda model, wrong: fs.Sampler(PLAN, model)(noise=unit(), cond=wrong),
    "Sampler: uncond": lambda model, wrong: fs.Sampler(PLAN, model)(
        shape=(B, D), cond={}, uncond=wrong, guidance=2.0
    ),
    "Sampler: branches[1]": lambda model, wrong: fs.Sampler(PLAN, model, differentiable=True)(
        latent=unit(), start=1, branches=[{}, wrong], guidance=2.0
    ),
    "oss: uncond": lambda model, wrong: oss(
        model, unit(), 2, teacher=4, uncond=wrong, guidance=2.0
    ),
    "trajectories: cond": lambda model, wrong: record(
        PLAN, model, unit(), cond=wrong, batch_size=2
    ),
    "trajectories: uncond": lambda model, wrong: Denoiser(
        model, np.array([0.5]), unit(), uncond=wrong, guidance=2.0
    ),
    "metrics: cond": lambda model, wrong: metrics.score(
        PLAN, model, unit(), unit(), cond=wrong, batch_size=2
    ),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("wrong", WRONG)
def test_another_length_is_refused_by_its_path(wrong, door):
    calls, (cond, sentence) = [], WRONG[wrong]
    with pytest.raises((ValueError, TypeError)) as caught:
        DOORS[door](model_of(lambda **cond: SAID, calls), cond)
    assert str(caught.value).startswith(door + sentence) and not calls


@pytest.mark.parametrize(
    ("cond", "uncond", "sentence"),
    [
        ({"a": {"b": SAID}}, {"a": {}}, 'cond["a"]["b"] has no counterpart in uncond'),
        ({"a": SAID}, {"a": {"b": SAID}}, 'cond["a"] has no counterpart in uncond'),
        ({"a": [SAID]}, {"a": [SAID, SAID]}, 'uncond["a"][1] has no counterpart in cond'),
        ({}, {"a": SAID}, 'uncond["a"] has no counterpart in cond'),
        ({"a": SAID, "b": 1}, {"b": 1}, 'cond["a"] has no counterpart in uncond'),
    ],
)
def test_trees_of_different_form_are_refused_by_path(cond, uncond, sentence):
    said = "have keywords of their own.*batched_guidance=False"
    with pytest.raises(ValueError, match=said) as caught:
        fs.Sampler(PLAN, FLAT)(noise=unit(), cond=cond, uncond=uncond, guidance=2.0)
    assert sentence in str(caught.value)


@pytest.mark.parametrize("batched", [True, False])
def test_gradients_reach_leaves_and_what_two_branches_share(batched):
    """Two scalars of one value are two parameters: a call for both would give the second no
    gradient.
    """
    sampler = fs.Sampler(PLAN, model_of(lambda a: a["v"][0] * a["scale"]), differentiable=True)
    leaves = [SAID.clone(), torch.tensor(0.5), SAID.clone() * 0 + 1, torch.tensor(0.5)]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    cond, uncond = ({"a": {"v": [v], "scale": scale}} for v, scale in (leaves[:2], leaves[2:]))
    x = sampler(noise=unit(), cond=cond, uncond=uncond, guidance=3.0, batched_guidance=batched)
    cond, uncond, *_ = gradients = torch.autograd.grad(x.sum(), leaves)
    assert all(bool(g.abs().sum() > 0) for g in gradients)


def test_cut_leaves_keep_their_kind():
    cond = {
        "t": SAID,
        "l": text(SAID),
        "n": tuple(range(B)),
        "w": fs.shared(SAID),
        "m": Maps(SAID, None),
        "k": OrderedDict(s="all"),
    }
    tree = branches_of("here", cond, None, None, B, torch.device("cpu"))["cond"]
    for index, numbers in ((slice(1, 3), [1, 2]), (torch.tensor([4, 4, 0]), [4, 4, 0])):
        got = told(take(tree, index))
        assert same(got["t"], SAID[numbers]) and got["l"] == [text(SAID)[i] for i in numbers]
        assert got["n"] == tuple(numbers) and got["w"] is SAID and got["k"] == cond["k"]
        assert isinstance(got["m"], Maps) and same(got["m"].low, SAID[numbers])
    assert told(take(take(tree, slice(0, 2)), slice(1, 2)))["w"] is SAID


@pytest.mark.parametrize("kind", [make_dataclass("Record", ["v"]), SimpleNamespace])
def test_a_record_of_tensors_is_not_told_whole_to_a_part_of_the_samples(kind):
    """Nor is a sample that a callback moves told another's; the advice is followed."""
    some = lambda step, x, x0: fs.Select([4, 0]) if step == 1 else None
    record, model = kind(v=SAID), model_of(lambda c: c.v)
    assert same(sampled(model, cond={"c": record}), sampled(FLAT, cond={"v": SAID}))
    said = f"condition: a {kind.__name__} holds tensors and would be told whole to a part"
    for road in (partial(metrics.run, PLAN, noise=unit()), partial(sampled, callback=some)):
        with pytest.raises(TypeError, match=said):
            road(model, cond={"c": record})
    want, nested = sampled(FLAT, cond={"v": SAID}, callback=some), model_of(lambda c: c["v"])
    assert same(sampled(nested, cond={"c": {"v": SAID}}, callback=some), want)
    heard = model_of(lambda v, c: (c.v, v)[1])
    for alone in (kind(v=7), fs.shared(record)):  # of no tensor, or of no sample
        assert same(sampled(heard, cond={"v": SAID, "c": alone}, callback=some), want)


def test_a_shared_value_is_passed_on_as_it_is():
    seen, value = [], {"log": [SAID, {"deep": SAID}]}
    model = model_of(lambda v, w: (seen.append(w), v)[1])
    sampled(model, cond={"v": SAID, "w": fs.shared(value)})
    assert all(w is value for w in seen)


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int32, bool])
def test_an_array_keeps_its_dtype_and_its_memory(dtype):
    array = np.ones(B, dtype=dtype)
    array.flags.writeable = False
    (cond,) = branches_of("here", {"a": [array]}, None, None, B, torch.device("cpu")).values()
    assert cond["a"][0].dtype == torch.from_numpy(np.ones(1, dtype)).dtype
    cond["a"][0].zero_()
    assert array.all()
    tree = {"a": array, "b": fs.shared([array])}
    (cond,) = branches_of("here", tree, None, None, B, torch.device("meta")).values()
    assert cond["a"].device.type == told(cond)["b"][0].device.type == "meta"


def test_the_form_of_a_tree_and_its_own_storages():
    make = lambda word="a", rows=B: [{"a": {"t": torch.zeros(rows, 2), "l": [word] * B}}]
    assert compiled.form(make()) == compiled.form(make(rows=B + 1)) != compiled.form(make("b"))
    assert compiled.form(make()) != compiled.form([{"a": {"t": 0, "l": ["a"] * B}}])
    assert len({compiled.form([v]) for v in ({"a": SAID}, {"b": SAID}, {"b": [SAID]})}) == 3
    (one,) = compiled.unshared([{"a": {"t": SAID}, "b": [SAID, SAID[1:]]}])
    places = {v.untyped_storage().data_ptr() for v in (one["a"]["t"], *one["b"])}
    assert len(places) == 3 and same(one["b"][1], SAID[1:])


def test_what_starts_a_run_says_its_batch():
    assert arguments.place(None, None, (4, 2), None)[0] == 4
    assert arguments.place(unit(), unit()[:2], None, None)[0] == 2
    for noise, shape in ((None, None), (5, None), (torch.tensor(0.0), None), (None, ())):
        with pytest.raises((TypeError, ValueError), match="^Run: "):
            arguments.place(noise, None, shape, None)
