"""fs_step, noise and the cost matrix in C against NumPy: bits where bits are promised, on every
instruction set this machine has.
"""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from c import build, cases, rows
from c.interface import Library, NoiseArgs, StatusError, address
from golden.stages import GOLDEN_STAGES

pytestmark = pytest.mark.slow  # builds libfastsample
OPTIONS = (
    "place",
    "f_index",
    "scale",
    "seed",
    "noise_scale",
    "weights",
    "bound",
    "noise",
    "mask",
    "known",
    "preview",
    "stage",
    "x_in",
    "x_out",
    "one_row",
    "wide_times",
)
ISAS = ("baseline", "avx2", "avx512")


@pytest.fixture(scope="module")
def path():
    return next(build.installed()[0].glob("lib*/libfastsample.so"))


@pytest.fixture(scope="module")
def lib(path):
    return Library(path)


def random_cases(seed, count):
    """Cases of every kind: half of any row at all, half of the shapes that have a path of their
    own.
    """
    rng = np.random.default_rng(seed)
    for k in range(count):
        dims = tuple(
            int(rng.integers(low, high)) for low, high in ((0, 6), (1, 4), (0, 3), (0, 3), (0, 3))
        )
        groups, inner = ((1, None), (1, None), (3, 1), (3, 5))[rng.integers(4)]
        D = (
            groups * inner * int(rng.integers(1, 20))
            if groups > 1
            else int(rng.choice([0, 1, 3, 127, 1025, 2049, 2500]))
        )
        wish = {name: rng.random() < 0.4 for name in OPTIONS}
        dtype, model = str(rng.choice(["float32", "float64"])), str(rng.choice(list(cases.FLOATS)))
        if k % 2 and dims[0]:
            dtype, wish["bound"], wish["mask"] = "float32", False, False
            table = cases.fused_table(
                rng,
                int(rng.integers(0, dims[0] + 1)),
                dims[2] > 0 and rng.random() < 0.5,
                rng.random() < 0.6,
                dims,
                np.float32,
            )
        else:
            table = cases.random_table(rng, 3, dims, cases.FLOATS[dtype])
        B = int(rng.integers(1, 4))
        yield cases.Case(
            rng,
            dims,
            table,
            B=B,
            D=D,
            P=B + 2,
            dtype=dtype,
            model=model,
            groups=groups,
            inner=inner,
            copies=int(rng.integers(1, 3)),
            channels=int(rng.choice([0, *(k for k in (1, 2, 3, 5, 25, 625) if D % k == 0)])),
            **wish,
        )


def failures(lib, seed, count):
    found = []
    with np.errstate(all="ignore"):
        for k, case in enumerate(random_cases(seed, count)):
            got = case.clone()
            lib.fs_step(case.args(got))
            found += [f"case {k}: {name}" for name in cases.differences(got, case.expected())]
    return found


def test_random_rows_bit_for_bit(lib):
    assert failures(lib, 0, 150) == []


@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set_gives_the_same_bits(path, isa):
    flags = (
        set(Path("/proc/cpuinfo").read_text().split()) if Path("/proc/cpuinfo").exists() else set()
    )
    runs = isa == "baseline" or {"avx2": "avx2", "avx512": "avx512vl"}[isa] in flags
    script = (
        f"import sys, json; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_c_step "
        f"as t; lib = t.Library({str(path)!r}); "
        "print(json.dumps([json.loads(lib.fs_build_info())['isa'], t.failures(lib, 1, 60), "
        "t.noise_digest(lib)]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, "FASTSAMPLE_ISA": isa},
    )
    assert done.returncode == 0, done.stderr
    chosen, found, digest = json.loads(done.stdout)
    assert found == [] and digest == NOISE_DIGEST
    assert chosen == isa or not runs


def test_threads_do_not_change_a_bit(lib):
    rng = np.random.default_rng(3)
    dims, size = (2, 2, 1, 1, 1), 40_003
    case = cases.Case(
        rng,
        dims,
        cases.random_table(rng, 2, dims, np.float32, dense=True),
        B=3,
        D=size,
        scale=True,
        seed=True,
        preview=True,
    )
    results = []
    for threads in (1, 2, 3):
        got = case.clone()
        lib.fs_step(case.args(got, threads=threads))
        results.append(got)
    assert all(cases.differences(r, results[0]) == [] for r in results[1:])


def test_a_row_of_a_batch_is_the_row_alone(lib):
    rng = np.random.default_rng(4)
    dims = (2, 1, 1, 0, 1)
    case = cases.Case(
        rng, dims, cases.random_table(rng, 4, dims, np.float32), B=5, D=1500, seed=True
    )
    whole = case.clone()
    lib.fs_step(case.args(whole))
    for b in range(5):
        one = {
            n: [v[b : b + 1].copy() for v in a]
            if isinstance(a, list)
            else (a[:, b : b + 1] if n in ("slots", "model_input") else a[b : b + 1]).copy()
            for n, a in case.clone().items()
        }
        args = case.args(one)
        args.batch = args.pool = args.outputs = 1
        lib.fs_step(args)
        assert (
            one["x"][0].tobytes() == whole["x"][b].tobytes()
            and one["model_input"][0, 0].tobytes() == whole["model_input"][0, b].tobytes()
        )


