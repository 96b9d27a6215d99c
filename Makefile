# Each target makes the environment it needs in .venv; install nothing by hand but Python 3.11 and a C++ compiler.

PYTHON     ?= python3.11
CHECKPOINT ?=
CONFIG     ?=
PYTEST_FLAGS ?=

BIN    := .venv/bin
STAMP  := .venv/.installed
DEMO   := .cache/demo-checkpoint
NANO   := ops/nano/checkpoint
PIP    := $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt
BUILD_TOOLS := cmake ninja nanobind scikit-build-core
NATIVE := CMakeLists.txt $(shell find routing actors -name CMakeLists.txt -o -name '*.cpp' -o -name '*.h')
INSTALL_ALL  = echo "== environment: installing into .venv (minutes the first time)" && \
               $(PIP) --upgrade pip $(BUILD_TOOLS) && $(PIP) --no-build-isolation -e ".[test,check]"
BUILD_NATIVE = echo "== environment: building the native code" && $(PIP) --no-build-isolation --no-deps -e .
CXX_FILES = $(filter %.cpp %.h %.hpp,$(NATIVE))

# A test that did not run proves nothing: in CI a skip fails the run.
ifeq ($(CI),true)
PYTEST_FLAGS += --fail-on-skip
endif
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_FLAGS)

# Without a checkpoint and without a configuration that names one: the demo model if it is here, else random weights.
ifeq ($(CHECKPOINT)$(CONFIG),)
SERVED := $(if $(wildcard $(NANO)/config.json),$(NANO),$(DEMO))
else
SERVED := $(CHECKPOINT)
endif

.DEFAULT_GOAL := help
.PHONY: help serve test check fmt bench clean format lint types imports sizes unit

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-6s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

serve: $(STAMP) $(if $(filter $(DEMO),$(SERVED)),$(DEMO)/config.json) ## start a cluster on this machine [CHECKPOINT=folder] [CONFIG=file]
	@echo "serving $(if $(SERVED),$(SERVED),the checkpoint named in $(CONFIG))$(if $(filter $(DEMO),$(SERVED)), (random weights: the text means nothing))"
	@$(if $(filter $(NANO),$(SERVED)),STEP35__MODEL_NAME=step-nano) $(BIN)/step35 serve $(if $(CONFIG),--config $(CONFIG)) $(SERVED)

test: $(STAMP) ## run every test that this machine can run
	@$(PYTEST) -m "not gpu"

check: format lint types imports sizes unit ## everything a change must pass before review

fmt: $(STAMP) ## format the sources
	@$(BIN)/ruff check -q --select I --fix . && $(BIN)/ruff format -q .
	@$(BIN)/clang-format -i $(CXX_FILES)

bench: $(STAMP) $(DEMO)/config.json ## run the benchmarks and add their figures to ops/bench/RESULTS.md
	@OMP_NUM_THREADS=1 $(BIN)/python -m ops.bench

clean: ## remove everything that make has made
	rm -rf .venv build .cache .pytest_cache .mypy_cache .ruff_cache .import_linter_cache

format: $(STAMP)
	@echo "== format: one layout, so that a diff shows only what changed (mend with: make fmt)"
	@$(BIN)/ruff format --check .
	@$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)

lint: $(STAMP)
	@echo "== lint: rules and the reason for each exception are in pyproject.toml"
	@$(BIN)/ruff check .

types: $(STAMP)
	@echo "== types: mypy --strict on every package"
	@$(BIN)/mypy

imports: $(STAMP)
	@echo "== imports: who may import whom is in .importlinter"
	@$(BIN)/lint-imports

sizes: $(STAMP)
	@echo "== sizes: budgets and exemptions are in tests/checks/sizes.py"
	@$(BIN)/python -m tests.checks.sizes

unit: $(STAMP)
	@echo "== unit tests: the other tiers run with make test"
	@$(PYTEST) -q tests/unit

# The package is installed in place: an edit of Python takes effect at once, an edit of C++ at the next make. The build tools
# live in .venv too: an isolated build would have them in a new place each time and compile everything again.
# The pip that comes with Python 3.11 takes twice as long as a current one, so that comes first.
$(STAMP): pyproject.toml constraints.txt $(NATIVE)
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(if $(filter pyproject.toml constraints.txt,$?),$(INSTALL_ALL),$(BUILD_NATIVE))
	@touch $@

$(DEMO)/config.json: $(STAMP)
	@$(BIN)/python -m tests.fakes.checkpoint --out $(DEMO) --size demo
