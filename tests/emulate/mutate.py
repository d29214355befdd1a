"""mutate.py [SECONDS [WORKERS]]: breaks csrc/cuda by rule, one place at a time, and says which
breaks the emulated tests notice.

The list is made from the text: every comparison by one, every index by its neighbour, every
coordinate of a thread by its sibling, every barrier and exchange taken out, every rounding step
altered, contraction on. Fences, which the emulation cannot see, are counted apart. A mutant that
changes nothing stands in equivalent.json with its reason; one that stands there and is noticed
fails, as do fewer than MOST noticed of the rest. Verdicts are kept in build/mutants.json as long as
the kernels and the tests are what they were, so that a run that is cut off goes on later.
"""

import hashlib
import json
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from threading import Lock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from c import build as builds  # noqa: E402
from c.build import BUILD, ROOT  # noqa: E402
from emulate import build  # noqa: E402

CUDA, HERE = ROOT / "csrc/cuda", Path(__file__).parent
EQUIVALENT, VERDICTS = HERE / "equivalent.json", BUILD / "mutants.json"
MOST, LEAST_IN_ALL, SECONDS_A_RUN = 0.9, 100, 25
# file -> the source that is compiled for it, the kind of cases that run, and how many
TESTED = {
    "fill.cu": ("fill", "fills", 80),
    "moments.cu": ("moments", "moments", 70),
    "cost_matrix.cu": ("cost_matrix", "costs", 90),
    "cost_gather.cu": ("cost_gather", "costs", 90),
    "step.cu": ("step", "steps", 600),
    "step_any.cu": ("step_any", "steps", 600),
    "step_any.h": ("step_any", "steps", 600),
    "step_uniform.cu": ("step_uniform", "steps", 600),
    "step_uniform.h": ("step_uniform", "steps", 600),
    "quad.h": ("step_any", "steps", 600),
}
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
DECLARED = r"\s*(constexpr |static |__shared__ |const )*[\w:<>]+[ *&]+\w+\[[^\]]*\]( =|;|,|\[)"
SUM = r"([\w.\[\]]+) \+ ([\w.\[\]<>()]+) \* ([\w.\[\]]+)(?=[;,)])"
# rule -> [(pattern, what takes its place)]
RULES = {
    "bound": [(re.escape(old), new) for old, new in BY_ONE.items()],
    "index": [(r"(?<=[\w\])])\[([^\[\]&=]+)\]", r"[\1 + 1]")],
    "coordinate": [(re.escape(old), new) for old, new in SIBLING.items()],
    "barrier": [(r"__sync(threads|warp)\(\);", ";")],
    "exchange": [(r"__shfl_xor_sync\(\w+, ([^,]+), \w+\)", r"(\1)")],
    "fence": [(r"__threadfence\w*\(\);", ";")],
    "rounding": [
        (SUM, r"__builtin_fma(\2, \3, \1)"),
        (r"-0\.0", "0.0"),
        (r"wide<double>\(", "wide<float>("),
        (r"(?<=static_cast<)double(?=>\()", "float"),
    ],
}
FLAGS = ["-x", "c++", "-std=c++17", "-fPIC", "-fno-math-errno", "-fno-strict-aliasing", "-w"]
CONTRACTED = "contraction on"


def mutants(file):
    """[(name, rule, text of the mutant)] of a file of csrc/cuda."""
    text = (CUDA / file).read_text()
    lines = text.split("\n")
    for n, line in enumerate(lines):
        code = line.split("//")[0]
        if not code.strip() or re.match(r"\s*(#|template|using|struct|static_assert)", code):
            continue
        for rule, pairs in RULES.items():
            if rule == "index" and re.match(DECLARED, code):
                continue
            for pattern, new in pairs:
                for found in re.finditer(pattern, code):
                    changed = code[: found.start()] + found.expand(new) + code[found.end() :]
                    name = f"{file}: {rule}: {code.strip()} -> {changed.strip()}"
                    yield name, rule, "\n".join([*lines[:n], changed, *lines[n + 1 :]])
    if file.endswith(".cu"):
        yield f"{file}: rounding: {CONTRACTED}", "rounding", text


def compiled(folder, file, text, flags):
    """The library with this file in place of its own; None where it is no C++."""
    source = TESTED[file][0]
    for path in CUDA.glob("*.*"):
        (folder / "cuda" / path.name).write_text(text if path.name == file else path.read_text())
    includes = ["-I", HERE, "-I", folder, "-I", folder / "cuda", "-I", ROOT / "csrc"]
    includes += ["-I", ROOT / "csrc/include"]
    own, library = folder / "own.o", folder / "library.so"
    command = ["g++", *FLAGS, *flags, *includes, "-c", folder / f"cuda/{source}.cu", "-o", own]
    if subprocess.run(command, capture_output=True).returncode:
        return None
    objects = (BUILD / "emulated/CMakeFiles").glob("fs_c*.dir/**/*.o")
    own = [own, *(path for path in objects if path.stem != f"{source}.cu")]
    sanitizer = [flag for flag in flags if flag.startswith("-fsanitize")]
    builds.run("g++", "-shared", "-fopenmp", *sanitizer, "-o", library, *own)
    return library


