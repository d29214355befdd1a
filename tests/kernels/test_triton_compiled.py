"""Triton's kernels compiled for GPUs that are not here, by the calls that would launch them: no
fused multiply-add where bits are promised, nothing spilled, one variant of the step for a run.
"""

import gc
import re
import subprocess
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import test_step_op
import torch
import triton
from cases import BASE, lying, make, pooled
from triton.backends import nvidia
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

import fastsample as fs
from fastsample.kernels import backend as choices
from fastsample.kernels import triton as backend
from fastsample.runtime import step_op

pytestmark = pytest.mark.slow
ARCHITECTURES = (80, 90, 100, 120)
TABLE = Path(__file__).with_name("triton_registers.txt")
TOOL = Path(nvidia.__file__).parent / "bin" / "cuobjdump"
ZEROS = torch.zeros(1 << 22)


class Driver:
    """Stands in for the driver of a GPU: what a launch asks before it compiles."""

    def __init__(self, target):
        self.get_current_target = lambda: target
        self.get_current_device = lambda: target.arch
        self.get_current_stream = lambda device: 0


@pytest.fixture
def compiled(monkeypatch, tmp_path):
    """target, or NVIDIA's number -> the list of (name, kernel) that calls of the backend compile
    for it from then on, in place of launching them.
    """
    made, run = [], JITFunction.run

    def compile_(self, *arguments, warmup, **options):
        made.append((self.fn.__name__, run(self, *arguments, warmup=True, **options)))

    def start(target):
        target = GPUTarget("cuda", target, 32) if isinstance(target, int) else target
        triton.runtime.driver.set_active(Driver(target))
        return made

    monkeypatch.setattr(JITFunction, "run", compile_)
    monkeypatch.setattr(triton.runtime.driver, "_active", None)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    return start


def fused(ptx):
    """Fused multiply-adds, packed ones too; whole numbers have another word, mad."""
    return len(re.findall(r"\bfma\.\w", ptx))


def test_every_form_of_a_fused_multiply_add_is_counted():
    forms = ("fma.rn.f32", "fma.rn.f32x2", "fma.rn.ftz.f32", "fma.rn.f64", "fma.rn.bf16x2")
    assert fused("\n".join(f"\t{form} \t%r1, %r2, %r3, %r4;" for form in forms)) == len(forms)
    assert fused("mad.lo.s32 %r1; add.rn.f32 %r2; mul.rn.f32 %r3; .file fma") == 0


def step(elements=4096, more=None, C=1, **changes):
    x, slots, f, *table, row, at = (setup := make(replace(BASE, elements=elements, **changes))).args
    last = lambda v: v if C == 1 else v.unflatten(1, (-1, C)).mT
    x, slots, f = last(x), list(map(last, slots)), list(map(last, f))
    options = {k: v for k, v in setup.options.items() if k != "noise"} | (more or {})
    held = pooled(x, slots, *table, row, at, **options)
    backend.bind(held)(None, *lying(held, f), held.x, held.x)


def moments(P, Q, dtype):
    backend.moments(*([ZEROS.to(dtype).view(4, -1)] * count for count in (P, Q)))


def jumps(count, n=64, D=4096):
    return [ZEROS[: n * D].view(1, n, D)] * count, torch.zeros(count, n, n)


def costs(count, p, **sizes):
    U, c = jumps(count, **sizes)
    backend.cost_matrix(U, c, U[0], torch.zeros(c.shape[1], 2, dtype=torch.int32), p)


def gathered(count, **sizes):
    U, c = jumps(count, **sizes)
    backend.cost_gather(U, c, torch.zeros(c.shape[2], dtype=torch.int32))


CALLS = {
    "step S=1 G=1": lambda: step(S=1, G=1, L=0, K=0),
    "step S=10 G=1, bfloat16": lambda: step(S=10, G=1, L=0, K=0, model=torch.bfloat16),
    "step S=4 G=2 L=1, all that a pool may hold": lambda: step(
        S=4, mask=True, weights=True, bound=True, noise_scale=True
    ),
    "step of 16 groups": lambda: step(groups=16),
    "step of 8 channels that lie last": lambda: step(C=8),
    "fill": lambda: backend.fill(ZEROS.view(4, -1), torch.zeros(4, dtype=torch.int64), 3),
    "moments 2x4": lambda: moments(2, 4, torch.float32),
    "moments 2x4, float64": lambda: moments(2, 4, torch.float64),
    "cost_matrix of 2": lambda: costs(2, 2.0),
    "cost_matrix of 3, p=2.5": lambda: costs(3, 2.5),
    "cost_gather of 2": lambda: gathered(2),
}
PLACED = {"place": torch.zeros(3, dtype=torch.int32), "stage": torch.zeros(3, dtype=torch.int32)}
PLACED |= {"f_index": torch.zeros(2, 3, dtype=torch.int32), "copies": 2}
# Triton takes a size of 1 for a constant.
ODD = {
    "step of one number": lambda: step(1, batch=1, S=1, G=1, L=1, K=1),
    "step of groups of one": lambda: step(2, batch=1, groups=2, mask=True),
    "step of float64, placed": lambda: step(37, PLACED, state=torch.float64, model=torch.float16),
    "step without slots": lambda: step(37, S=0, G=1, L=2, K=0, bound=True, state=torch.float64),
    "fill of one": lambda: backend.fill(ZEROS[:1], torch.zeros(1, dtype=torch.int64), 1),
    "moments of one": lambda: backend.moments([ZEROS[:1].view(1, 1)], []),
    "cost_matrix of one": lambda: costs(1, 1.0, n=1, D=1),
    "cost_gather of one": lambda: gathered(1, n=1, D=1),
}
# In float64 a product of two float32 is exact, and costs promise a bound.
MAY_FUSE = {("moments 2x4", "chunk_sums"), *((call, "cost_tiles") for call in CALLS)}


