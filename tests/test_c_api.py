"""The C interface, as C programs and foreign callers meet it: the header, the binary, a saved plan,
hostile input.
"""

import ctypes
import dataclasses
import hashlib
import json
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from c import build, interface, rows
from c.interface import Library, StatusError

import fastsample as fs

pytestmark = pytest.mark.slow  # builds libfastsample
HEADER = build.ROOT / "csrc/include/fastsample/fastsample.h"
B, D, SEED = 2, 1031, 7  # not a multiple of a block, nor of four


@pytest.fixture(scope="module")
def made():
    return build.installed()


@pytest.fixture(scope="module")
def lib(made):
    return Library(next(made[0].glob("lib*/libfastsample.so")))


def plans():
    """Plans that differ in shape: history, noise, churn, classifier-free guidance."""
    flow, vp = fs.schedules.Flow(shift=3.0), fs.schedules.VP()
    make = fs.solvers.SOLVERS
    return {
        "dpmpp_2m": make["dpmpp_2m"](flow, fs.grids.uniform(flow, 6), prediction="flow"),
        "dpmpp_2m_sde": make["dpmpp_2m_sde"](vp, fs.grids.karras(vp, 5), prediction="eps"),
        "unipc": make["unipc"](vp, fs.grids.karras(vp, 6), prediction="v"),
        "guided": fs.guidance.guided(
            make["euler_ancestral"](vp, fs.grids.karras(vp, 4), prediction="eps")
        ),
    }


@pytest.fixture(scope="module")
def plan_files(tmp_path_factory):
    folder, found = tmp_path_factory.mktemp("plans"), plans()
    for name, plan in found.items():
        plan.save(folder / f"{name}.fsplan")
    return {name: (plan, folder / f"{name}.fsplan") for name, plan in found.items()}


# -- header and binary -----------------------------------------------------------------------------
@pytest.mark.parametrize(
    "command", ["gcc -std=c99", "gcc -std=c17", "g++ -x c++ -std=c++11", "g++ -x c++ -std=c++20"]
)
def test_header_is_plain_c_and_cpp(command, tmp_path):
    source = tmp_path / "twice.c"
    include = '#include "fastsample/fastsample.h"\n'
    source.write_text(
        f"{include}{include}int main(void) {{ return fs_abi_version() - FS_ABI_VERSION; }}\n"
    )
    build.run(
        *command.split(),
        "-pedantic",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-fsyntax-only",
        f"-I{HEADER.parents[1]}",
        source,
    )


def test_every_function_of_the_header_is_exported_and_nothing_else(made):
    declared = set(re.findall(r"^FS_API [^;]*?(fs_\w+)\(", HEADER.read_text(), re.M))
    symbols = build.run("nm", "-D", "--defined-only", next(made[0].glob("lib*/libfastsample.so")))
    exported = {line.split()[-1] for line in symbols.splitlines()}
    assert declared == exported and len(declared) > 14


def test_build_info_is_json(lib):
    info = json.loads(lib.fs_build_info())
    assert (
        info["version"] == fs.__version__ == lib.fs_version().decode()
        and info["abi"] == lib.dll.fs_abi_version() == 1
    )
    assert "-ffp-contract=off" in info["flags"] and info["isa"] in ("baseline", "avx2", "avx512")


VERSION_1 = {  # sizes for ever: callers compiled then go on
    "Dims": 24,
    "Info": 80,
    "RowInfo": 200,
    "StepArgs": 400,
    "NoiseArgs": 64,
    "MomentsArgs": 296,
    "CostArgs": 152,
}


def test_a_caller_of_version_1_keeps_working(made):
    assert build.run(made[1] / "version_1") == "as in version 1\n"


@pytest.mark.parametrize("name", VERSION_1)
def test_every_size_of_a_struct_since_version_1_is_accepted(lib, plan_files, name):
    handle = lib.parse(plan_files["dpmpp_2m"][1].read_bytes())
    numbers = [ctypes.byref(ctypes.c_int64()) for _ in range(2)]
    one = np.ones(1)
    call = {
        "Dims": lambda v: lib.fs_table_size(v, *numbers),
        "Info": lambda v: lib.fs_plan_info(handle, v),
        "RowInfo": lambda v: lib.fs_plan_row(handle, 0, ctypes.byref(v)),
        "StepArgs": lib.fs_step,
        "NoiseArgs": lib.fs_noise_fill,
        "MomentsArgs": lib.fs_moments,
        "CostArgs": lib.fs_cost_matrix,
    }[name]
    values = {
        "StepArgs": {"groups": 1, "copies": 1, "table_rows": 1}
        | {k: interface.address(one) for k in ("table_f", "table_i")},
        "MomentsArgs": {"P": 1},
        "CostArgs": {"terms": 1, "p": 2.0},
    }.get(name, {})
    kind = getattr(interface, name)
    first, own = VERSION_1[name], ctypes.sizeof(kind)
    for size in range(first, own + 1):
        args = kind(**values)
        args.struct_size = size
        call(args)
        assert args.struct_size == size
    for size in (0, first - 1, own + 1):
        args.struct_size = size
        with pytest.raises(StatusError, match=f"struct_size is {size}; set it to sizeof, {own} in"):
            call(args)
    lib.fs_plan_free(handle)