def verdict(file, name, text):
    """How the mutant was noticed, or "survived", or "no C++"."""
    _, kind, count = TESTED[file]
    contracted = CONTRACTED in name
    plain = ["-O2", "-mfma", "-ffp-contract=fast"] if contracted else ["-O1", "-ffp-contract=off"]
    for sanitizer in (False, True):  # what survives runs again where one number too many is seen
        if sanitizer and contracted:
            break
        # not optimised: else what lies outside a thread's own arrays is gone before it is seen
        flags = ["-O0", "-fsanitize=address"] if sanitizer else plain
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "cuda").mkdir()
            library = compiled(Path(folder), file, text, flags)
            if library is None:
                return "no C++"
            cases = count // 4 if sanitizer else count
            words = dict(sanitizer=sanitizer, timeout=SECONDS_A_RUN)
            try:
                done = build.run_alone(library, kind, 0, cases, **words)
            except subprocess.TimeoutExpired:
                return "hangs"
        said = done.stdout + done.stderr
        if done.returncode:
            seen = re.search(r"AddressSanitizer|emulate: [\w ]+", said)
            return seen[0] if seen else "crash" if done.returncode < 0 else "differs"
    return "survived"


def inputs():
    """Digest of what verdicts rest on."""
    files = [*CUDA.glob("*.*"), *HERE.glob("*.h"), *HERE.glob("*.cpp"), *HERE.glob("*s.py")]
    files += [HERE / "memory.py", HERE / "run.py"]
    return hashlib.sha256(b"".join(p.read_bytes() for p in sorted(files))).hexdigest()


def report(made, verdicts, equivalent):
    """Print the tables and the survivors; sentences of what is wrong."""
    wrong, counted, kinds = [], Counter(), Counter()
    for name, rule, _ in made:
        how = verdicts.get(name)
        if how in (None, "no C++") or rule == "fence":
            counted["fence" if rule == "fence" else how or "not run"] += 1
            continue
        if name in equivalent:
            counted["equivalent"] += 1
            if how != "survived":
                wrong.append(f"noticed, and said to be equivalent: {name}")
            continue
        kinds[rule, how != "survived"] += 1
        counted[how] += 1
        if how == "survived":
            print(f"survived  {name}")
    for rule in RULES:
        seen, missed = kinds[rule, True], kinds[rule, False]
        if seen + missed:
            print(f"{rule:10} {seen} of {seen + missed} noticed")
    print(", ".join(f"{how} {n}" for how, n in counted.most_common()))
    seen = sum(n for (_, noticed), n in kinds.items() if noticed)
    print(f"{len(made)} by rule; noticed {seen} of {sum(kinds.values())} that change something")
    if seen < MOST * sum(kinds.values()):
        wrong.append(f"fewer than {MOST:.0%} were noticed")
    known = {name for name, _, _ in made}
    return wrong + [f"equivalent to nothing: {name}" for name in equivalent if name not in known]


def main(seconds=float("inf"), workers=2):
    build.tree()
    made, named = [], Counter()
    for name, rule, text in (mutant for file in TESTED for mutant in mutants(file)):
        named[name] += 1
        made.append((f"{name} #{named[name]}" if named[name] > 1 else name, rule, text))
    Random(0).shuffle(made)  # so that a part of the list tells of all of it
    each = Counter(name.split(":")[0] for name, _, _ in made)
    if len(made) < LEAST_IN_ALL or set(each) != set(TESTED):
        sys.exit(f"mutate: {len(made)} mutants, by file {dict(each)}; the rules have lost the text")
    state = json.loads(VERDICTS.read_text()) if VERDICTS.exists() else {}
    digest, begun, lock = inputs(), time.monotonic(), Lock()
    verdicts = state["verdicts"] if state.get("inputs") == digest else {}

    def tried(mutant):
        name, rule, text = mutant
        if name in verdicts or rule == "fence" or time.monotonic() - begun > seconds:
            return
        how = verdict(name.split(":")[0], name, text)
        with lock:
            verdicts[name] = how
            VERDICTS.write_text(json.dumps({"inputs": digest, "verdicts": verdicts}))

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(tried, made))
    wrong = report(made, verdicts, json.loads(EQUIVALENT.read_text()))
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