def test_a_batch_at_one_row_is_its_samples_alone(lib):
    """Also where the batch runs as one long sample: bits, and the words of the samples to blame."""
    rng = np.random.default_rng(11)
    for k in range(60):
        dims = (int(rng.integers(0, 4)), int(rng.integers(1, 3)), int(rng.integers(0, 2)), 1, 1)
        names = ("preview", "one_row", "x_in", "x_out", "scale", "noise", "bound", "mask", "known")
        wish = {name: rng.random() < (0.5 if name in names[:5] else 0.1) for name in names}
        case = cases.Case(
            rng,
            dims,
            cases.random_table(rng, 3, dims, np.float32),
            B=int(rng.integers(2, 6)),
            D=int(rng.choice([1, 7, 32, 700])),
            copies=int(rng.integers(1, 3)),
            model=str(rng.choice(list(cases.FLOATS))),
            **wish,
        )
        a = case.arrays
        a["row"][:] = a["row"][0, 0]
        if "scale" in a and k % 3:
            a["scale"][:] = a["scale"][0]
        a["status"][0] = 5 << 8  # no fault: may be written
        if k % 2 == 1:
            x = a.get("x_in", a["x"])
            x[1, -1], x[0, 0], a["status"][0] = np.nan, np.inf, 4 | 9 << 8
        got = case.clone()
        with np.errstate(all="ignore"):
            want = case.expected()
        lib.fs_step(case.args(got, t_out=None))
        want["t_out"] = got["t_out"]
        assert cases.differences(got, want) == [], k


def test_a_row_number_outside_the_table_marks_every_sample(lib):
    rng = np.random.default_rng(12)
    dims = (1, 1, 0, 0, 1)
    case = cases.Case(rng, dims, cases.random_table(rng, 2, dims, np.float32), B=3, D=40)
    for number in (-1, 2, 2**31 - 1):
        for sizes in ({}, {"f": [None]}):
            got = case.clone()
            lib.fs_step(case.args(got, row=None, one_row=1, row_number=number, **sizes))
            assert got["status"].tolist() == [np.int32(np.uint32(1 | (number & 0xFFFFFF) << 8))] * 3
            assert got["x"].tobytes() == case.arrays["x"].tobytes()
    case.I[:, :4] = [
        [1 | 1 << 2, 0, 1, 0],
        [1, 0, 0, 0],
    ]  # row 0 reads m and with it f_1; row 1 only x
    case.arrays["row"][:, 0] = 0, 1, 0
    for word, words in ((0, [4, 0, 4]), (8 | 1 << 8, [8 | 1 << 8] * 3)):  # written once
        got = case.clone()
        got["status"][:] = word
        lib.fs_step(case.args(got, f=[None]))
        assert got["status"].tolist() == words


def test_the_word_names_the_first_group_with_the_fault(lib):
    """Whatever the number of threads that share the sample."""
    rng = np.random.default_rng(13)
    dims = (0, 1, 0, 0, 0)
    F, I = cases.random_table(rng, 4, dims, np.float32)  # noqa: E741
    I[:, :4] = [1, 0, 0, 0]
    case = cases.Case(rng, dims, (F, I), B=1, D=3 * 5 * 8000, groups=3, inner=5)
    case.arrays["row"][:] = [3, 1, 2]
    case.arrays["x"][0, [5 * 3 + 10, 5 * 3 * 7999 + 7]] = np.inf, np.nan  # of groups 2 and 1
    for threads in (1, 2, 3):
        got = case.clone()
        lib.fs_step(case.args(got, threads=threads))
        assert got["status"].tolist() == [8 | 1 << 8]
    case.arrays["row"][0, 2] = 9
    got = case.clone()
    lib.fs_step(case.args(got))
    assert got["status"].tolist() == [1 | 9 << 8]


def test_bad_indices_leave_their_sample_alone_and_say_so(lib):
    rng = np.random.default_rng(5)
    dims = (2, 2, 0, 0, 1)
    table = cases.random_table(rng, 2, dims, np.float32)
    # reads x, m and f_2 itself; only f_1 enters f
    table[1][:, 0], table[1][:, 2] = 1 | 1 << 3 | 1 << 6, 1
    case = cases.Case(rng, dims, table, B=6, D=300, P=6, place=True, f_index=True)
    a = case.arrays
    a["row"][1], a["place"][2], a["f_index"][0, 3], a["f_index"][1, 4] = 2, -1, 6, -1
    got, want = case.clone(), None
    lib.fs_step(case.args(got))
    assert list(got["status"] & 255) == [0, 1, 2, 4, 4, 0]
    assert list(got["status"][1:5] >> 8) == a["row"][1:5, 0].tolist()
    sound = [0, 5]
    for b in range(1, 5):
        if b != 2:
            k = a["place"][b]
            assert (
                got["x"][k].tobytes() == a["x"][k].tobytes()
                and got["slots"][:, k].tobytes() == a["slots"][:, k].tobytes()
            )
        assert (got["model_input"][0, b] == -7).all() and (got["t_out"][b] == -7).all()
    a["row"][1], a["place"][2], a["f_index"][0, 3], a["f_index"][1, 4] = 0, 0, 0, 0
    want = case.expected()
    for b in sound:
        k = a["place"][b]
        assert got["x"][k].tobytes() == want["x"][k].tobytes()


