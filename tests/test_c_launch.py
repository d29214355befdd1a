"""fastsample._C as the runners use it: a launch by row number, on addresses or on the tensors
themselves, and the energy of a noise.
"""

import ctypes
import importlib.util
import math

import pytest
import torch
from cases import same

import fastsample as fs
from fastsample.kernels.reference import noise

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("fastsample._C") is None, reason="built without _C"
)
if importlib.util.find_spec("fastsample._C"):
    from fastsample import _C
SHAPE = (3, 2, 5, 7)


def plans():
    flow, vp = fs.schedules.Flow(shift=3.0), fs.schedules.VP()
    make = fs.solvers.SOLVERS
    return {
        "dpmpp_2m": make["dpmpp_2m"](flow, fs.grids.uniform(flow, 5), prediction="flow"),
        "sde": make["dpmpp_2m_sde"](vp, fs.grids.karras(vp, 4), prediction="eps"),
        "guided": fs.guidance.guided(make["heun"](vp, fs.grids.karras(vp, 4), prediction="eps")),
    }


class Bound:
    """A `_C.Step` over tensors of its own, and those tensors."""

    def __init__(self, plan, state=torch.float32, model=torch.float32, **more):
        F, I = plan.table("float32" if state == torch.float32 else "float64")  # noqa: E741
        B, D = SHAPE[0], math.prod(SHAPE[1:])
        make = torch.Generator().manual_seed(0)
        self.x = torch.randn(SHAPE, generator=make).to(state)
        self.slots = torch.randn((plan.S, *SHAPE), generator=make).to(state)
        self.f = torch.randn((plan.G * B, *SHAPE[1:]), generator=make).to(model)
        self.status = torch.zeros(B, dtype=torch.int32)
        self.rows = torch.arange(plan.rows, dtype=torch.int32).repeat_interleave(B)
        self.held = [torch.tensor(F), torch.tensor(I), torch.full((B, plan.K), 2.0).to(state)]
        table_f, table_i, scale = (t.data_ptr() for t in self.held)
        self.kernel = _C.Step(
            batch=B,
            elements=D,
            table_rows=plan.rows,
            table_f=table_f,
            table_i=table_i,
            scale=scale if plan.K else 0,
            x=self.x.data_ptr(),
            slots=self.slots.data_ptr(),
            status=self.status.data_ptr(),
            row=self.rows.data_ptr(),
            state_dtype=str(state)[6:],
            model_dtype=str(model)[6:],
            **{name: getattr(plan, name) for name in "SGLKE"},
            **more,
        )
        self.outputs = [part.data_ptr() for part in self.f.split(B)]

    def row(self, i):
        return self.rows.data_ptr() + 4 * SHAPE[0] * i

    def result(self):
        return self.x, self.slots, self.status


LAUNCHES = {
    "at": lambda b, i: b.kernel.at(i, *b.outputs),
    "move": lambda b, i: b.kernel.move(i, b.f.data_ptr(), 0, 0),
    "move, bound f": lambda b, i: (b.kernel.set("f", b.outputs), b.kernel.move(i, 0, 0, 0)),
    "take": lambda b, i: b.kernel.take(i, b.f) is True,
    "carry": lambda b, i: b.kernel.carry(i, b.f, None, None) is True,
}


@pytest.mark.parametrize("how", LAUNCHES)
@pytest.mark.parametrize("name", ["dpmpp_2m", "sde", "guided"])
def test_every_launch_is_the_call_with_a_row_vector(how, name):
    _C.use_exchange(torch.Tensor)
    plan = plans()[name]
    for state, model in (("float32", "float32"), ("float64", "bfloat16"), ("float32", "float16")):
        want, got = (Bound(plan, getattr(torch, state), getattr(torch, model)) for _ in range(2))
        got.kernel.expect(got.f, branches=plan.G)
        for i in range(plan.rows):
            want.kernel.set("row", want.row(i))
            want.kernel.at(-1, *want.outputs)
            assert LAUNCHES[how](got, i) is not False
        assert all(same(g, w) for g, w in zip(got.result(), want.result(), strict=True))
        assert not same(got.x, Bound(plan, getattr(torch, state)).x)