# -- plans -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_plan_packs_as_python_packs_it(lib, plan_files, dtype):
    for plan, path in plan_files.values():
        handle = lib.parse(path.read_bytes())
        wide = dict(S=plan.S + 2, G=plan.G + 1, L=plan.L + 1, K=plan.K + 2, E=plan.E + 1)
        for dims, want in (({}, plan.table(dtype)), (wide, plan.padded(**wide).table(dtype))):
            got = lib.pack(handle, dtype, **dims)
            assert all(np.array_equal(g, w) for g, w in zip(got, want, strict=True))
        note = json.loads(lib.fs_plan_note(handle))
        assert note["solver"] == plan.note["solver"] and lib.sha256(handle) == plan.sha256
        lib.fs_plan_free(handle)


def test_packed_plans_one_after_the_other_are_one_table(lib, plan_files):
    """A plan's row i is row (rows before it) + i there, and its last row holds."""
    names, dims = ("unipc", "dpmpp_2m_sde"), dict(S=4, G=1, L=1, K=0, E=1)
    handles = [lib.parse(plan_files[name][1].read_bytes()) for name in names]
    tables = [lib.pack(handle, np.float32, **dims) for handle in handles]
    both = [np.concatenate(parts) for parts in zip(*tables, strict=True)]
    rng, before = np.random.default_rng(0), 0
    for F, I in tables:  # noqa: E741
        for i in range(len(F)):
            start = [
                rng.standard_normal(size).astype(np.float32) for size in ((B, D), (4, B, D), (B, D))
            ]
            results = []
            for (f, words), number in (((F, I), i), (both, before + i)):
                x, slots, out = (v.copy() for v in start)
                sizes = dict(batch=B, pool=B, outputs=B, elements=D, table_rows=len(f))
                given = dict(table_f=f, table_i=words, x=x, slots=slots, f=[out])
                lib.fs_step(
                    interface.step_args(dims, one_row=1, row_number=number, **sizes, **given)
                )
                results.append((x, slots))
            assert all(np.array_equal(a, b) for a, b in zip(*results, strict=True))
        assert all(np.array_equal(a, b) for a, b in zip(results[1], start, strict=False))
        before += len(F)
    for handle in handles:
        lib.fs_plan_free(handle)


def test_rows_and_entries(lib, plan_files):
    plan, path = plan_files["dpmpp_2m"]
    handle, row, entries = lib.parse(path.read_bytes()), interface.RowInfo(), []
    for i in range(plan.rows):
        lib.fs_plan_row(handle, i, ctypes.byref(row))
        assert (row.call, row.du, row.dv, row.reads) == (plan.call[i], *plan.dst[i], plan.reads[i])
        assert (row.p, row.q, row.c, row.t[0], row.alpha, row.sigma) == (
            plan.p[i],
            plan.q[i],
            plan.c[i],
            plan.t[i, 0],
            plan.alpha[i],
            plan.sigma[i],
        )
        entries += [i] * row.entry
    assert tuple(entries) == plan.entries
    lib.fs_plan_free(handle)


def test_a_coefficient_beyond_float32_is_refused(lib):
    plan = plans()["dpmpp_2m"]
    M = np.array(plan.M)
    M[1, 0, 0] = 1e39
    handle = lib.parse(dataclasses.replace(plan, M=M).to_bytes())
    with pytest.raises(StatusError, match="row 1 .*beyond float32; pack as FS_F64") as error:
        lib.pack(handle, np.float32)
    assert error.value.status == interface.E_UNSUPPORTED
    lib.fs_plan_free(handle)


