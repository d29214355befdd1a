"""mutate.py [SECONDS [WORKERS]]: breaks csrc/cuda by rule, one place at a time, and says which
breaks the emulated tests notice.

The list is made from the text: every comparison by one; every index, whether of an array, of an
address, of a bit or given to a function, by its neighbour; every coordinate of a thread by its
sibling; every barrier and exchange taken out; every rounding step altered: multiply-adds fused or
taken apart, sums begun at +0, float64 held as float32, quotients by a reciprocal, contraction on.
Fences, which the emulation cannot see, are counted apart. A mutant that changes nothing stands in
equivalent.json with its reason; one that stands there and is noticed fails, as do fewer than MOST
noticed of the rest. Verdicts are kept in build/mutants.json as long as what they rest on is what it
was, so that a run that is cut off goes on later.
"""

import atexit
import hashlib
import json
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from random import Random
from shutil import rmtree
from signal import SIGXCPU
from threading import Lock
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from c import build as builds  # noqa: E402
from c.build import BUILD, ROOT  # noqa: E402
from emulate import build  # noqa: E402

CUDA, HERE = ROOT / "csrc/cuda", Path(__file__).parent
EQUIVALENT, VERDICTS = HERE / "equivalent.json", BUILD / "mutants.json"
MOST, LEAST_IN_ALL, SECONDS_A_RUN = 0.9, 100, 20
# source -> the kind of cases that run it, and how many
CASES = {
    "fill": ("fills", 80),
    "moments": ("moments", 120),
    "cost_matrix": ("costs", 260),
    "cost_gather": ("costs", 90),
    "step": ("steps", 1000),
    "step_any": ("steps", 1000),
    "step_uniform": ("steps", 1000),
}
# header -> the sources that are compiled with it, one after the other until it is noticed
INCLUDED = {
    "launch.h": ("fill",),
    "quad.h": ("step_any", "cost_matrix"),
    "rules.h": ("fill", "cost_matrix", "step_uniform"),
    "step_any.h": ("step_any",),
    "step_uniform.h": ("step_uniform",),
}
TESTED = {f"{source}.cu": (source,) for source in CASES} | INCLUDED
BY_ONE = {" < ": " <= ", " >= ": " > ", " > ": " >= ", " <= ": " < "}
SIBLING = {
    "threadIdx.x": "blockIdx.x",
    "blockIdx.x": "blockIdx.y",
    "blockIdx.y": "blockIdx.x",
    "blockIdx.z": "blockIdx.y",
    "blockDim.x": "gridDim.x",
    "gridDim.x": "blockDim.x",
    "gridDim.y": "gridDim.x",
}
DECLARED = (
    r"\s*((constexpr|static|__shared__|const) )*[\w:<>]+[ *&]+(\w+({})?, )*\w+\[.*\] ?[=;,\[]"
)
# What a bracket opens whose last operand is an index.
INDEXED = r"""(?x) (?<=[\w\])]) \[ (?![\]&=]) | \b (?: row_of | place_of | branch_row | band_of
    | draw_of | slot_at | branch_at | d\.slot | d\.branch | d\.noise | walk | load_wide<T,\ F>
    | number<F> | normals_quad<\w+> ) \("""
POINTER = r"""(?x) (?: static_cast<[^()]*\*>\([^()]*\) | \b(?:out|slots|known|room) | =\ from
    | a\.table_i | a\.status | job\.\w+ | row\.(?:x_in|x|u|preview|slot\[k\]) )\ \+\ """
NUMBER = r"[\w.]+(?:\[(?:[^\[\]]|\[\w+\])*\])*"
SUM = rf"({NUMBER}) \+ ({NUMBER}) \* ({NUMBER}|\([^()]*\))"
# rule -> [(pattern, what takes its place)]
RULES = {
    "bound": [(re.escape(old), new) for old, new in BY_ONE.items()],
    "index": [
        (POINTER, r"\g<0>1 + "),
        (r">> (\w+) & 1\b", r">> (\1 + 1) & 1"),
        (r"(\(\w+ \* a\.\w+ \+ \w+)(?=\) \* a\.D)", r"\1 + 1"),
        (r"\bcolumn\((?=\d)", r"\g<0>1 + "),
        (r"(?<= )[bijqr] = (?=[\w(]+ [-+*/%] )", r"\g<0>1 + "),
    ],
    "coordinate": [(re.escape(old), new) for old, new in SIBLING.items()],
    "barrier": [
        (r"__sync(threads|warp)\(\);", ";"),
        (r"__syncthreads_or(?=\()", ""),
    ],
    "exchange": [(r"__shfl_xor_sync\(\w+, ([^,]+), \w+\)", r"(\1)")],
    "fence": [(r"__threadfence\w*\(\);", ";"), (r'asm volatile\("" ::: "memory"\);', ";")],
    "rounding": [
        (SUM, r"fused(\1, \2, \3)"),
        (r"(?<=return )fmaf?\((\w+), (\w+), (\w+)\)", r"\1 * \2 + \3"),
        (r"-0\.0", "0.0"),
        (r"(?<= == 0 \? )(?=x\[)", "0 + "),
        (r"\bdouble (?=\w+(?:[,)\[]| = ))", "float "),
        (r"wide<double>\(", "wide<float>("),
        (r"(?<=static_cast<)double(?=>\()", "float"),
        (r"(?<=static_cast<)T(?=>\((?:v\)|a\.))", "float"),
        (r" / (high|static_cast<double>\([\w.]+\))", r" * (1 / \1)"),
    ],
}
# Of floating-point numbers only: elsewhere it is no C++.
FUSED = "fused(s, x, y)=[](auto c, auto a, auto b) { static_assert(std::is_floating_point_v<"
FUSED += "decltype(a * b)>); return std::fma(a, b, c); }(s, x, y)"
FLAGS = ["-x", "c++", "-std=c++17", "-fPIC", "-fno-math-errno", "-fno-strict-aliasing", "-w"]
FLAGS += ["-D", FUSED, "-I", HERE, "-I", ROOT / "csrc", "-I", ROOT / "csrc/include"]
AROUND = "cuda_runtime.h", "core/error.h", "core/philox.h", "core/sample.h"  # once for all mutants


