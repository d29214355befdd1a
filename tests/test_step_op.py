"""`fastsample::step_`: the launch as an op on the tensors in its signature; torch's own checks of
it, and what it refuses.
"""

import gc
import weakref
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from cases import BASE, CASES, MODELS, launched, make, same
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from fastsample.kernels import backend, native
from fastsample.runtime import step_op
from fastsample.runtime.step_op import STEP

ROW = 4
NAMED = ("x", "slots", "model_input", "status", "x_out", "f", "table_f", "table_i", "seed")
NAMED += ("stage", "scale", "noise_scale", "mask", "known", "noise", "row", "dims")
WHOLE = [
    c for c in CASES if c.groups == 1 and not (c.weights or c.bound) and c.layout == "contiguous"
]


def ready(case):
    """(setup, the op's arguments by name) of a case whose samples all run one row."""
    setup = make(case)
    x, slots, f, numbers, words, _, at = setup.args
    slots = [torch.nan_to_num(s, 0.25) for s in slots]
    setup.args = (x, slots, f, numbers, words, ROW, at)
    option = setup.options
    asked = torch.full_like(x, torch.nan, dtype=case.model)
    own = torch.stack([s.flatten() for s in slots]) if slots else x.new_empty(0, x.numel())
    given = (x.clone(), own, asked, torch.zeros(case.batch, dtype=torch.int32), None, f)
    given += (numbers, words, option["seed"], None, option["scale"], option["noise_scale"])
    given += (option["mask"], option["known"], option["noise"], ROW, [*at, 1])
    return setup, dict(zip(NAMED, given, strict=True))


@pytest.mark.parametrize("case", WHOLE, ids=str)
def test_the_op_gives_the_bits_of_the_launch(case):
    setup, given = ready(case)
    want = launched(*setup.args, **setup.options, backend="reference")
    for whole in (False, True):
        _, given = ready(case)
        if whole:
            given["f"] = [torch.cat(given["f"])]
        assert STEP(*given.values()) is None
        assert same(given["x"], want.x) and same(given["model_input"], want.model_input)
        assert same(given["status"], want.status)
        assert same(given["slots"], want.slots.flatten(1))


def test_the_state_may_be_written_elsewhere():
    setup, given = ready(BASE)
    want, before = launched(*setup.args, **setup.options, backend="reference"), given["x"].clone()
    given["x_out"] = torch.full_like(before, torch.nan)
    STEP(*given.values())
    assert same(given["x_out"], want.x) and same(given["x"], before)


def test_writes_are_counted():
    """A graph that kept what is written must be told."""
    _, given = ready(BASE)
    written = [given[name] for name in ("x", "slots", "model_input", "status")]
    before = [v._version for v in written]
    STEP(*given.values())
    assert all(v._version > n for v, n in zip(written, before, strict=True))


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_opcheck(model):
    """Schema, registration and shapes for every dtype of the model."""
    _, given = ready(replace(BASE, model=model, elements=5, mask=True, noise_scale=True))
    quick = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(STEP, tuple(given.values()), test_utils=quick)


def test_opcheck_through_the_compilers():
    """With an absent branch, an end elsewhere and no input of its own for the model."""
    _, given = ready(BASE)
    given |= {"f": [given["f"][0], None], "x_out": torch.empty(3, 37), "model_input": None}
    torch.library.opcheck(STEP, tuple(given.values()))


# -- tensors without numbers -----------------------------------------------------------------------
@pytest.fixture(params=["meta", "cuda"])
def bare(request):
    """The op's arguments on meta, or as fake tensors of a GPU, within the mode that makes them."""
    _, given = ready(replace(BASE, mask=True, noise_scale=True))
    like = lambda v: torch.empty(v.shape, dtype=v.dtype, device=request.param)
    with FakeTensorMode() if request.param == "cuda" else nullcontext():
        yield pytree.tree_map_only(torch.Tensor, like, given)


def test_opcheck_without_numbers(bare):
    torch.library.opcheck(STEP, tuple(bare.values()))


