"""The C interface, as foreign callers meet it: header and binary, plans, hostile input, errors."""

import ctypes
import dataclasses
import hashlib
import json
import re
import shutil
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from c import build, interface
from c.interface import Library, StatusError
from c.plans import plans

import fastsample as fs
from fastsample.plan import Plan

pytestmark = pytest.mark.slow  # builds libfastsample
HEADER = build.ROOT / "csrc/include/fastsample/fastsample.h"
GOLDEN = Path(__file__).parent / "golden"
B, D = 2, 1031  # not a multiple of a block, nor of four


@pytest.fixture(scope="module")
def made():
    return build.installed()


@pytest.fixture(scope="module")
def lib(made):
    return Library(next(made[0].glob("lib*/libfastsample.so")))


@pytest.fixture(scope="module")
def plan_files(tmp_path_factory):
    folder, found = tmp_path_factory.mktemp("plans"), plans()
    for name, plan in found.items():
        plan.save(folder / f"{name}.fsplan")
    made = {name: (plan, folder / f"{name}.fsplan") for name, plan in found.items()}
    return made | {path.stem: (Plan.load(path), path) for path in GOLDEN.glob("*.fsplan")}


# -- header and binary -----------------------------------------------------------------------------
COMPILERS = {
    "fastsample.h": ["gcc -std=c99", "gcc -std=c17", "g++ -x c++ -std=c++11"],
    "fastsample.hpp": ["g++ -x c++ -std=c++17", "g++ -x c++ -std=c++20"],
    "engine.hpp": ["g++ -x c++ -std=c++17", "g++ -x c++ -std=c++20"],
}
if shutil.which("clang++"):
    COMPILERS["fastsample.h"] += ["clang -std=c99"]
    COMPILERS["engine.hpp"] += ["clang++ -x c++ -std=c++17"]


@pytest.mark.parametrize(
    ("header", "command"), [(name, command) for name, all in COMPILERS.items() for command in all]
)
def test_headers_are_plain_c_and_cpp(header, command, tmp_path):
    source = tmp_path / "twice.c"
    include = f'#include "fastsample/{header}"\n'
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
        assert json.loads(lib.fs_plan_note(handle)) == plan.note
        assert lib.sha256(handle) == plan.sha256
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


def test_sizes_rows_and_entries(lib, plan_files):
    assert plan_files.keys() >= {"unipc_flow_guided", "unipc_inpaint", "heun_churn"}
    for plan, path in plan_files.values():
        handle, row, entries = lib.parse(path.read_bytes()), interface.RowInfo(), []
        info = interface.Info()
        lib.fs_plan_info(handle, info)
        assert all(getattr(info, size) == getattr(plan, size) for size in "SGLKE")
        assert (info.rows, info.operands, info.nfe) == (plan.rows, plan.W, plan.nfe)
        for i in range(plan.rows):
            lib.fs_plan_row(handle, i, ctypes.byref(row))
            got = (row.call, row.du, row.dv, row.reads)
            assert got == (plan.call[i], *plan.dst[i], plan.reads[i])
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
    (b'{"a": -' + b"1" * 4300 + b"}", True),
    (b'{"a": 0.' + b"0" * 500 + b"1}", True),
    (b'{"\xc3\xa9": "\xf0\x9f\x98\x80\\ud83d\\ude00"}', True),
    (b'{"a": ' + b"[" * 31 + b"]" * 31 + b"}", True),
    (b"", False),
    (b"[]", False),
    (b'{"a": NaN}', False),
    (b'{"a": Infinity}', False),
    (b'{"a": 1e999}', False),
    (b'{"a": ' + b"1" * 400 + b".0e-5}", False),
    (b'{"a": 0.' + b"0" * 400 + b"1e800}", False),
    (b'{"a": ' + b"1" * 4301 + b"}", False),
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


def test_a_file_that_is_no_plan_is_named(lib, tmp_path):
    path = tmp_path / "no.fsplan"
    path.write_bytes(bytes(100))
    with pytest.raises(StatusError, match=rf"^fs_plan_load: {path}: .*first 8 bytes") as error:
        lib.fs_plan_load(str(path).encode(), ctypes.byref(ctypes.c_void_p()))
    assert error.value.status == interface.E_FORMAT


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
