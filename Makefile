# Everything runs inside .venv, which `make venv` creates and every other target asks for.
# PYTHON=... chooses the interpreter that .venv is made with; remove .venv to change it later.

VENV  := .venv
BIN   := $(VENV)/bin
STAMP := $(VENV)/.installed
CANDIDATES := $(or $(PYTHON),python3.11 python3 python3.12 python3.13 python)

.DEFAULT_GOAL := help
.PHONY: help venv demo test lint docs format sanitize gpu-check test-oldest gpu-train clean \
  bench bench-compare bench-bisect bench-noise bench-prove bench-instructions bench-measure bench-docs \
  bench-publish bench-track bench-quick

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-19s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

venv: $(STAMP) ## Create .venv and install the package into it (once, and when its metadata changes)

demo: $(STAMP) ## Predict the parameters of unseen networks, evaluate them, write demo-out/
	@$(BIN)/python -m ghn_fast demo --out demo-out

test: $(STAMP) ## Run the tests
	@$(BIN)/python -m pytest

test-oldest: ## Build against the oldest torch that is promised, warnings as errors, and test the ops
	@.ci/oldest

lint: $(STAMP) ## Check style, formatting and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

docs: $(STAMP) ## Build the documentation site into build/site; a link that leads nowhere is an error
	@$(BIN)/python -m mkdocs build --strict -q

format: $(STAMP) ## Format the code and fix what can be fixed by itself
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

sanitize: $(STAMP) ## Run the C++ tests under address and undefined-behaviour sanitizers (needs cmake)
	@cmake -S . -B build/sanitize -DPython3_EXECUTABLE=$(abspath $(BIN))/python -DGHN_FAST_SANITIZE=ON
	@cmake --build build/sanitize
	@ctest --test-dir build/sanitize --output-on-failure

# VENV_PYTHON=python3 takes an interpreter that has torch already, and makes no .venv.
# GPU_CHECK="--commit ... --rehearse" passes options on (.ci/gpu_check.py --help).
gpu-check: $(if $(VENV_PYTHON),,$(STAMP)) ## Build, test and measure on this machine's GPU in nine minutes
	@$(or $(VENV_PYTHON),$(BIN)/python) .ci/gpu_check.py $(GPU_CHECK)

# TRAIN is what `ghn-fast train` gets; the archive in ARCHIVE is continued, and written again.
ARCHIVE ?= gpu-train
SECONDS ?= 480
TRAIN ?= --config configs/cifar10-pool.yaml
gpu-train: $(if $(VENV_PYTHON),,$(STAMP)) ## Meta-train for SECONDS on this machine's GPU; the next call continues
	@$(or $(VENV_PYTHON),$(BIN)/python) .ci/gpu_train.py --archive $(ARCHIVE) --seconds $(SECONDS) -- $(TRAIN)

# What runs the benchmarks: VENV_PYTHON=python3 as above; asv is in the extra `bench`.
BENCH := $(or $(VENV_PYTHON),$(BIN)/python)
NEEDS_BENCH := $(if $(VENV_PYTHON),,$(STAMP) bench-extra)

.PHONY: bench-extra
bench-extra: $(STAMP)
	@$(BIN)/python -c 'import asv' 2>/dev/null \
	  || $(BIN)/python -c 'import tomllib; \
	  extras = tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]; \
	  print(*extras["bench"], sep="\n")' \
	  | $(BIN)/python -m pip install -qq --disable-pip-version-check --requirement /dev/stdin

# What has been measured is kept in GHN_FAST_BENCH_RESULTS, .asv if not set, which git ignores.
bench: $(NEEDS_BENCH) ## Time every case of this checkout with asv, once each (BENCH_ONLY=REGEX for some)
	@$(BENCH) -m asv run --quick --show-stderr --environment existing:same \
	  --set-commit-hash "$$(git rev-parse HEAD)" $(if $(BENCH_ONLY),--bench "$(BENCH_ONLY)")

# COMPARE="--only gated_gnn --markdown report.md" passes options on (benchmarks/bench.py compare --help).
bench-compare: $(if $(VENV_PYTHON),,$(STAMP)) ## Fail if this checkout is slower than BASE=REV
	@test -n "$(BASE)" || { echo "bench-compare: name a revision, make bench-compare BASE=main" >&2; exit 2; }
	@$(BENCH) benchmarks/bench.py compare "$(BASE)" $(COMPARE)