class Way(NamedTuple):
    """Of building a mutant."""

    flags: list
    tree: str = "emulated"  # what it is linked with
    link: list = []


PLAIN = Way(["-O0", "-ffp-contract=off"])
# Where one number too many is seen. Not optimised: else what lies outside a thread's own arrays is
# gone before.
SANITIZED = Way(
    ["-O0", "-fsanitize=address,bounds", "-fno-sanitize-recover=bounds"],
    "emulated-sanitized",
    ["-fsanitize=address,undefined"],
)
CONTRACTED = Way(["-O2", "-mfma", "-ffp-contract=fast"])  # gcc does it from there on
UNCHANGED, CONTRACTION = "unchanged", "contraction on"


def changes(code):
    """(rule, the line after it) for every place of a line of code."""
    for rule, pairs in RULES.items():
        for pattern, new in pairs:
            for found in re.finditer(pattern, code):
                yield rule, code[: found.start()] + found.expand(new) + code[found.end() :]
    for found in re.finditer(INDEXED, code):
        if not re.match(DECLARED, code):
            depth, at = 1, found.end()
            while depth and at < len(code):
                depth += (code[at] in "([{") - (code[at] in ")]}")
                at += 1
            if not depth:
                yield "index", f"{code[: at - 1]} + 1{code[at - 1 :]}"


def mutants(file):
    """[(name, rule, text of the mutant)] of a file of csrc/cuda."""
    lines = (CUDA / file).read_text().split("\n")
    for n, line in enumerate(lines):
        code = line.split("//")[0]
        if not code.strip() or re.match(r"\s*(#|template|using|struct|static_assert)", code):
            continue
        for rule, changed in changes(code):
            name = f"{file}: {rule}: {code.strip()} -> {changed.strip()}"
            yield name, rule, "\n".join([*lines[:n], changed, *lines[n + 1 :]])
    if file.endswith(".cu"):
        yield f"{file}: rounding: {CONTRACTION}", "rounding", "\n".join(lines)


