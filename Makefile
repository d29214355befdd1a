# fastsample: the commands. The first one that needs it sets up .venv from constraints.txt; after that set-up costs nothing.
# Needs python3 (>= 3.10), gcc, git and make; CMake and Ninja come as Python packages. Another interpreter: make PYTHON=python3.12 ...

PYTHON ?= python3
WERROR := $(if $(CI),ON,OFF)
DATE ?= $(shell date +%F)
ONLY ?= bench
CUDA ?= auto
RESULTS ?= $(if $(REHEARSE),build/rehearsed,bench/results)
VENV := .venv
PY := $(VENV)/bin/python
# With byte code: where PYTHONDONTWRITEBYTECODE is set, every process would compile torch anew.
INSTALL := -m pip --disable-pip-version-check install -qq -c constraints.txt
PIP := $(PY) $(INSTALL)
TORCH := $(VENV)/.torch
READY := $(VENV)/.ready
SERVE := .venv-serve
SERVED := $(SERVE)/.ready
HOSTS := .venv-integrations
HOSTED := $(HOSTS)/.ready
DOCS := .venv-docs
WRITTEN := $(DOCS)/.ready
TYPES := .venv-types
TYPED := $(TYPES)/.ready
NATIVE := $(VENV)/.native
ONCE := CMAKE_CXX_COMPILER_LAUNCHER='$(CURDIR)/$(PY);-IS;$(CURDIR)/tests/c/once.py'
C_FILES := $(shell find csrc examples tests/c tests/emulate \( -name '*.h' -o -name '*.hpp' -o -name '*.c' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' \) 2>/dev/null)
BENCH := -m pytest -q -c bench/pytest.ini --date=$(DATE)

.PHONY: help demo serve test test-serve test-integrations test-slow soak lint types bench tables native ptx mutate docs pictures wheel release-check gpu gpu-there clean
help:
	@echo "make demo    search plans for the embedded model, sample, show the gain (demo/)"
	@echo "make serve   the embedded model behind HTTP on 127.0.0.1:8000, with Ray Serve (examples/ray_serve; PORT=..., PLANS=... a folder)"
	@echo "make test    every test that needs no GPU, but for make test-slow: builds, installs, Inductor, sanitizers"
	@echo "make test-serve  the served example on a Ray cluster on loopback, in .venv-serve (half a gigabyte)"
	@echo "make test-integrations  FsScheduler and our nodes in real hosts, in .venv-integrations (1.8 gigabytes)"
	@echo "make soak    the property tests with 2,000 examples each, plans of 50 and of 1,000 steps of every solver on every schedule, and what says a slow test at length"
	@echo "make lint    ruff and clang-format"
	@echo "make types   mypy and basedpyright on uses of the public names (tests/typing), in .venv-types"
	@echo "make bench   measure, write bench/results/, compare with the last committed, refresh README's tables"
	@echo "make native  build fastsample/_C in place with plain CMake, no pip (PYTHON=... chooses the interpreter, CUDA=auto|on|off)"
	@echo "make gpu     on a machine with a GPU, with PYTHON's own torch: make native, the GPU tests, the GPU benchmarks (six minutes;"
	@echo "             QUICK=1: two; REHEARSE=1: without a GPU, on a stand-in, so that every line has run; RESULTS=... the folder written to)"
	@echo "make ptx     what nvcc makes of the CUDA kernels: registers, spills, wide accesses (docs/kernels.md); needs nvcc, no GPU"
	@echo "make mutate  break the CUDA kernels by rule, one by one: how many the emulated tests notice (some 700 builds, a quarter of an hour; what was tried is kept)"
	@echo "make docs    the documentation's site, strictly, in .venv-docs (build/site/index.html)"
	@echo "make pictures  a search's page and the main pages of the site as headless Chromium shows it, light and dark, wide and narrow, to look at (build/pictures)"
	@echo "make wheel   the sdist and a wheel, as released (dist/), tried in an empty environment (CUDA=on: with CUDA kernels, by a compiler"
	@echo "             from PyPI; PYTHONS=\"python3.12 ...\": for these; TWICE=1: made twice, the bytes compared)"
	@echo "make release-check  all that a release must pass, in order: lint, types, every test, soak, wheels, docs, hosts"
	@echo "make clean   remove everything the above made, .venv included"

# --- set-up ---
# torch goes first and alone: with the pinned build there, nothing that follows asks for another.
# k-diffusion, an oracle of the tests, comes without what it asks for (torchvision, wandb, ...).
$(TORCH): constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "make: $(PYTHON) is older than Python 3.10; pass PYTHON=..."; exit 1; }
	@test -x $(PY) || $(PYTHON) -m venv $(VENV) || { echo "make: $(PYTHON) has no venv module (Debian: python3-venv)"; exit 1; }
	@echo "setting up $(VENV): torch"
	@$(PIP) torch
	@touch $@

$(READY): $(TORCH) pyproject.toml setup.py
	@echo "setting up $(VENV): fastsample with its demo, optimize, bench and dev extras"
	@$(PIP) setuptools wheel pybind11 cmake ninja
	@FASTSAMPLE_NATIVE=off $(PIP) --no-build-isolation -e '.[demo,optimize,bench,dev]'
	@$(PIP) --no-deps k-diffusion
	@touch $@

# The native code is built in place, so that a changed file is compiled alone; the tests' builds have of it what is the same there. Without a compiler the backend `reference` runs everything.
$(NATIVE): $(READY) $(C_FILES)
	@if command -v c++ >/dev/null || command -v g++ >/dev/null; then $(ONCE) $(MAKE) --no-print-directory native PYTHON=$(PY) CUDA=off; \
	else echo "make: no C++ compiler was found; going on with the backend reference"; fi
	@touch $@

# Ray is half a gigabyte: it has an environment of its own, with the native code that .venv built.
$(SERVE)/.torch: constraints.txt
	@echo "setting up $(SERVE): torch"
	@test -x $(SERVE)/bin/python || $(PYTHON) -m venv $(SERVE)
	@$(SERVE)/bin/python $(INSTALL) torch setuptools wheel pybind11
	@touch $@

$(SERVED): $(SERVE)/.torch $(NATIVE) pyproject.toml
	@echo "setting up $(SERVE): fastsample and Ray"
	@FASTSAMPLE_NATIVE=off $(SERVE)/bin/python $(INSTALL) --no-build-isolation -e '.[serve]' safetensors pytest hypothesis httpx
	@touch $@

# The documentation reads the package without importing it: neither torch nor NumPy is needed, hence no `.[docs]`.
$(WRITTEN): constraints.txt
	@echo "setting up $(DOCS): zensical and mkdocstrings"
	@test -x $(DOCS)/bin/python || $(PYTHON) -m venv $(DOCS)
	@$(DOCS)/bin/python $(INSTALL) zensical mkdocstrings-python
	@touch $@

# Hosts as they are on PyPI, with every package that they import, and no other, pinned: what they ask for would not fit in one environment.
$(HOSTED): $(NATIVE) tests/integrations/requirements.txt
	@echo "setting up $(HOSTS): torch and the hosts of tests/integrations"
	@test -x $(HOSTS)/bin/python || $(PYTHON) -m venv $(HOSTS)
	@$(HOSTS)/bin/python $(INSTALL) torch
	@$(HOSTS)/bin/python $(INSTALL) --no-deps -r tests/integrations/requirements.txt
	@touch $@

# --- what users and developers run ---
demo: $(NATIVE)
	@$(PY) -m fastsample demo

serve: $(SERVED)
	$(SERVE)/bin/python -m examples.ray_serve --port $(or $(PORT),8000) --plans $(or $(PLANS),build/plans)

# Two workers of one thread each; then, in one process with all threads, what counts threads or is disturbed by a neighbour; and in two of
# their own, for Triton looks at this when it is loaded, what its interpreter runs. To read all the files takes twenty seconds, so a run of few
# reads those alone that have its mark. Files are handed out by name: by their number of tests, as usual, the longest would come last.
marked = $(shell grep -rl --include='test_*.py' 'pytest\.mark\.$(1)\b' tests | sort)
test: $(NATIVE)
	OMP_NUM_THREADS=1 $(PY) -m pytest -q --durations=20 -n 2 --dist loadfile --no-loadscope-reorder -m "not gpu and not slow and not soak and not alone and not interpreted"
	$(PY) -m pytest -q --durations=5 -m "not gpu and not slow and not soak and alone and not interpreted" $(call marked,alone)
	TRITON_INTERPRET=1 OMP_NUM_THREADS=1 $(PY) -m pytest -q --durations=5 -n 2 --dist loadfile --no-loadscope-reorder -m "not gpu and interpreted" $(call marked,interpreted)

# One thread each, too: two processes of two threads on two cores take three times as long, for threads wait by spinning.
test-slow: $(NATIVE)
	@command -v nvcc >/dev/null || echo "make test-slow: nvcc was not found; the CUDA kernels are tested in their emulation alone"
	OMP_NUM_THREADS=1 $(PY) -m pytest -q --durations=10 -n 2 --dist loadfile --no-loadscope-reorder -m "not gpu and slow and not soak and not interpreted" $(call marked,slow)

test-serve: $(SERVED)
	OMP_NUM_THREADS=1 $(SERVE)/bin/python -m pytest -q --durations=5 -p no:warnings tests/serve

test-integrations: $(HOSTED)
	OMP_NUM_THREADS=1 $(HOSTS)/bin/python -m pytest -q -rs --durations=5 -p no:warnings tests/integrations

soak: $(NATIVE)
	OMP_NUM_THREADS=1 $(PY) -m pytest -v --durations=20 -n 2 --dist worksteal --hypothesis-profile=soak -m "(hypothesis or soak) and not gpu and not interpreted"

lint: $(READY)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	@echo "clang-format --dry-run -Werror: $(words $(C_FILES)) files" && $(VENV)/bin/clang-format --dry-run -Werror $(C_FILES)

# Both read the types of what .venv has; they do not see the same faults.
$(TYPED): constraints.txt
	@echo "setting up $(TYPES): mypy and basedpyright"
	@test -x $(TYPES)/bin/python || $(PYTHON) -m venv $(TYPES)
	@$(TYPES)/bin/python $(INSTALL) mypy basedpyright
	@touch $@

types: $(TYPED) $(READY)
	$(TYPES)/bin/mypy --python-executable $(PY)
	$(TYPES)/bin/basedpyright --pythonpath $(PY)

bench: $(NATIVE)
	$(PY) $(BENCH) -m "not gpu" $(ONLY)
	@$(MAKE) --no-print-directory tables

tables: $(READY)
	$(PY) tools/readme_tables.py
	$(PY) tools/solvers_page.py
	$(PY) tools/docs_pages.py

# --- native code and GPU: PYTHON's own torch, no pip, no network ---
# The interpreter's own cmake comes first: in .venv that is the wheel's, elsewhere the system's.
native:
	@mkdir -p build
	@set -e; python=$$($(PYTHON) -c 'import sys; print(sys.executable)'); tag=$$($$python -c 'import sys; print(sys.implementation.cache_tag)'); \
	PATH="$$(dirname $$python):$$PATH"; unset MAKEFLAGS MAKELEVEL; \
	command -v cmake >/dev/null || { echo "make native: no cmake beside $$python or on PATH; pip install cmake"; exit 1; }; \
	cmake -S csrc -B build/native-$$tag -G "Unix Makefiles" -DFASTSAMPLE_PYTHON=ON -DFASTSAMPLE_LIBRARY=OFF -DFASTSAMPLE_WERROR=$(WERROR) \
	  -DFASTSAMPLE_CUDA=$(CUDA) $(if $(ARCH),-DCMAKE_CUDA_ARCHITECTURES=$(ARCH)) \
	  -DFASTSAMPLE_PYTHON_DIR=$(CURDIR)/fastsample -DPython_EXECUTABLE=$$python >build/native.log 2>&1 \
	  || { cat build/native.log; echo "make native: CMake could not configure the build"; exit 1; }; \
	cmake --build build/native-$$tag --parallel >build/native.log 2>&1 || { cat build/native.log; echo "make native: the build failed"; exit 1; }; \
	$$python -c 'import torch; from fastsample import _C; print("built fastsample/_C:", _C.build_info())'

ptx: $(READY)
	$(PY) tools/ptx_table.py --write

mutate: $(READY)
	OMP_NUM_THREADS=1 $(PY) tests/emulate/mutate.py

docs: $(WRITTEN)
	PATH="$(CURDIR)/$(DOCS)/bin:$$PATH" $(DOCS)/bin/python tools/docs.py

pictures: $(NATIVE) docs
	$(PY) tools/pictures.py

wheel: $(READY)
	$(PY) tools/wheels.py $(if $(filter on,$(CUDA)),--cuda) $(if $(TWICE),--twice) $(if $(PYTHONS),--python $(PYTHONS))

RELEASE := lint types test test-serve test-slow soak wheel docs test-integrations
release-check:
	@set -e; for each in $(RELEASE); do echo "make $$each"; $(MAKE) --no-print-directory $$each; done
	@grep -HnE '^(Repository|PublisherId) = ""' integrations/comfyui/pyproject.toml \
	  && echo "make release-check: whoever publishes integrations/comfyui fills these in first" || true

gpu-there:
	@$(PYTHON) -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null \
	  || { echo "make gpu: $(PYTHON) has no torch that sees an NVIDIA GPU; run it on a machine with one, or pass PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import pytest, pytest_benchmark' 2>/dev/null \
	  || { echo "make gpu: $(PYTHON) lacks pytest or pytest-benchmark; pip install pytest pytest-benchmark"; exit 1; }

# Built for the GPU that is there, and no other. What carries the mark `gpu` in bench/ runs, the tests of tests/gpu first; every row is
# written as soon as it is measured, and the table last, whatever failed. Six minutes, or two, are some 40 s to build, 270 or 80 s in which
# benchmarks are begun (bits, by far the longest, 100 or 25), and the end of the last.
gpu: CUDA = on
gpu: ARCH = $(shell nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | tr -d .)-real
gpu: $(if $(REHEARSE),$(NATIVE),gpu-there native)
	@python=$(if $(REHEARSE),$(PY),$(PYTHON)); status=0; $(if $(REHEARSE),export OMP_NUM_THREADS=1 PYTHONPATH="$(CURDIR)/tests:$$PYTHONPATH";) \
	$$python $(BENCH) -rs -m gpu $(if $(REHEARSE),-p stand_in) $(if $(QUICK),--quick --limit=80,--limit=270) --results=$(RESULTS) bench || status=$$?; \
	$$python tools/readme_tables.py --show $(RESULTS); exit $$status

clean:
	rm -rf $(VENV) $(SERVE) $(HOSTS) $(DOCS) $(TYPES) .cache build dist demo *.egg-info fastsample/_C*.so .pytest_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
