"""What nvcc and ptxas make of csrc/cuda, as a table: python tools/ptx_table.py [--write]

For each kernel and architecture: registers of a thread and bytes of its local memory (spilled or
not), fused multiply-adds in the PTX, FFMA in the machine code (those in square roots and divisions
included), 16-byte loads and stores, and how many 16-byte loads are asked for before the first
number loaded is used, with what that puts in flight on a processor. Needs nvcc; without cuobjdump
(it comes with CUDA's binary utilities, and in triton's wheel) the columns of machine code are
empty.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "docs" / "kernels.md"
ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "sm_120")
SOURCES = ("step_uniform", "step_any", "fill", "moments", "cost_matrix", "cost_gather")
FLAGS = ("-std=c++17", "-O3", "--fmad=false", "-Xptxas", "-v", "-Werror", "all-warnings")
REGISTERS = 65536  # of a processor
ABOUT = """\
This page shows, for whoever works on the kernels, what the compiler makes of them: registers of a
thread and bytes of its local memory (0: nothing is spilled), fused multiply-adds in PTX and in
machine code (FFMA; those within square roots and divisions included), 16-byte loads and stores, and
how many loads are asked for before the first is used. Measured times are not here: none was taken
on a GPU yet.
"""
THREADS = {"moments": 64, "step": 128, "cost": 128, "fill": 128}  # of a block, at most


class Kernel(NamedTuple):
    """A kernel as compiled; ffma, ahead None: not known without cuobjdump."""

    name: str
    registers: int
    local: int
    fused: int
    loads: int
    stores: int
    ffma: int | None
    ahead: int | None

    @property
    def in_flight(self) -> float | None:
        """KB of the loads ahead of all threads that are resident together on a processor."""
        block = next((n for start, n in THREADS.items() if self.name.startswith(start)), 128)
        rounded = -(-self.registers // 8) * 8
        threads = min(2048, REGISTERS // (rounded * block) * block)
        return None if self.ahead is None else self.ahead * 16 * threads / 1024


def cuobjdump() -> str | None:
    """The program on PATH, or the one in triton's wheel."""
    spec = find_spec("triton")
    inside = spec and Path(spec.origin).parent / "backends/nvidia/bin/cuobjdump"
    return shutil.which("cuobjdump") or (str(inside) if inside and inside.exists() else None)


def run(*command: object) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def short(symbol: str) -> str:
    """step_uniform<float, 4, 2, true> of a mangled name."""
    name = run("c++filt", symbol).strip()
    name = name.replace("fs::", "").replace("(anonymous namespace)::", "").removeprefix("void ")
    return re.sub(r"\((?!anonymous).*", "", name)


def entries(text: str, start: str) -> dict[str, str]:
    """{symbol: what stands from it to the next} of a text whose parts begin with a pattern."""
    parts = re.split(start, text)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def loads_ahead(code: str) -> int:
    """16-byte loads before the first instruction that uses what one of them has loaded."""
    loaded, count = set(), 0
    for line in re.findall(r"/\*[0-9a-f]{4,}\*/\s+(.*?);", code):
        words = re.findall(r"\bR(\d+)\b", line)
        if re.search(r"\bLDG\S*\.128", line):
            loaded |= {int(words[0]) + k for k in range(4)}
            count += 1
        elif not re.search(r"\bLD[GC]", line) and any(int(word) in loaded for word in words[1:]):
            break
    return count


def compiled(source: str, architecture: str) -> list[Kernel]:
    """The kernels of csrc/cuda/<source>.cu."""
    includes = [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'csrc/include'}", f"-arch={architecture}"]
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "out.cubin")
        keep = ("--keep", "--keep-dir", folder, "-cubin", "-o", cubin)
        said = run("nvcc", *FLAGS, *includes, *keep, ROOT / f"csrc/cuda/{source}.cu")
        ptx = next(Path(folder).glob("*.ptx")).read_text()
        dump = cuobjdump()
        code = run(dump, "--dump-sass", cubin) if dump else ""
    reports = entries(said, r"Compiling entry function '(\S+)'")
    texts, codes = entries(ptx, r"\.entry (\w+)\("), entries(code, r"Function : (\S+)")
    made = []
    for symbol, report in reports.items():
        count = lambda pattern, text: len(re.findall(pattern, text))
        text, own = texts[symbol], codes.get(symbol)
        wide = r"\b{}\.global(\.\w+)*\.(v4\.[fbu]32|v2\.[fbu]64)"
        local = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores", report)
        kernel = Kernel(
            short(symbol),
            int(re.search(r"Used (\d+) registers", report)[1]),
            max(map(int, local.groups())),
            count(r"\b(?:fma|mad)(?:\.[a-z0-9]+)*\.f(?:32x2|32|64)\b", text),
            count(wide.format("ld"), text),
            count(wide.format("st"), text),
            None if own is None else count(r"\bFFMA", own),
            None if own is None else loads_ahead(own),
        )
        made.append(kernel)
    return sorted(made)


def table(architectures=ARCHITECTURES, sources=SOURCES) -> list[str]:
    """The lines of the table: each cell has one number, or one for each architecture in turn."""
    rows: dict[str, list[Kernel]] = {}
    for architecture in architectures:
        for source in sources:
            for kernel in compiled(source, architecture):
                rows.setdefault(kernel.name, []).append(kernel)
    columns = ("registers", "local", "fused", "ffma", "loads", "stores", "ahead", "in_flight")
    lines = [
        f"Architectures, in turn where they differ: {', '.join(architectures)}.",
        "",
        "| kernel | registers | local memory | fused in PTX | FFMA | 16-byte loads | 16-byte "
        "stores | loads ahead | KB in flight a processor |",
        "|---|" + "---|" * len(columns),
    ]
    shown = lambda v: "" if v is None else f"{v:.0f}"
    for name, kernels in rows.items():
        cells = [[shown(getattr(kernel, column)) for kernel in kernels] for column in columns]
        cells = [each[0] if len(set(each)) == 1 else " ".join(each) for each in cells]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return lines


def example(*words: object) -> None:
    """Compile examples/server.c for --device cuda."""
    run("nvcc", "-DSERVER_CUDA", f"-I{ROOT / 'csrc/include'}", ROOT / "examples/server.c", *words)


def main() -> None:
    if not shutil.which("nvcc"):
        raise SystemExit("make ptx: nvcc was not found; nothing is compiled for a GPU here")
    with tempfile.TemporaryDirectory() as folder:
        example("-c", "-o", Path(folder, "server.o"))
    version = re.search(r"release ([\d.]+)", run("nvcc", "--version"))[1]
    head = ["# The CUDA kernels, compiled", "", ABOUT, f"By nvcc {version}: `make ptx`.", ""]
    text = "\n".join([*head, *table()]) + "\n"
    print(text)
    if "--write" in sys.argv[1:]:
        OUT.write_text(text)


if __name__ == "__main__":
    main()