def test_a_loop_without_numbers_is_one_graph(bare):
    """Without a break, and with every launch in it."""
    torch._dynamo.reset()
    graphs = []

    def look(graph, _):
        graphs.append(graph)
        return graph.forward

    def loop(given):
        for row in (2, 3, 4):
            asked = torch.tanh(given["model_input"])
            STEP(*(given | {"row": row, "f": [asked, given["f"][1]]}).values())
        return given["x"] + 1

    end = torch.compile(loop, backend=look, fullgraph=True)(bare)
    assert (end.shape, end.dtype, end.device) == (bare["x"].shape, torch.float32, bare["x"].device)
    (graph,) = graphs
    assert [node.target for node in graph.graph.nodes].count(STEP) == 3


# -- the launch that the tensors call for ----------------------------------------------------------
WRITTEN = ("x", "slots", "model_input", "status")
# "addresses": of the binary where torch has no exchange table, and of every other device.
BACKENDS = ["reference"] + ([] if native.MISSING else ["native", "addresses"])


@pytest.fixture(params=BACKENDS)
def chosen(request, monkeypatch):
    """The name of a backend; nothing is remembered of others."""
    by_addresses = request.param == "addresses"
    if by_addresses:
        monkeypatch.setattr(native, "EXCHANGE", False)
    monkeypatch.setenv(backend.VARIABLE, "native" if by_addresses else request.param)
    for kept in (backend._chosen, step_op._bound):
        kept.clear()
    yield request.param
    for kept in (backend._chosen, step_op._bound):
        kept.clear()


def test_a_launch_is_bound_once_to_its_memory(chosen):
    """Rows, outputs, draws and the end go with the call. The reference, which reads the table as it
    binds, is bound anew.
    """
    _, given = ready(BASE)
    for row in (3, 4, 3):
        given |= {"row": row, "f": [v.clone() for v in given["f"]]}
        STEP(*(given | {"x_out": torch.empty(3, 37)}).values())
    assert len(step_op._bound) == (chosen != "reference")
    memory = [torch.zeros(3, dtype=torch.int32) for _ in range(step_op.MOST + 3)]
    for status in memory:
        STEP(*(given | {"status": status}).values())
    assert len(step_op._bound) <= step_op.MOST


def test_what_is_remembered_holds_no_memory(chosen):
    """A tensor over an array of NumPy's keeps the array until it goes itself."""
    _, given = ready(BASE)
    arrays = {k: v.numpy().copy() for k, v in given.items() if isinstance(v, torch.Tensor)}
    STEP(*(given | {k: torch.from_numpy(array) for k, array in arrays.items()}).values())
    gone = [weakref.ref(array) for array in arrays.values()]
    del arrays
    gc.collect()
    assert len(gone) == 8 and not any(ref() is not None for ref in gone)


@pytest.mark.parametrize("change", ["table", "table's rows", "known", "slots"])
def test_tensors_at_one_address_are_told_apart(change, chosen):
    """A call is right although another before it had the same addresses."""
    _, given = ready(replace(BASE, mask=True))
    known, numbers, words = given["known"], given["table_f"], given["table_i"]
    room = torch.full((2, 200), 0.25)
    given["slots"] = room[:, :111].contiguous() if change != "slots" else room.view(-1)[:222]
    given["slots"] = given["slots"].view(2, 111)
    copy = lambda call: {k: v.clone() if hasattr(v, "clone") else v for k, v in call.items()}
    before = copy(given)
    STEP(*given.values())
    for name in WRITTEN:
        given[name].copy_(before[name])
    if change == "table":  # other rows, where those stood
        numbers.copy_(numbers.flip(0)), words.copy_(words.flip(0))
    elif change == "table's rows":  # row 4 is none
        given |= {"table_f": numbers[:2], "table_i": words[:2]}
    elif change == "known":
        given |= {"known": known[:1]}
    else:
        given |= {"slots": room}
    alone = copy(given)
    STEP(*given.values())
    STEP(*alone.values())
    assert all(same(given[name], alone[name]) for name in WRITTEN)
    none = change == "table's rows"
    assert not none or given["status"].tolist() == [1 | ROW << 8] * 3
    assert not none or same(given["x"], before["x"])