NOTES = [
    (b'{"a": 1}', True),
    (b' {"a" : [1, -0.5e-3, true, false, null, "\\u00e9\\n", {}]} ', True),
    (b'{"a": 1e-999}', True),
    (b"{}", True),
    (b'{"\xc3\xa9": "\xf0\x9f\x98\x80\\ud83d\\ude00"}', True),
    (b'{"a": ' + b"[" * 31 + b"]" * 31 + b"}", True),
    (b"", False),
    (b"[]", False),
    (b'{"a": NaN}', False),
    (b'{"a": Infinity}', False),
    (b'{"a": 1e999}', False),
    (b'{"a": 1, "a": 2}', False),
    (b'{"a": 1, "\\u0061": 2}', False),
    (b'{"a": 01}', False),
    (b'{"a": 1.}', False),
    (b'{"a": +1}', False),
    (b'{"a": 1,}', False),
    (b'{"a": "\\ud800"}', False),
    (b'{"a": "\xed\xa0\x80"}', False),
    (b'{"a": "\xc0\xaf"}', False),
    (b'{"a": "\xff"}', False),
    (b'{"a": "\x01"}', False),
    (b'{"a": "\\x"}', False),
    (b'{"a": 1} x', False),
    (b'{"a": ' + b"[" * 32 + b"]" * 32 + b"}", False),
    (b'{"a"', False),
    (b"\xef\xbb\xbf{}", False),
]


@pytest.mark.parametrize(("note", "sound"), NOTES, ids=[str(k) for k in range(len(NOTES))])
def test_both_parsers_agree_on_a_note(lib, note, sound):
    good = plans()["dpmpp_2m"].to_bytes()
    size = int.from_bytes(good[48:56], "little")
    data = signed(
        good[:48] + len(note).to_bytes(8, "little") + bytes(32) + good[88 : len(good) - size] + note
    )
    if sound:
        assert fs.Plan.from_bytes(data).rows and lib.fs_plan_free(lib.parse(data)) is None
        return
    with pytest.raises(fs.PlanError):
        fs.Plan.from_bytes(data)
    with pytest.raises(StatusError, match="note") as error:
        lib.parse(data)
    assert error.value.status == interface.E_FORMAT


def signed(data):
    return data[:56] + hashlib.sha256(data[:56] + data[88:]).digest() + data[88:]


def test_hostile_input_under_sanitizers(plan_files):
    """A plan cut at every byte, with every bit flipped, signed again or not; every argument of
    every function spoilt.
    """
    small = fs.schedules.VP()
    path = plan_files["dpmpp_2m"][1].with_name("small.fsplan")
    fs.solvers.SOLVERS["dpmpp_2m_sde"](small, fs.grids.karras(small, 1), prediction="eps").save(
        path
    )
    done = build.run(
        build.sanitized(),
        path,
        env=build.environment(
            ASAN_OPTIONS="allocator_may_return_null=1", UBSAN_OPTIONS="print_stacktrace=1"
        ),
    )
    assert int(done.split()[0]) > 10_000


# -- a saved plan in C against Python's numbers ----------------------------------------------------
def model(x, branch):
    return (np.float32(0.3) + np.float32(0.1) * np.float32(branch)) * x - np.float32(0.1)


def emulated(plan, first_seed):
    """x after every row, [R, B, D]: the plan in NumPy float32."""
    F, I = plan.table(np.float32)  # noqa: E741
    dims, states = (plan.S, plan.G, plan.L, plan.K, plan.E), np.empty((plan.rows, B, D), np.float32)
    scale = np.arange(plan.K, dtype=np.float32) + 2
    for b in range(B):
        x = rows.normals(first_seed + b, 0, D)
        slots = [np.zeros(D, np.float32)] * plan.S
        given = None
        for i in range(plan.rows):
            f = [
                model(given, g) if plan.call[i] >= 0 else np.full(D, np.nan, np.float32)
                for g in range(plan.G)
            ]
            draw = lambda k, i=i, b=b: rows.normals(first_seed + b, int(np.uint32(I[i, 7 + k])), D)
            x, written, given, _, _ = rows.one_row(dims, F[i], I[i], x, slots, f, draw, scale=scale)
            slots = [written.get(s, slot) for s, slot in enumerate(slots)]
            states[i, b] = x
    return states


