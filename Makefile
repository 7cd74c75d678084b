# `make demo` and `make test` need only Python >= 3.11 and make: they create .venv and install into it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SEED_ENV := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
DEMO_OUT ?= runs/demo

.PHONY: help install demo test test-fast check format docs lab bench clean

help:  ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /  make \1\t/' | expand -t 20

# One stamp per set of extras; a change of pyproject or constraints installs again.
$(BIN)/.stamp-run: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"kexue needs Python >= 3.11, this is {v.major}.{v.minor}: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[nlp,lab]' -c constraints.txt
	@touch $@

$(BIN)/.stamp-dev: $(BIN)/.stamp-run
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[nlp,lab,shuffle,ray,dev]' -c constraints.txt
	@touch $@

install: $(BIN)/.stamp-dev  ## create .venv with everything a developer needs

demo: $(BIN)/.stamp-run  ## all eleven CLUE tasks on built-in data with the built-in encoder, and a report
	$(BIN)/kexue clue train all --data mini --model tiny --out $(DEMO_OUT) --overwrite

test: $(BIN)/.stamp-dev  ## every test: with shape checks on two workers, then the compiled ones apart
	$(SEED_ENV) $(BIN)/python -m pytest -n 2 --dist loadgroup -m 'not compiled' --doctest-modules src tests --jaxtyping-packages=kexue,beartype.beartype
	$(SEED_ENV) $(BIN)/python -m pytest -m compiled tests

check: $(BIN)/.stamp-dev  ## format, lint, types, import contract
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(BIN)/.stamp-dev  ## rewrite files in the house format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lab: $(BIN)/.stamp-run  ## every experiment and the gallery page
	$(BIN)/kexue lab run all --out runs/lab

docs: $(BIN)/.stamp-run  ## the generated index pages
	$(BIN)/python docs/build_index.py

bench: $(BIN)/.stamp-dev  ## speed against the best peer; results go to benchmarks/results
	$(BIN)/python benchmarks/clue_throughput.py
	$(BIN)/python benchmarks/optimizer_step.py
	$(BIN)/python benchmarks/losses.py
	$(BIN)/python benchmarks/audits.py
	$(BIN)/python benchmarks/attention.py
	$(BIN)/python benchmarks/shuffle.py
	$(BIN)/python benchmarks/random_numbers.py

clean:
	rm -rf $(VENV) runs build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