def resources(kernel, folder):
    """(registers, bytes of stack) of a compiled kernel."""
    path = folder / "kernel.cubin"
    path.write_bytes(kernel.asm["cubin"])
    words = [TOOL, "--dump-resource-usage", path]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    return tuple(int(v) for v in re.search(r"REG:(\d+) STACK:(\d+)", said).groups())


# Hopper's in `make test-slow`; `make soak` has all
@pytest.mark.parametrize(
    "architecture",
    [pytest.param(n, marks=[pytest.mark.soak] * (n != 90)) for n in ARCHITECTURES],
)
def test_kernels_compile_for_every_architecture(compiled, architecture, tmp_path):
    made, lines = compiled(architecture), []
    for call, use in CALLS.items():
        made.clear()
        use()
        assert made
        for name, kernel in made:
            registers, stack = resources(kernel, tmp_path)
            assert stack == 0, f"{call}, {name}"
            assert (fused(kernel.asm["ptx"]) > 0) == ((call, name) in MAY_FUSE), f"{call}, {name}"
            lines.append(f"{call} | {name} | {registers}")
    print("\n".join(lines))  # what to keep, where a change is meant
    head, *kept = TABLE.read_text().splitlines()
    head, column = head.split(" | "), ARCHITECTURES.index(architecture)
    assert head[-1] == "registers of " + " ".join(f"sm_{n}" for n in ARCHITECTURES)
    if head[0] == f"triton {triton.__version__}":  # of another one they may differ
        assert lines == [re.sub(r"[\d ]+$", f" {row.split()[column - 4]}", row) for row in kept]


@pytest.mark.parametrize("call", ODD)
def test_sizes_of_one_and_what_else_a_pool_may_hold(compiled, call):
    made = compiled(90)
    ODD[call]()
    assert made and all(fused(kernel.asm["ptx"]) == 0 for name, kernel in made if name == "step")


def test_kernels_compile_for_rocm(compiled, tmp_path):
    """No register is spilled; fused are only the roots and quotients that are rounded once."""
    made = compiled(GPUTarget("hip", "gfx942", 64))
    for call in ("step S=1 G=1", "step of 16 groups", "fill", "moments 2x4", "cost_matrix of 2"):
        CALLS[call]()
    CALLS["cost_gather of 2"]()
    for name, kernel in made:
        asm = kernel.asm["amdgcn"]
        assert re.search(r"\.vgpr_spill_count: +(\d+)", asm)[1] == "0"
        if name == "gather":
            assert not re.search(r"\bv_(pk_)?(fma|mad|mac|fmac)_\w*f(16|32|64)", asm)
    assert not re.search(r"\bv_(pk_)?(fma|mad|mac|fmac)_\w*f(16|32|64)", made[0][1].asm["amdgcn"])


def test_a_launch_holds_no_memory_of_its_pool(compiled):
    """So that the op remembers it, as `use` promises."""
    compiled(90)
    x, slots, f, *table, row, at = (setup := make(BASE)).args
    options = {k: v for k, v in setup.options.items() if k != "noise"}
    held = pooled(x, slots, *table, row, at, **options)
    launch = choices.bound(choices.Choice("triton", "", backend), held)
    gone = [weakref.ref(v) for v in vars(held).values() if isinstance(v, torch.Tensor)]
    del held, setup, options
    gc.collect()
    assert hasattr(launch, "use") and len(gone) > 5 and not any(ref() is not None for ref in gone)


def test_the_op_binds_its_memory_once_and_launches_once_a_row(compiled, monkeypatch):
    """What a compiled loop calls, here with rows, outputs and an end of their own."""
    monkeypatch.setattr(backend, "INTERPRETED", True)
    monkeypatch.setenv(choices.VARIABLE, "triton")
    monkeypatch.setattr(choices, "_chosen", {})
    monkeypatch.setattr(step_op, "_bound", {})
    made, (_, given) = compiled(90), test_step_op.ready(BASE)
    for row in (3, 4, 3):
        given |= {"row": row, "f": [v.clone() for v in given["f"]]}
        step_op.STEP(*(given | {"x_out": torch.empty(3, 37)}).values())
    assert len(step_op._bound) == 1 and [name for name, _ in made] == ["step"] * 3
    assert len({id(kernel) for _, kernel in made}) == 1


@pytest.mark.parametrize("name", ["dpmpp_2m", "unipc", "dpmpp_2m_sde"])
def test_a_run_compiles_its_step_once(compiled, monkeypatch, name):
    """Rows that call no model, start from the caller's noise or draw: one variant, one launch a
    row.
    """
    monkeypatch.setattr(backend, "INTERPRETED", True)
    made = compiled(90)
    schedule = fs.schedules.Flow()
    grid = fs.grids.uniform(schedule, 6)
    plan = fs.solvers.SOLVERS[name](schedule, grid, prediction="flow")
    for noise in (torch.ones(2, 3, 8), torch.ones(2, 8, 3).mT):
        made.clear()
        run = fs.Run(plan, noise=noise, seed=7, backend="triton", check=None)
        while not run.done:
            run.step(noise * 0)
        launches = [kernel for what, kernel in made if what == "step"]
        assert len(launches) == len(made) == plan.rows - 1
        assert len({id(kernel) for kernel in launches}) == 1