def test_one_number_where_three_stood_is_refused_though_its_address_is_known():
    _, given = ready(BASE)
    STEP(*given.values())
    for name in ("seed", "scale", "status"):
        with pytest.raises(ValueError, match=f"step_: {name} has shape .* strides"):
            STEP(*(given | {name: given[name][:1].expand(given[name].shape)}).values())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"x": torch.zeros(3, 37, dtype=torch.float16)}, "the state is torch.float16"),
        ({"x": torch.zeros(37, 3).t()}, "the state is .* of strides"),
        ({"slots": torch.zeros(1, 111)}, "slots has shape"),
        ({"slots": torch.zeros(2, 110)}, "slots has shape"),
        ({"f": [torch.zeros(1, 37)] * 2}, "model outputs are"),
        ({"f": [torch.zeros(3, 1)] * 2}, "model outputs are"),
        ({"f": [torch.zeros(3, 37).double()] * 2}, "model outputs are"),
        ({"f": [torch.zeros(3, 37)] * 3}, "model outputs are"),
        ({"table_f": torch.zeros(7, 5)}, "table_f has shape"),
        ({"table_i": torch.zeros(7, 3, dtype=torch.int32)}, "table_i has shape"),
        ({"status": torch.zeros(2, dtype=torch.int32)}, "status has shape"),
        ({"seed": torch.zeros(2, dtype=torch.int64)}, "seed has shape"),
        ({"mask": torch.zeros(2, 37), "known": torch.zeros(3, 37)}, "mask has shape"),
        ({"slots": torch.zeros(2, 3, 37)}, "slots has shape"),
        ({"model_input": torch.zeros(3, 36)}, "model_input has shape"),
        ({"model_input": torch.zeros(6, 37)}, "model_input has shape"),
        ({"model_input": torch.zeros(3, 37, dtype=torch.int32)}, "model_input has shape"),
        ({"table_f": torch.zeros(7, 34).double()}, "table_f has shape"),
        ({"status": torch.zeros(3)}, "status has shape"),
        ({"seed": torch.zeros(3, dtype=torch.int32)}, "seed has shape"),
        ({"stage": torch.zeros(3, dtype=torch.int64)}, "stage has shape"),
        ({"scale": torch.zeros(3)}, "scale has shape"),
        ({"noise_scale": torch.zeros(1)}, "noise_scale has shape"),
        ({"mask": torch.zeros(37)}, "mask has shape"),
        ({"known": torch.zeros(3, 37).double()}, "known has shape"),
        ({"mask": torch.zeros(3, 37)}, "mask or known is given without the other"),
        ({"known": torch.zeros(3, 37)}, "mask or known is given without the other"),
        ({"noise": [torch.zeros(3, 37)] * 2}, "noise is"),
        ({"f": [torch.zeros(7, 37)]}, "model outputs are"),
        ({"x_out": torch.zeros(37, 3).t()}, "x_out is"),
        ({"x_out": torch.zeros(3, 1)}, "x_out is"),
        ({"noise": [torch.zeros(3, 1)]}, "noise is"),
    ],
)
def test_what_does_not_fit_is_refused(change, sentence):
    _, given = ready(BASE)
    before = given["x"].clone()
    with pytest.raises(ValueError, match=f"^step_: {sentence}"):
        STEP(*(given | change).values())
    assert same(given["x"], before)


@pytest.mark.parametrize("name", ["x", "slots", "table_f", "f"])
def test_what_requires_grad_is_refused(name):
    _, given = ready(BASE)
    given[name] = (
        [v.requires_grad_() for v in given[name]] if name == "f" else given[name].requires_grad_()
    )
    with pytest.raises(RuntimeError, match=r"step_: an argument requires grad, .*differentiable"):
        STEP(*given.values())