def test_slots_may_stand_apart(lib):
    """From one slot to the next slot_stride numbers: the bits of the slots side by side, and what
    stands between them is left alone.
    """
    rng = np.random.default_rng(9)
    dims, (B, D, apart) = (3, 1, 0, 0, 1), (2, 300, 37)
    case = cases.Case(rng, dims, cases.random_table(rng, 4, dims, np.float32), B=B, D=D, P=3)
    close, wide = case.clone(), case.clone()
    room = np.full((3, 3 * D + apart), -7, np.float32)
    room[:, : 3 * D] = close["slots"].reshape(3, -1)
    lib.fs_step(case.args(close))
    lib.fs_step(case.args(wide, slots=room, slot_stride=room.shape[1]))
    assert room[:, : 3 * D].tobytes() == close["slots"].tobytes() and (room[:, 3 * D :] == -7).all()
    assert all(np.array_equal(close[n], wide[n]) for n in ("x", "model_input", "status", "t_out"))
    for stride in (3 * D - 1, -1, 1 << 61):
        with pytest.raises(StatusError, match=f"fs_step: slot_stride.*{stride}"):
            lib.fs_step(case.args(case.clone(), slots=room, slot_stride=stride))


def test_absent_branches_are_never_read(lib):
    """f_index -1 skips a branch; a branch without memory may be asked for by nobody; poison in one
    sample stays there.
    """
    rng = np.random.default_rng(6)
    dims = (1, 2, 0, 0, 1)
    table = cases.random_table(rng, 1, dims, np.float32)
    table[1][:, :3] = [[1 | 1 << 2, 0, 3]]
    case = cases.Case(rng, dims, table, B=3, D=64, f_index=True)
    case.arrays["f_index"][:] = [[0, 1, 2], [-1, -1, -1]]
    case.arrays["x"][1, 7] = np.nan
    want, got = case.expected(), case.clone()
    args = case.args(got)
    args.f[1] = None
    lib.fs_step(args)
    assert (
        cases.differences(got, want) == []
        and list(got["status"]) == [0, 8, 0]  # of row 0
        and np.isfinite(got["x"][[0, 2]]).all()
    )
    got["f_index"][1, 2] = 0
    lib.fs_step(case.args(got, f=[got["f"][0], None]))
    assert got["status"][2] & 4


# -- noise -----------------------------------------------------------------------------------------
KNOWN = [  # Random123's known answers for philox4x32-10: counter, key, words
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
# of noise_digest(), for ever
NOISE_DIGEST = "07bac16937305ab7c29829cb117039c3b5222e748bc03e83399ee9fccbd9fd53"


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_philox_known_answers(counter, key, words):
    assert tuple(int(w) for w in rows.philox(counter, key)) == words


def fill(lib, seeds, noise_id, size, dtype=np.float32, stages=None):
    out, seed = np.empty((len(seeds), size), dtype), np.array(seeds, np.uint64)
    stage = None if stages is None else np.array(stages, np.uint32)
    lib.fs_noise_fill(
        NoiseArgs(
            dtype=int(dtype == np.float64),
            id=noise_id,
            batch=len(seeds),
            elements=size,
            seed=address(seed),
            stage=address(stage),
            out=address(out),
        )
    )
    return out


def noise_digest(lib):
    return hashlib.sha256(fill(lib, [0, 1, 2**63 + 5], 3, 100_003).tobytes()).hexdigest()


def test_noise_to_the_bit(lib):
    for seed, noise_id, size in ((0, 0, 5), (2**64 - 1, 2**32 - 1, 4099), (123, 7, 100_001)):
        want = rows.normals(seed, noise_id, size)
        assert fill(lib, [seed], noise_id, size)[0].tobytes() == want.tobytes()
        assert np.array_equal(fill(lib, [seed], noise_id, size, np.float64)[0], want.astype(float))
    assert noise_digest(lib) == NOISE_DIGEST


def test_a_stage_is_the_fourth_counter_word(lib):
    stages = (0, 1, 2**32 - 1)
    got = fill(lib, [5, 5, 5], 7, 1031, stages=stages)
    for k, stage in enumerate(stages):
        assert got[k].tobytes() == rows.normals(5, 7, 1031, stage=stage).tobytes()
    assert got[0].tobytes() == fill(lib, [5], 7, 1031)[0].tobytes()
    for seed, noise_id, stage in GOLDEN_STAGES:
        want = GOLDEN_STAGES[seed, noise_id, stage]
        got = fill(lib, [seed % 2**64], noise_id, 5, stages=[stage])
        assert tuple(got.view(np.uint32)[0].tolist()) == want
