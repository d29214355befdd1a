"""Triton's kernels in its interpreter: whole runs of every solver, and every address they use."""

import importlib.util
import shutil
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch
import triton
import triton.language as tl
from addresses import checked
from cases import BASE, DU, DV, READS_LO, launched, lying, make, pooled, same
from triton.runtime.errors import InterpreterError

import fastsample as fs
from fastsample.kernels import backend, reference, select
from fastsample.kernels.backend import bound
from fastsample.kernels.triton import dtype, noise

pytestmark = pytest.mark.interpreted
FOLDER = Path(backend.__file__).parent / "triton"
SCHEDULE = fs.schedules.Flow()


def run_of(name, wish, model_dtype):
    """(x, x0, model_input) after each of six steps of a solver, and the backend's name."""
    grid = fs.grids.uniform(SCHEDULE, 6)
    plan = fs.solvers.SOLVERS[name](SCHEDULE, grid, prediction="flow")
    noise = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(1))
    run = fs.Run(plan, noise=noise, seed=7, model_dtype=model_dtype, backend=wish)
    seen = []
    while not run.done:
        t = run.t.view(-1)[0].to(model_dtype)
        run.step(torch.tanh(run.model_input * 1.3) * (1 + t))
        seen += [v.clone() for v in (run.x, run.x0, run.model_input)]
    return seen, run._choice.name


@pytest.mark.parametrize("name", fs.solvers.SOLVERS)
def test_a_run_has_the_bits_of_the_reference(name):
    model = torch.bfloat16 if len(name) % 2 else torch.float32
    with checked():
        got, backend_of = run_of(name, "triton", model)
    want, _ = run_of(name, "reference", model)
    assert backend_of == "triton" and len(got) >= 18
    assert all(same(a, b) for a, b in zip(got, want, strict=True))


@triton.jit
def pair_kernel(words, out):
    e = tl.arange(0, 16)
    word = tl.load(words + e).to(tl.uint32)
    first, second = noise.box_muller(word, word)
    tl.store(out + e, first)
    tl.store(out + 16 + e, second)


def test_normals_at_every_quarter_turn_have_the_definitions_signs():
    """Of 0 too, which no seed is likely to draw."""
    words = torch.tensor([k * 2**30 + d for k in range(4) for d in (0, 1, 2**29 - 1, 2**29)])
    out = torch.empty(2, 16)
    pair_kernel[(1,)](words, out)
    want = reference.noise.box_muller(words, words)
    assert all(same(a, b) for a, b in zip(out, want, strict=True))
    assert (out == 0).any() and out[out == 0].signbit().any()


@triton.jit
def copy_kernel(source, out):
    e = tl.arange(0, 16)
    dtype.store(out, e, dtype.load(source, e, e < 16), e < 16)