@cache
def around(*flags):
    """The flags that put what all sources begin with before them, compiled once."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(rmtree, folder)
    header = folder / "around.h"
    header.write_text("".join(f'#include "{name}"\n' for name in AROUND))
    words = ["c++-header" if word == "c++" else word for word in [*FLAGS, *flags]]
    builds.run("g++", *words, "-o", f"{header}.gch", header)
    return "-include", header


def compiled(folder, source, file, text, way):
    """The library with this file in place of its own; None where it is no C++."""
    for path in CUDA.glob("*.*"):
        (folder / path.name).write_text(text if path.name == file else path.read_text())
    own, library, words = folder / "own.o", folder / "library.so", around(*way.flags)
    command = ["g++", *words, *FLAGS, *way.flags, "-c", folder / f"{source}.cu", "-o", own]
    if subprocess.run(command, capture_output=True).returncode:
        return None
    objects = (BUILD / way.tree / "CMakeFiles").glob("fs_c*.dir/**/*.o")
    own = [own, *(path for path in objects if path.stem != f"{source}.cu")]
    builds.run("g++", "-shared", "-fopenmp", *way.link, "-o", library, *own)
    return library


def verdict_of(source, file, text, way):
    """How the mutant was noticed by the cases of one source, None = not, or "no C++"."""
    kind, count = CASES[source]
    with tempfile.TemporaryDirectory() as folder:
        library = compiled(Path(folder), source, file, text, way)
        if library is None:
            return "no C++"
        words = dict(sanitizer=way is SANITIZED, seconds=SECONDS_A_RUN)
        done = build.run_alone(library, kind, 0, count // (4 if way is SANITIZED else 1), **words)
    if done.returncode == -SIGXCPU:
        return "hangs"
    if done.returncode:
        known = r"AddressSanitizer|out of bounds|emulate: [\w ]+"
        seen = re.search(known, done.stdout + done.stderr)
        return seen[0] if seen else "crash" if done.returncode < 0 else "differs"
    return None


def verdict(file, name, text):
    """How the mutant was noticed, or "survived", or "no C++"."""
    for way in [CONTRACTED] if CONTRACTION in name else [SANITIZED, PLAIN]:
        for source in TESTED[file]:
            how = verdict_of(source, file, text, way)
            if how:
                return how
    return "survived"


def digest(file):
    """Of what the verdicts of a file rest on."""
    kinds = {CASES[source][0] for source in TESTED[file]}
    own = [CUDA / f"{source}.cu" for source in CASES if CASES[source][0] in kinds]
    own += [HERE / f"{kind}.py" for kind in kinds] + [HERE / "memory.py", HERE / "run.py"]
    around = [CUDA.glob("*.h"), HERE.glob("*.h"), HERE.glob("*.cpp"), HERE.parent.glob("c/*.py")]
    around += [ROOT.glob(f"csrc/{folder}/*.*") for folder in ("core", "cpu")]
    files = sorted({*own, *(path for paths in around for path in paths)})
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def report(made, verdicts, equivalent):
    """Print the tables and the survivors; sentences of what is wrong."""
    wrong, counted, kinds, files = [], Counter(), Counter(), defaultdict(Counter)
    for name, rule, _ in made:
        how, file = verdicts.get(name), name.split(":")[0]
        if rule == UNCHANGED:
            wrong += [] if how in (None, "survived") else [f"{name}, and yet {how}"]
            continue
        if how in (None, "no C++") or rule == "fence":
            counted["fence" if rule == "fence" else how or "not run"] += 1
            continue
        if name in equivalent:
            counted["equivalent"] += 1
            files[file]["equivalent"] += 1
            if how != "survived":
                wrong.append(f"noticed, and said to be equivalent: {name}")
            continue
        kinds[rule, how != "survived"] += 1
        files[file]["noticed" if how != "survived" else "survived"] += 1
        counted[how] += 1
        if how == "survived":
            print(f"survived  {name}")
    for rule in RULES:
        seen, missed = kinds[rule, True], kinds[rule, False]
        if seen + missed:
            print(f"{rule:10} {seen} of {seen + missed} noticed")
    for file, of in sorted(files.items()):
        print(f"{file:15} " + ", ".join(f"{how} {n}" for how, n in sorted(of.items())))
    print(", ".join(f"{how} {n}" for how, n in counted.most_common()))
    seen = sum(n for (_, noticed), n in kinds.items() if noticed)
    told = sum(kinds.values())
    print(f"{len(made) - len(CASES)} by rule; noticed {seen} of {told} that change something")
    if seen < MOST * told:
        wrong.append(f"fewer than {MOST:.0%} were noticed")
    known = {name for name, _, _ in made}
    return wrong + [f"equivalent to nothing: {name}" for name in equivalent if name not in known]


def listed():
    """All mutants, each with a name of its own, in an order in which a part tells of all."""
    made, named = [], Counter()
    sources = [file for file in TESTED if file.endswith(".cu")]
    whole = [(f"{file}: {UNCHANGED}", UNCHANGED, (CUDA / file).read_text()) for file in sources]
    for name, rule, text in (mutant for file in TESTED for mutant in mutants(file)):
        named[name] += 1
        made.append((f"{name} #{named[name]}" if named[name] > 1 else name, rule, text))
    Random(0).shuffle(made)
    each = Counter(name.split(":")[0] for name, _, _ in made)
    if len(made) < LEAST_IN_ALL or set(each) != set(TESTED):
        sys.exit(f"mutate: {len(made)} mutants, by file {dict(each)}; the rules have lost the text")
    return whole + made


def main(seconds=float("inf"), workers=2):
    build.tree(), build.sanitized()
    made, begun, lock = listed(), time.monotonic(), Lock()
    state = json.loads(VERDICTS.read_text()) if VERDICTS.exists() else {}
    digests = {file: digest(file) for file in TESTED}
    verdicts = {}
    for name, (old, how) in state.items():
        if old == digests.get(name.split(":")[0]):
            verdicts[name] = how

    def tried(mutant):
        name, rule, text = mutant
        if name in verdicts or rule == "fence" or time.monotonic() - begun > seconds:
            return
        how = verdict(name.split(":")[0], name, text)
        with lock:
            verdicts[name] = how
            kept = {n: (digests[n.split(":")[0]], v) for n, v in verdicts.items()}
            VERDICTS.write_text(json.dumps(kept))

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(tried, made))
    wrong = report(made, verdicts, json.loads(EQUIVALENT.read_text()))
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
