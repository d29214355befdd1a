"""What the compilers make of csrc: symbols of the objects for one instruction set, and the headers
that host and device share.
"""

import re
import shutil
import subprocess
import sys

import pytest
from c import build


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