@pytest.mark.parametrize("to", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")
def test_numbers_are_rounded_to_nearest_ties_to_even(to):
    """Ties to either side, the largest, those that round beyond it, infinity, NaN of any payload,
    the least.
    """
    words = [0x3F808000, 0x3F818000, 0x3F808001, 0x3F817FFF, 0x3F801000, 0x3F803000, 0xBF808000]
    words += [0x7F7FFFFF, 0x7F7F8000, 0x7F7F7FFF, 0x477FEFFF, 0x7F800000, 0x7F800001, 0xFF800000]
    words += [0x00008000, 0x80000000]
    given = torch.tensor(words).to(torch.uint32).view(torch.float32)
    out = torch.empty(16, dtype=to)
    copy_kernel[(1,)](given, out)
    assert same(out, given.to(to))
    back = torch.empty(16)
    copy_kernel[(1,)](out, back)
    assert same(back, out.float())


def test_moments_of_more_chunks_than_a_vector_holds(monkeypatch):
    """16 chunks of which a program takes 2, and 8 sums of a pair in vectors of 2."""
    # by its function: the file, imported first, would stand under the function's name
    own = sys.modules[import_module("fastsample.kernels.triton").moments.__module__]
    monkeypatch.setattr(own, "RUN", 2)
    monkeypatch.setattr(own, "WIDE", 2)
    generator = torch.Generator().manual_seed(2)
    a, b = ([torch.randn(1, 15 * 1024 + 5, generator=generator)] for _ in "ab")
    with checked():
        got = own.moments(a, b)
    assert all(same(x, y) for x, y in zip(got, reference.moments(a, b), strict=True))


def test_groups_are_counted_anew_at_every_launch():
    """Only one group is not finite, the last and then the first, after launches that were clean."""
    x, slots, f, numbers, words, row, at = (
        setup := make(replace(BASE, batch=1, elements=24, groups=3, S=0, G=1, L=0))
    ).args
    numbers[:], words[:] = 0.1, 0
    words[:, READS_LO], words[:, [DU, DV]] = 1, -1  # x' = x / 10
    options = {k: v for k, v in setup.options.items() if k != "noise"}
    held = pooled(x, slots, numbers, words, row, at, **options)
    launch = bound(select("step", "cpu", held.x.dtype, "triton"), held)
    f, _ = lying(held, f)
    for element, group in ((None, 0), (23, 2), (None, 0), (0, 0)):
        held.x.copy_(x)
        held.status.zero_()
        if element is not None:
            held.x[0, element] = torch.nan
        launch(None, f)
        word = 0 if element is None else 8 | int(row[0, group]) << 8
        assert held.status.tolist() == [word]


def test_the_rows_of_all_groups_are_looked_at():
    """130 groups, of which the last two have rows that are not in the table."""
    x, slots, f, numbers, words, row, at = (
        setup := make(replace(BASE, batch=1, elements=260, groups=130))
    ).args
    options = {k: v for k, v in setup.options.items() if k != "noise"}
    row[0, 128:] = torch.tensor([-1, 9])
    got, want = (
        launched(x, slots, f, numbers, words, row, at, **options, backend=name)
        for name in ("triton", "reference")
    )
    assert int(got.status) == -255  # a bad row, number -1
    assert all(same(a, b) for a, b in zip(got, want, strict=True))


# -- addresses -------------------------------------------------------------------------------------
def step(module, **changes):
    """Launches in which a row, place, output or slot is the first that does not exist."""
    x, slots, f, numbers, words, row, at = (setup := make(replace(BASE, L=1, **changes))).args
    words[0, DU] = at.S
    options = {k: v for k, v in setup.options.items() if k != "noise"}
    row[:] = torch.tensor([1, len(numbers), 0])
    held = pooled(x, slots, numbers, words, row, at, **options)
    for place, index in ((3, 0), (2, 3), (2, 2)):
        held.place = torch.tensor([place, 1, 0], dtype=torch.int32)
        held.f_index = torch.full((at.G, 3), index, dtype=torch.int32)
        module.bind(held)(None, *lying(held, f))


def fill(module):
    module.fill(torch.zeros(2, 37), torch.zeros(2, dtype=torch.int64), 3)


def moments(module):
    module.moments([torch.ones(2, 37)], [torch.ones(2, 37)] * 5)


def cost(module):
    band = torch.tensor([[0, 5]] * 3, dtype=torch.int32)
    module.cost_matrix([torch.ones(2, 3, 37)], torch.ones(1, 3, 5), torch.ones(2, 5, 37), band)


def gather(module):
    module.cost_gather(
        [torch.ones(2, 3, 37)], torch.ones(1, 3, 2), torch.tensor([2, 3], dtype=torch.int32)
    )


FAULTS = [
    (step, "step.py", "inside = e < part", "inside = e <= part"),
    (step, "step.py", "(place < size.pool)", "(place <= size.pool)"),
    (step, "sample.py", "(row < rows)", "(row <= rows)"),
    (step, "sample.py", "(taken < outputs)", "(taken <= outputs)"),
    (step, "sample.py", "(tl.load(written) < S)", "(tl.load(written) <= S)"),
    (fill, "noise.py", "e < elements)", "e <= elements)"),
    (moments, "moments.py", "at < elements", "at <= elements"),
    (moments, "moments.py", "if k < pairs:", "if k <= pairs:"),
    (moments, "moments.py", "(part * TAKE + t < Q)", "(part * TAKE + t <= Q)"),
    (cost, "cost_matrix.py", "inside = d < D\n", "inside = d <= D\n"),
    (cost, "cost_matrix.py", "column = tl.minimum(j, J - 1)", "column = tl.minimum(j, J)"),
    (cost, "cost_matrix.py", "inf\")), j < J)", "inf\")), j <= J)"),
    (gather, "cost_matrix.py", "(i < I)", "(i <= I)"),
    (gather, "cost_matrix.py", "nan\")), d < D)", "nan\")), d <= D)"),
]  # fmt: skip


@pytest.mark.parametrize("use", [step, fill, moments, cost, gather])
def test_clean_kernels_stay_within_their_tensors(use):
    with checked():
        use(import_module("fastsample.kernels.triton"))


@pytest.mark.parametrize("fault", range(len(FAULTS)))
def test_a_planted_fault_is_reported(fault, tmp_path, monkeypatch):
    use, file, before, after = FAULTS[fault]
    shutil.copytree(FOLDER, tmp_path / "kernels")
    path = tmp_path / "kernels" / file
    text = path.read_text()
    assert text.count(before) == 1, before
    path.write_text(text.replace(before, after))
    name = f"fastsample.kernels.planted_{fault}"
    spec = importlib.util.spec_from_file_location(name, tmp_path / "kernels" / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    with checked(), pytest.raises(InterpreterError, match="outside every tensor"):
        use(module)