def test_the_state_may_be_read_and_written_elsewhere():
    plan = plans()["dpmpp_2m"]
    want, got = Bound(plan), Bound(plan)
    got.kernel.expect(got.f)
    got.kernel.expect_state(got.x)
    start, end = got.x.clone(), torch.full(SHAPE, torch.nan)
    got.x.fill_(torch.nan)
    want.kernel.at(2, *want.outputs)
    assert got.kernel.carry(2, got.f, start, None) and same(got.x, want.x)
    want.kernel.at(3, *want.outputs)
    before = got.x.clone()
    assert got.kernel.carry(3, got.f, None, end)
    assert same(end, want.x) and same(got.x, before) and same(got.slots, want.slots)
    # and by address; a row that asks no model takes none
    want.x.copy_(start), got.x.fill_(0), end.fill_(torch.nan)
    want.kernel.at(0)
    got.kernel.move(0, 0, start.data_ptr(), end.data_ptr())
    assert same(end, want.x) and not got.x.any()
    end.fill_(torch.nan)
    assert got.kernel.carry(0, None, start, end) and same(end, want.x)
    assert not got.status.any()


def refused():
    f = torch.randn(SHAPE)
    return {
        "another shape": torch.randn(SHAPE[0], math.prod(SHAPE[1:])),
        "float64": f.double(),
        "bfloat16": f.bfloat16(),
        "int32": f.int(),
        "not contiguous": torch.randn(*SHAPE[:2], SHAPE[3], SHAPE[2]).transpose(2, 3),
        "channels last": f.contiguous(memory_format=torch.channels_last),
        "a subclass": torch.nn.Parameter(f, requires_grad=False),
        "another device": f.to("meta"),
        "sparse": f.to_sparse(),
        "no memory": torch._efficientzerotensor(*SHAPE),
        "None": None,
        "a list": [f],
        "an array": f.numpy(),
    }


@pytest.mark.parametrize("what", refused())
def test_a_tensor_that_does_not_fit_is_not_taken(what):
    b, value = Bound(plans()["dpmpp_2m"]), refused()[what]
    assert b.kernel.take(2, b.f) is False  # nothing is expected yet
    b.kernel.expect(b.f)
    b.kernel.expect_state(b.x)
    before = [t.clone() for t in b.result()]
    assert b.kernel.take(2, value) is False
    if value is not None:
        assert b.kernel.carry(2, value, None, None) is False
        assert b.kernel.carry(2, b.f, value, None) is False
        assert b.kernel.carry(2, b.f, None, value) is False
    assert all(same(x, y) for x, y in zip(b.result(), before, strict=True))
    assert b.kernel.take(2, b.f) is True and not same(b.x, before[0])


def test_a_tensor_under_a_transform_is_not_taken():
    b, seen = Bound(plans()["dpmpp_2m"]), []
    b.kernel.expect(b.f)
    torch.vmap(lambda v: seen.append(b.kernel.take(2, v)) or v)(torch.stack([b.f, b.f]))
    torch.func.grad(lambda v: seen.append(b.kernel.take(2, v)) or v.sum())(b.f)
    with torch._subclasses.FakeTensorMode():
        seen.append(b.kernel.take(2, torch.empty(SHAPE)))
    assert seen == [False] * 3


def test_what_cannot_be_expected_is_refused():
    b = Bound(plans()["guided"])
    b.kernel.expect(b.f, branches=2)
    gaps = torch.empty(*b.f.shape, 2)[..., 0]
    for f, branches in ((b.f, 1), (b.f[:3], 2), (b.f.double(), 2), (gaps, 2)):
        with pytest.raises(
            ValueError, match=r"^Step.expect: the tensor has \d+ numbers; .*needed$"
        ):
            b.kernel.expect(f, branches)
    for branches in (0, 9):
        with pytest.raises(ValueError, match=f"^Step.expect: {branches} branches; 1 to 8 are acc"):
            b.kernel.expect(b.f, branches)
    with pytest.raises(
        ValueError, match=r"^Step.expect_state: the tensor has 420 numbers; .* 210 "
    ):
        b.kernel.expect_state(b.f)
    b.kernel.expect(b.f.transpose(2, 3), branches=2)  # another order of memory may be expected
    assert not b.kernel.take(1, b.f)
    with pytest.raises(TypeError, match=r"^Step.expect: no tensor of the type given to use_exch"):
        b.kernel.expect(b.f.numpy())