@pytest.mark.parametrize("name", ["dpmpp_2m", "dpmpp_2m_sde", "unipc", "guided"])
def test_a_saved_plan_runs_in_c_bit_for_bit(made, plan_files, name, tmp_path):
    plan, path = plan_files[name]
    build.run(made[1] / "plan_run", path, tmp_path / "states.bin", B, D, SEED)
    got = np.fromfile(tmp_path / "states.bin", np.float32).reshape(plan.rows, B, D)
    want = emulated(plan, SEED)
    assert got.tobytes() == want.tobytes() and np.isfinite(got).all() and np.ptp(got[-1]) > 0


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("name", ["dpmpp_2m", "dpmpp_2m_sde", "unipc", "guided"])
def test_the_same_run_in_python_has_the_same_bits(plan_files, name, backend):
    plan, want = plan_files[name][0], emulated(plan_files[name][0], SEED)
    run = fs.Run(plan, shape=(B, D), seed=SEED, guidance=[2.0] if plan.K else None, backend=backend)
    while not run.done:
        assert run.x.numpy().tobytes() == want[run.row - 1].tobytes()
        outputs = [torch.from_numpy(model(run.model_input.numpy(), g)) for g in range(plan.G)]
        run.step(outputs[0] if plan.G == 1 else outputs)
    assert run.x.numpy().tobytes() == want[-1].tobytes()


def test_the_example_server_serves_each_request_as_if_alone(made, plan_files, tmp_path):
    plan, path = plan_files["dpmpp_2m_sde"]
    printed = build.run(made[1] / "server", path, 7, 3, D, tmp_path / "served.bin").splitlines()
    served = np.fromfile(
        tmp_path / "served.bin", np.dtype([("number", np.int32), ("x", np.float32, D)])
    )
    assert sorted(served["number"]) == list(range(7)) and len(printed) == 7
    # no two side by side: rows were mixed
    assert len({tuple(re.findall(r"tick (\d+)", line)) for line in printed}) == 7
    for request in served:
        build.run(made[1] / "plan_run", path, tmp_path / "alone.bin", 1, D, request["number"])
        assert (
            np.fromfile(tmp_path / "alone.bin", np.float32)[-D:].tobytes() == request["x"].tobytes()
        )


def test_the_example_server_refuses_a_plan_that_starts_from_an_image(made, plan_files, tmp_path):
    path = tmp_path / "image.fsplan"
    plan_files["dpmpp_2m"][0].remake(start=2).save(path)
    done = subprocess.run(
        [made[1] / "server", path, "1", "1", "4", tmp_path / "served.bin"],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (
        1,
        f"server: {path} starts from an image; a plan made without start= is accepted\n",
    )


def test_a_file_that_is_no_plan_is_named(lib, tmp_path):
    path = tmp_path / "no.fsplan"
    path.write_bytes(bytes(100))
    with pytest.raises(StatusError, match=rf"^fs_plan_load: {path}: .*first 8 bytes") as error:
        lib.fs_plan_load(str(path).encode(), ctypes.byref(ctypes.c_void_p()))
    assert error.value.status == interface.E_FORMAT


@pytest.mark.parametrize("arguments", [[], ["no.fsplan", "states.bin", "1", "4", "0"]])
def test_the_c_program_says_what_is_wrong(made, arguments, tmp_path):
    done = subprocess.run(
        [made[1] / "plan_run", *arguments], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode != 0 and re.search("usage|cannot be opened", done.stderr)


def test_a_freed_plan_is_seen(lib, plan_files):
    handle = lib.parse(plan_files["dpmpp_2m"][1].read_bytes())
    lib.fs_plan_free(handle)
    with pytest.raises(StatusError, match="not a live plan") as error:
        lib.fs_plan_info(handle, interface.Info())
    assert error.value.status == interface.E_HANDLE


def test_the_last_error_belongs_to_its_thread(lib):
    seen = []
    with pytest.raises(StatusError):
        lib.parse(b"x")
    thread = threading.Thread(target=lambda: seen.append(lib.dll.fs_last_error()))
    thread.start()
    thread.join()
    assert seen == [b""] and b"cut or not a plan" in lib.dll.fs_last_error()


def test_a_forked_child_runs_alone(made, tmp_path):
    """libgomp's threads do not survive a fork; a child that waited for them would hang."""
    script, library = tmp_path / "fork.py", str(next(made[0].glob("lib*/libfastsample.so")))
    script.write_text(f"""
import os, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import numpy as np
from c.interface import Library, NoiseArgs, address
lib, out = Library({library!r}), np.empty(1 << 18, np.float32)
fill = lambda: lib.fs_noise_fill(NoiseArgs(batch=1, elements=out.size, out=address(out), threads=2))
fill()
before, out[:] = out.copy(), 0
child = os.fork()
fill()
if child == 0:
    os._exit(0 if (out == before).all() else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
""")
    build.run(sys.executable, script, timeout=60)