bench-bisect: $(if $(VENV_PYTHON),,$(STAMP)) ## Find the commit between GOOD=REV and BAD=REV that made CASE=NAME slower
	@test -n "$(CASE)" -a -n "$(GOOD)" -a -n "$(BAD)" || \
	  { echo "bench-bisect: make bench-bisect CASE=predict_warm GOOD=v1 BAD=main" >&2; exit 2; }
	@$(BENCH) benchmarks/bench.py bisect "$(CASE)" "$(GOOD)" "$(BAD)"

bench-noise: $(if $(VENV_PYTHON),,$(STAMP)) ## Measure this machine's noise, from which thresholds follow
	@$(BENCH) benchmarks/bench.py noise $(NOISE)

bench-prove: $(if $(VENV_PYTHON),,$(STAMP)) ## Count how often planted slow-downs are found here (hours; goes on where it was)
	@$(BENCH) benchmarks/bench.py prove $(PROVE)

bench-instructions: $(if $(VENV_PYTHON),,$(STAMP)) ## Show which functions execute more than in BASE=REV (valgrind)
	@test -n "$(BASE)" || { echo "bench-instructions: name a revision, BASE=main" >&2; exit 2; }
	@$(BENCH) benchmarks/bench.py instructions "$(BASE)" $(COMPARE)

bench-measure: $(if $(VENV_PYTHON),,$(STAMP)) ## Measure every case into one file, RESULTS=FILE
	@$(BENCH) benchmarks/bench.py measure $(if $(RESULTS),--out "$(RESULTS)") $(MEASURE)

bench-docs: $(if $(VENV_PYTHON),,$(STAMP)) ## Write docs/performance.md and README's table from RESULTS=FILE
	@test -n "$(RESULTS)" || { echo "bench-docs: name a file of bench-measure, RESULTS=FILE" >&2; exit 2; }
	@$(BENCH) benchmarks/bench.py docs "$(RESULTS)"

bench-publish: $(NEEDS_BENCH) ## Write a page with all trends and the commits that moved them
	@$(BENCH) benchmarks/bench.py site

bench-track: $(if $(VENV_PYTHON),,$(STAMP)) ## Record the counts that the tests compare with
	@$(BENCH) benchmarks/bench.py track

bench-quick: $(if $(VENV_PYTHON),,$(STAMP)) ## Compiled ops against the references, with generous floors
	@$(BENCH) benchmarks/bench.py floors

clean: ## Remove build products, caches and demo-out/ (.venv stays)
	@rm -rf build dist *.egg-info demo-out .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name $(VENV) -prune -o -type d -name __pycache__ -prune -exec rm -rf {} +

# An interpreter is taken only if it runs and is new enough: a name on the PATH may be a launcher
# for a version that is not installed. An environment whose interpreter is gone is made anew.
# torch comes first, and the package is then built against it, not in an environment of pip's own:
# the compiled ops have to be made for the torch that they run with.
$(STAMP): pyproject.toml setup.py $(wildcard csrc/*.* csrc/*/*.*)
	@set -e; found=; \
	new_enough() { "$$@" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }; \
	if ! new_enough $(BIN)/python; then \
	  for python in $(CANDIDATES); do \
	    if new_enough $$python; then found=$$python; break; fi; \
	  done; \
	  if [ -z "$$found" ]; then \
	    echo "ghn_fast needs Python 3.11 or newer; none of these is: $(CANDIDATES)." >&2; \
	    echo "Install one, or name it: make venv PYTHON=/path/to/python3.11" >&2; \
	    exit 1; \
	  fi; \
	  echo "Creating $(VENV) with $$($$found --version)"; \
	  $$found -m venv --clear $(VENV) || { \
	    echo "Python's venv module failed; on Debian and Ubuntu it is a package of its own, python3-venv." >&2; \
	    exit 1; \
	  }; \
	fi; \
	echo "Installing ghn_fast and what it needs into $(VENV); torch is large, so this takes a few minutes"; \
	pip="$(BIN)/python -m pip install -qq --disable-pip-version-check"; \
	$(BIN)/python -c 'import tomllib; \
	  project = tomllib.load(open("pyproject.toml", "rb")); \
	  print("ninja", *project["build-system"]["requires"], sep="\n"); \
	  print(*(r for r in project["project"]["dependencies"] if r.startswith("torch>")))' \
	  | $$pip --requirement /dev/stdin; \
	$$pip --no-build-isolation --editable '.[dev]'; \
	$(BIN)/python -c 'from ghn_fast.ops import backend; \
	  print("Compiled ops:", backend.library_problem() or "yes"); \
	  print("Compiled for this torch:", backend.extension_problem() or "yes")'; \
	touch $@