def test_a_type_without_a_fitting_exchange_table_is_refused():
    assert _C.use_exchange(torch.Tensor)[0] == 1
    with pytest.raises(
        NotImplementedError, match="'int'> has no __dlpack_c_exchange_api__; a tens"
    ):
        _C.use_exchange(int)
    table = (ctypes.c_uint32 * 32)(2, 7)  # major 2, and no function
    capsule = ctypes.pythonapi.PyCapsule_New
    capsule.restype, capsule.argtypes = (
        ctypes.py_object,
        [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p],
    )
    name = b"dlpack_exchange_api"
    for major, words in ((2, "DLPack 2.7"), (1, "view: no")):
        table[0] = major
        other = type(
            "Other", (), {"__dlpack_c_exchange_api__": capsule(ctypes.addressof(table), name, None)}
        )
        with pytest.raises(NotImplementedError, match=f"{words}.*; 1 with a view is accepted"):
            _C.use_exchange(other)
    with pytest.raises(ValueError, match="incorrect name"):
        _C.use_exchange(type("Other", (), {"__dlpack_c_exchange_api__": capsule(1, b"x", None)}))
    b = Bound(plans()["dpmpp_2m"])
    b.kernel.expect(b.f)  # the table of torch.Tensor is still the one in use


def test_fields_are_set_and_read_by_name():
    step = _C.Step(batch=3, device="cpu", t_dtype="float64", threads=2)
    assert (step.get("batch"), step.get("t_dtype"), step.get("threads")) == (3, 1, 2)
    for name in ("x_in", "x_out", "stage", "row_words", "stream", "one_row", "row_number"):
        step.set(name, 5)
        assert step.get(name) == 5 and step.copy().get(name) == 5
    with pytest.raises(
        AttributeError, match="Step: 'rows' is no argument of a step; the fields of"
    ):
        step.set("rows", 1)
    with pytest.raises(ValueError, match="Step: a size beyond 32 bits; check the sizes"):
        step.set("threads", 2**31)
    with pytest.raises(ValueError, match="step: 9 model outputs; at most 8 are accepted"):
        step.at(0, *range(9))


def test_a_device_that_is_not_there_is_refused():
    one = torch.ones(1, dtype=torch.float64)
    at = one.data_ptr()
    sizes = dict(batch=1, I=1, J=1, D=1)
    calls = (
        lambda **w: _C.noise_fill(out=at, batch=1, elements=1, **w),
        lambda **w: _C.moments(a=[at], b=[at], batch=1, elements=1, **w),
        lambda **w: _C.cost_matrix(U=[at], c=at, X=at, band=0, out=at, **sizes, **w),
        lambda **w: _C.cost_gather(
            U=[at], c=at, i_star=at, i_star_batch_stride=0, out=at, **sizes, **w
        ),
        lambda **w: Bound(plans()["dpmpp_2m"], **w).kernel.at(0),
    )
    for call in calls:
        one.zero_()
        call(device="cpu", stream=0)
        with pytest.raises(NotImplementedError, match="device is FS_CUDA; this library was built"):
            call(device="cuda")
        with pytest.raises(ValueError, match="device: 'tpu'; cpu and cuda are accepted"):
            call(device="tpu")


def test_a_stage_is_drawn_by_the_step_and_the_fill():
    seed, stage = torch.tensor([4, 5, 6]), torch.tensor([0, 1, -1], dtype=torch.int32)
    out = torch.empty(3, 70)
    _C.noise_fill(
        out=out.data_ptr(), batch=3, elements=70, id=9, seed=seed.data_ptr(), stage=stage.data_ptr()
    )
    assert same(out, noise.normal(seed, torch.full((3,), 9), 70, stage.long() & 0xFFFFFFFF))
    plan = plans()["sde"]
    plain, staged = (
        Bound(plan, seed=seed.data_ptr(), **w) for w in ({}, {"stage": stage.data_ptr()})
    )
    drawing = next(i for i in range(plan.rows) if plan.reads[i] >> (3 + plan.S + plan.G) & 1)
    for b in (plain, staged):
        b.kernel.at(drawing, *b.outputs)
    assert [same(plain.x[k], staged.x[k]) for k in range(3)] == [True, False, False]


# -- energy ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("n", [0, 1, 63, 64, 65, 4095, 4096, 4097, 100_003])
def test_energy_is_the_sum_of_squares(n, dtype):
    v = torch.randn(n, generator=torch.Generator().manual_seed(n)).to(dtype)
    name = str(dtype)[6:]
    want = math.fsum((v.double() ** 2).tolist())
    # 64 squares a lane in the sum's precision, then 6 halvings and the chunks in float64
    unit = 2.0**-53 if dtype == torch.float64 else 2.0**-24
    bound = 65 * unit / (1 - 65 * unit) + (6 + n / 4096 + 1) * 2.0**-52
    assert abs(_C.energy(v.data_ptr(), n, name) - want) <= bound * want
    for k in {0, n // 2, n - 1} if n else ():
        for poison, seen in ((math.nan, math.isnan), (-math.inf, math.isinf)):
            bad = v.clone()
            bad[k] = poison
            assert seen(_C.energy(bad.data_ptr(), n, name))
