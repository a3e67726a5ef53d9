# Two commands do everything, set-up included: `make demo` and `make test`.
# Recipes need Python 3.10 or newer with venv and pip; nothing else.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test coverage check fast format bench bench-planner bench-serve bench-boards bench-cluster bench-links \
  bench-wires coverage-models \
  matrix mutations soak soak-serve docs pictures dist wheel-smoke test-core smoke-oldest lock changelog release clean help

help:  ## list the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | sort

# What is installed is what requirements/ci.txt says, each file by its hash, whatever limits pip is set
# to here; byte code comes with the first import of a module, and most are never imported. PINNED= takes
# the newest that pyproject.toml allows instead.
PINNED ?= yes
PIP := $(BIN)/python -m pip install --quiet
HASHED := PIP_CONSTRAINT=/dev/null $(PIP) --no-deps --no-compile --require-hashes

$(STAMP): pyproject.toml requirements/ci.txt requirements/assets.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "Cutset needs Python 3.10 or newer; say which one: make PYTHON=python3.11 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
ifneq ($(PINNED),)
	$(HASHED) -r requirements/ci.txt
	$(PIP) --no-deps --no-build-isolation --editable .
else
	$(PIP) --upgrade 'pip>=25.1'
	$(PIP) --editable '.[all]' --group dev
endif
	$(HASHED) -r requirements/assets.txt
	@touch $@

LOCK := UV_CUSTOM_COMPILE_COMMAND='make lock' $(BIN)/uv pip compile --quiet --universal --python-version 3.10 \
	--generate-hashes --no-annotate

lock: $(STAMP)  ## pins what pyproject.toml asks for; UPGRADE=--upgrade takes the newest of everything
	$(LOCK) $(UPGRADE) --all-extras --group dev pyproject.toml -o requirements/ci.txt
	$(LOCK) $(UPGRADE) --no-deps requirements/assets.in -o requirements/assets.txt

demo: $(STAMP)  ## split a trained MobileNetV2, verify it, run photographs through two processes
	@$(BIN)/python examples/demo.py

# Each file keeps to one process; tests/conftest.py says which are begun first. What starts workers,
# servers and testbeds waits for them a good part of its time: three such files at a time keep two cores
# busy. What measures shares of a core has the machine to itself.
RUN := $(BIN)/python -m pytest
BY_FILE := --dist loadfile --no-loadscope-reorder
WAITING := $(wildcard tests/distributed tests/beds tests/serve)
SHARES := $(wildcard tests/distributed/test_overhead.py tests/beds/test_profile.py)
test: $(STAMP)  ## the whole test suite
	$(RUN) -n 2 $(BY_FILE) $(addprefix --ignore ,$(WAITING))
	$(RUN) -n 3 $(BY_FILE) $(WAITING) $(addprefix --ignore ,$(SHARES))
	$(RUN) $(SHARES)

fast: $(STAMP)  ## unit and property tests only
	$(BIN)/python -m pytest tests/unit tests/property

COVERED ?= tests/unit tests/property tests/integration

coverage: $(STAMP)  ## which lines the tests of COVERED run; a page for each file in build/coverage/html
	rm -rf build/coverage
	$(BIN)/coverage run -m pytest $(COVERED)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage html --quiet
	$(BIN)/coverage report --skip-covered --sort=cover

check: $(STAMP)  ## style, types, import rules, declared packages
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/deptry src
	$(BIN)/deptry tests benchmarks examples docs testbed release --ignore DEP002,DEP004

format: $(STAMP)  ## bring the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)  ## the pipeline against its peers, interleaved; writes docs/benchmarks.md
	$(BIN)/python benchmarks/pipeline.py

bench-planner: $(STAMP)  ## the planner beside published values
	$(BIN)/python benchmarks/planner.py

soak: $(STAMP)  ## the long form of the fault tests; CUTSET_SOAK_S=3600 for an hour of everything at once
	$(BIN)/python -m pytest tests/distributed tests/unit/backends tests/beds -m "soak or emulated"

mutations: $(STAMP)  ## 5,000 mutants of stage programs in processes of their own; none may die
	$(BIN)/python tests/mutations.py --count 5000

soak-serve: $(STAMP)  ## ten minutes of hostile clients while workers are killed
	CUTSET_SOAK_S=600 $(BIN)/python -m pytest tests/serve/test_soak.py -m soak

matrix: $(STAMP)  ## the six models at full size, every number of stages and micro-batch size
	$(BIN)/python -m pytest tests/integration/test_six_models_run.py -m matrix

bench-serve: $(STAMP)  ## the server's throughput and its behaviour under overload
	$(BIN)/python benchmarks/serve.py

bench-links: $(STAMP)  ## what a hop between hosts costs, with and without keys; root; writes docs/links.md
	$(BIN)/python benchmarks/links.py $(if $(GLOO),--gloo $(GLOO))
	$(BIN)/python benchmarks/link_periods.py

bench-boards: $(STAMP)  ## what a board needs: sizes, memory, start; internet; writes docs/boards.md
	$(BIN)/python benchmarks/boards.py

bench-cluster: $(STAMP)  ## six models on a testbed, predicted and measured; root; writes docs/cluster.md
	$(BIN)/python benchmarks/cluster.py

bench-wires: $(STAMP)  ## codecs, ports and rows beside the code before (BEFORE=WORKTREE); root; writes docs/wires.md
	$(BIN)/python benchmarks/wires.py $(if $(BEFORE),--before $(BEFORE)) $(if $(QUICK),--quick)

coverage-models: $(STAMP)  ## which models can be split; resumable; writes docs/models.md
	$(BIN)/python benchmarks/coverage_models.py $(if $(ONLY),--only '$(ONLY)')

docs: $(STAMP)  ## the documentation site, warnings as errors, into build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

pictures: $(STAMP)  ## the pictures of the documentation, by the tool itself; needs chromium
	$(BIN)/python docs/pictures.py

dist: $(STAMP)  ## wheel and source distribution; the wheel is built from the latter
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist

# What the folder holds beside the tests is not on the path: what is imported is what was installed.
SMOKE := pytest -c tests/smoke/pytest.ini tests/smoke

wheel-smoke: dist  ## the wheel alone in a clean environment, with the torch that is installed here
	$(BIN)/python tests/smoke/environment.py dist/*.whl build/smoke --extra torch
	build/smoke/bin/python -m $(SMOKE)

test-core: dist  ## the wheel where torch is not installed, on bundles that were made here
	rm -rf build/core-made
	$(BIN)/python tests/core/make_bundles.py build/core-made
	$(BIN)/python tests/smoke/environment.py dist/*.whl build/core --extra serve --extra report
	CUTSET_CORE=build/core-made build/core/bin/python -m pytest -c tests/core/pytest.ini tests/core

smoke-oldest: dist  ## the same with the oldest torch that is supported, installed anew
	$(BIN)/python tests/smoke/environment.py dist/*.whl build/smoke-oldest \
		--torch 2.9.1 --torchvision 0.24.1
	build/smoke-oldest/bin/python -m $(SMOKE)

changelog: $(STAMP)  ## the entries of changelog.d become the version's part of CHANGELOG.md
	$(BIN)/python -m release changelog

# The sub-make of wheel-smoke builds what is tagged. Nothing is uploaded or pushed.
release: $(STAMP)  ## builds and checks this version, and sets its tag here
	$(BIN)/python -m release ready
	$(MAKE) check wheel-smoke
	$(BIN)/python -m release tag

clean:  ## remove what was installed and made
	rm -rf $(VENV) demo build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
