"""What the compilers make of csrc: symbols of the objects for one instruction set, and the headers
that host and device share.
"""

import os
import re
import shutil
import subprocess
import sys

import pytest
from c import build, once


def weak(paths):
    """Defined symbols that a linker may merge with another object's: W, V, u."""
    lines = build.run("nm", "--defined-only", *paths).splitlines()
    return [line for line in lines if re.search(r" [WVuwv] ", line)]


@pytest.mark.slow  # builds libfastsample
def test_nothing_compiled_for_one_instruction_set_can_serve_another():
    """A weak symbol is taken from whichever object comes first: AVX-512 code on a machine that has
    none.
    """
    build.installed()
    folder = build.BUILD / "c-library/CMakeFiles"
    objects = sorted(folder.glob("fs_cpu_*.dir/cpu/*.o"))
    assert len(objects) >= 7 and weak(objects) == []
    assert weak(sorted(folder.glob("fs_core.dir/*/*.o")))  # compiled once, so that it may


@pytest.mark.slow
def test_pkg_config_says_how_to_link_either_library_and_that_it_has_no_cuda(tmp_path):
    prefix, _ = build.installed()
    assert build.package(prefix)["cuda"] == "off"
    plan = build.ROOT / "tests/golden/heun_churn.fsplan"
    words = {"c99": [], "c++17": [tmp_path / "states.bin", 3, 5, 0, plan]}
    said = {"c99": r"as in version 1\n", "c++17": r"3 requests in \d+ ticks.*\n"}
    for standard, kind, program in build.linked(prefix, tmp_path):
        assert re.fullmatch(said[standard], build.run(program, *words[standard]))
        needed = re.findall(r"libfastsample\w*", build.run("readelf", "-d", program))
        assert len(needed) == (kind == "shared") * (1 if standard == "c99" else 2)


@pytest.mark.slow
def test_two_processes_that_build_one_tree_wait_for_each_other():
    """CMake itself does not: both would write one cache, and one of them read half of it."""
    shutil.rmtree(build.BUILD / "c-at-once", ignore_errors=True)
    line = "from c import build; build.cmake('csrc', 'c-at-once', *build.PLAIN, target='help')"
    both = [
        subprocess.Popen(
            [sys.executable, "-c", line],
            cwd=build.ROOT / "tests",
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in both:
        words = process.communicate()[1]
        assert process.returncode == 0, words


COUNTING = """#!/bin/sh
case " $* " in *" -E "*) ;; *) echo "$@" >> "$0.log";; esac
exec g++ "$@"
"""


@pytest.mark.slow
def test_a_text_is_compiled_once_for_each_set_of_flags(tmp_path, monkeypatch, capfdbinary):
    """Wherever it lies and whatever the macros are called that make it; a file of dependencies is
    written each time, and what was said of a text is said again.
    """
    monkeypatch.setattr(once, "KEPT", tmp_path / "kept")
    compiler, log = tmp_path / "cc", tmp_path / "cc.log"
    compiler.write_text(COUNTING)
    compiler.chmod(0o755)

    def compiled(folder, *flags, text='#include "h.h"\nint f() { return N; }', header=""):
        """(status, how often the compiler has run); the object as linkers read it."""
        here = tmp_path / folder
        here.mkdir(exist_ok=True)
        (here / "h.h").write_text(header)
        (here / "f.cpp").write_text(text)
        made, depends = here / "f.o", here / "f.d"
        where = ["-MD", "-MT", "f.o", "-MF", depends, "-o", made, "-c", here / "f.cpp"]
        status = once.main([str(word) for word in (compiler, f"-I{here}", *flags, *where)])
        if status == 0:
            assert " f() " in build.run("nm", "-C", made).replace("\n", " ") + " "
            assert str(here / "h.h") in depends.read_text()
        return status, len(log.read_text().splitlines())

    assert compiled("one", "-DN=3") == (0, 1)
    assert compiled("two", "-DN=M", "-DM=3", "-Werror") == (0, 1)
    assert compiled("one", "-DN=4") == (0, 2)
    assert compiled("two", "-DN=3", "-O2") == (0, 3)
    assert compiled("two", "-DN=3", header="int g();") == (0, 4)
    assert compiled("two", "-DN=3", "-g1") == (0, 5)  # whose object names its source
    assert compiled("one", "-DN=3", "-g1") == (0, 6)
    doubtful = {"text": '#include "h.h"\nint f() { int unused; return N; }'}
    capfdbinary.readouterr()
    for runs in (7, 8):
        assert compiled("one", "-DN=3", "-Wall", **doubtful) == (0, runs)
        assert b"unused" in capfdbinary.readouterr().err
    assert compiled("one", "-DN=3", "-Wall", "-Werror", **doubtful) == (1, 9)
    os.utime(next((tmp_path / "kept").glob("*.o")), (0, 0))
    assert compiled("one", "-DN=5") == (0, 10) and compiled("one", "-DN=5") == (0, 10)
    assert len(list((tmp_path / "kept").glob("*.o"))) == 6


DEVICE = r"""
#include "core/philox.h"
#include "core/sample.h"

__global__ void normals(float* out, uint64_t seed, uint32_t stage) {
  float four[4];
  fs::normals_tile<1>({seed, 1, stage}, [](int) { return uint64_t{threadIdx.x}; }, four);
  for (int k = 0; k < 4; ++k) out[4 * threadIdx.x + k] = four[k];
}

__global__ void look_up(fs_step_args a, int32_t* words, float* m, uint16_t* halves) {
  const int64_t b = threadIdx.x;
  const fs::Dims d = fs::dims_of(a);
  const float* row = static_cast<const float*>(a.table_f);
  words[b] = fs::check_sample(a, d, b);
  const float w = fs::branch_weight(a, d, row, b, 0), p = fs::state_weight(a, d, row, b);
  m[b] = fs::clamped(w * m[b] + p, 1.0f);
  halves[b] = fs::to_half(fs::from_bfloat(halves[b])) ^ fs::to_bfloat(fs::from_half(halves[b]));
}
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc was not found")
def test_shared_headers_compile_for_a_device(tmp_path):
    """And keep the order of operations there: nothing fused, nothing approximated."""
    source, ptx = tmp_path / "shared.cu", tmp_path / "shared.ptx"
    source.write_text(DEVICE)
    includes = [f"-I{build.ROOT / folder}" for folder in ("csrc", "csrc/include")]
    flags = ["-std=c++17", "-arch=sm_80", "--fmad=false", "-Werror", "all-warnings"]
    build.run("nvcc", "-ptx", *flags, *includes, source, "-o", ptx)
    text = ptx.read_text()
    assert text.count(".entry") == 2 and text.count("sqrt.rn.f32") == 2
    assert not re.search(r"\b(fma|mad)\.(rn|ftz|f)|approx|ftz|\bcall", text)


def test_nothing_is_compiled_for_this_machine_alone():
    """A wheel runs where it was not built; instruction sets are chosen when it runs."""
    names = [*build.ROOT.glob("csrc/**/CMakeLists.txt"), *build.ROOT.glob("csrc/**/*.cmake")]
    texts = [path.read_text() for path in (*names, build.ROOT / "setup.py")]
    assert len(texts) > 4 and not any(re.search(r"-m(arch|tune|cpu)=", text) for text in texts)
    assert any("-mavx2" in text for text in texts)
