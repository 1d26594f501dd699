# `make` lists the targets. All that is needed: Python 3.11 or newer, make and git.
#
# Everything is installed into .venv, once, and again when pyproject.toml changes.
# `make demo PYTHON=/path/to/python` chooses another interpreter (after `make clean`).

SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
BENCH_PEERS := bench-tasks bench-quality bench-regression bench-structure bench-curvature bench-cost
.PHONY: help demo test lint types pytest coverage mutants docs format notebooks docs-optimizers docs-method docs-results bench $(BENCH_PEERS) \
	bench-alarm bench-batch-size bench-cold bench-evidence bench-identify bench-examples bench-calibration bench-other-seeds bench-scale bench-serving bench-soap bench-softmax \
	bench-low-rank bench-structure-cost bench-temperature bench-variance test-oldest dist test-dist clean

PYTHON ?=
CANDIDATES = $(or $(PYTHON),python3 python3.13 python3.12 python3.11)

PY := .venv/bin/python
PY_OLDEST := .venv-oldest/bin/python
PY_BENCH := .venv-bench/bin/python
PY_DIST := .venv-dist/bin/python
PIP_INSTALL := -m pip install --disable-pip-version-check -qq
PYTEST := -m pytest -n 2 --doctest-modules tests l2m_optax
METADATA := pyproject.toml l2m_optax/_version.py

# $(call make_venv,FOLDER,CANDIDATES,CONDITION,NEEDS): FOLDER made by the first candidate that runs
# and meets the condition on `v`, its version; NEEDS says the condition in words.
define make_venv
@python=; for candidate in $(2); do \
	if "$$candidate" -c 'import sys; v = sys.version_info; sys.exit(not ($(3)))' 2>/dev/null; \
	then python=$$candidate; break; fi; \
done; \
if [ -z "$$python" ]; then \
	echo "l2m-optax needs $(4), and found none among: $(2)." >&2; \
	echo "Install one (https://www.python.org/downloads), or name it: make PYTHON=/path/to/python ..." >&2; \
	exit 1; \
fi; \
if ! "$$python" -c 'import ensurepip, venv' 2>/dev/null; then \
	version=$$("$$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
	echo "$$python has no venv or ensurepip module, which make the virtual environment." >&2; \
	echo "On Debian or Ubuntu: sudo apt install python$$version-venv. Then run make again." >&2; \
	exit 1; \
fi; \
echo "Making $(1) with $$("$$python" --version)"; \
rm -rf $(1) && "$$python" -m venv $(1)
endef

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1: /p' Makefile | awk -F ': ' '{ printf "  make %-20s %s\n", $$1, $$2 }'

demo: .venv/.demo ## run the quickstart, notebooks/01_quickstart.py
	@echo "Running notebooks/01_quickstart.py"
	@$(PY) notebooks/01_quickstart.py

test: lint types pytest ## run the linter, the type checker and all tests

lint: .venv/.dev ## check the style with ruff
	@echo "Checking the style"
	@$(PY) -m ruff check --quiet
	@$(PY) -m ruff format --check --quiet || \
		{ echo "Some files are not formatted: run make format." >&2; exit 1; }

types: .venv/.dev ## check the types with mypy
	@echo "Checking the types"
	@$(PY) -m mypy

pytest: .venv/.dev ## run the tests and the examples in the docstrings
	@echo "Running the tests"
	@JAX_PLATFORMS=cpu $(PY) $(PYTEST)

coverage: .venv/.dev ## run the tests and report what lines and branches they cover; below 95% is an error
	@echo "Running the tests, with coverage"
	@JAX_PLATFORMS=cpu $(PY) $(PYTEST) --cov --cov-report=term --cov-report=html

mutants: .venv/.mutants ## change the mathematics here and there: does a test fail? (an hour or two)
	@$(PY) benchmarks/mutate.py --number 250 --seed 0 --workers 2

format: .venv/.dev ## format the code and mend what the linter can mend
	@$(PY) -m ruff check --fix --quiet || true
	@$(PY) -m ruff format

docs: .venv/.dev ## make the site in docs/_build/html; a warning is an error
	@echo "Making docs/_build/html/index.html"
	@JAX_PLATFORMS=cpu $(PY) -m sphinx -q --fail-on-warning --keep-going -b html docs docs/_build/html
	@$(PY) docs/check_links.py docs/_build/html

notebooks: $(patsubst %.py,%.ipynb,$(wildcard notebooks/*.py)) ## run each notebook's .py into the .ipynb beside it

notebooks/%.ipynb: notebooks/%.py docs/make_notebook.py | .venv/.dev
	@echo "Making $@"
	@$(PY) docs/make_notebook.py $<

docs-optimizers: .venv/.dev ## make the table of optimizers from the tests' own
	@$(PY) docs/make_optimizers.py

docs-method: .venv/.dev ## train two small networks and draw the pictures of README
	@JAX_PLATFORMS=cpu $(PY) docs/make_method.py

docs-results: .venv/.dev ## write benchmarks/results into its Markdown, README and the landing page
	@$(PY) benchmarks/report.py
	@$(PY) docs/make_readme.py

bench: $(BENCH_PEERS) ## compare with every peer, into benchmarks/results (an hour or two; minutes with FAST=1)

$(BENCH_PEERS): bench-%: .venv-bench/.bench
	@FAST=$(FAST) JAX_PLATFORMS=cpu $(PY_BENCH) benchmarks/$*.py

bench-batch-size: .venv/.dev ## study F against the batch size, at fixed weights
	@$(PY) benchmarks/batch_size.py

bench-identify: .venv/.dev ## measure what identify costs on 25 million parameters
	@$(PY) benchmarks/identify.py

bench-examples: .venv/.dev ## measure per-example moments against a plain step
	@$(PY) benchmarks/examples.py

bench-calibration: .venv/.dev ## compare predictive distributions on Fashion-MNIST
	@$(PY) benchmarks/calibration.py

bench-scale: .venv/.dev ## measure bytes and bandwidth up to 250M parameters, and fine-tune a transformer
	@$(PY) benchmarks/accelerator.py
	@$(PY) benchmarks/text.py

bench-other-seeds: .venv/.dev ## repeat the classifiers of bench-tasks under seeds that had no part in a choice
	@FAST=$(FAST) JAX_PLATFORMS=cpu $(PY) benchmarks/tasks.py other-seeds

bench-serving: .venv/.dev ## measure predictions with draws against passes of the bare network
	@$(PY) benchmarks/serving.py

bench-variance: .venv/.dev ## measure what output_variance costs, in passes and in memory
	@$(PY) benchmarks/predictive_variance.py

bench-alarm: .venv/.dev ## study the temperature of the alarm for inputs of another kind
	@FAST=$(FAST) JAX_PLATFORMS=cpu $(PY) benchmarks/alarm.py

bench-cold: .venv/.dev ## study how small a temperature without validation data should be
	@JAX_PLATFORMS=cpu $(PY) benchmarks/cold.py

bench-evidence: .venv-bench/.bench ## compare the evidence's weight decay with grids of decays and other ways (hours)
	@FAST=$(FAST) JAX_PLATFORMS=cpu $(PY_BENCH) benchmarks/evidence.py

bench-softmax: .venv/.dev ## compare ways to average a softmax over Gaussian logits
	@JAX_PLATFORMS=cpu $(PY) benchmarks/softmax.py

bench-soap: .venv/.dev ## measure what older bases cost in SOAP's moment, into benchmarks/results
	@JAX_PLATFORMS=cpu $(PY) benchmarks/soap.py

bench-low-rank: .venv/.dev ## compare the last batch gradients, by Woodbury, with a diagonal and with factors
	@FAST=$(FAST) JAX_PLATFORMS=cpu $(PY) benchmarks/low_rank.py

bench-structure-cost: .venv/.dev ## measure what trackers add to a step of Adam, and what factors cost to read
	@FAST=$(FAST) JAX_PLATFORMS=cpu $(PY) benchmarks/structure_cost.py
	@FAST=$(FAST) JAX_PLATFORMS=cpu $(PY) benchmarks/structure_reading.py

bench-temperature: .venv/.dev ## compare rules for a classifier's temperature
	@$(PY) benchmarks/temperature.py

test-oldest: .venv-oldest/.test ## run the tests on the oldest supported versions
	@echo "Running the tests on the oldest supported versions"
	@JAX_PLATFORMS=cpu $(PY_OLDEST) $(PYTEST)

dist: .venv/.dev ## build the wheel and the sdist
	@rm -rf dist && $(PY) -m build --outdir dist . >/dev/null && ls dist

test-dist: dist ## install the sdist, then the wheel, into an empty environment, and run the demo there
	$(call make_venv,.venv-dist,$(CANDIDATES),v >= (3, 11),Python 3.11 or newer)
	@$(PY_DIST) $(PIP_INSTALL) "$$(ls $(CURDIR)/dist/*.tar.gz)[demo]"
	@$(PY_DIST) $(PIP_INSTALL) --no-deps --force-reinstall dist/*.whl
	@mkdir .venv-dist/sdist && tar -xzf dist/*.tar.gz -C .venv-dist/sdist --strip-components 1
	@rm -r .venv-dist/sdist/l2m_optax && cd .venv-dist/sdist && ../bin/python notebooks/01_quickstart.py

clean: ## remove all that make, the tests and the demo have made
	@rm -rf .venv .venv-oldest .venv-bench .venv-dist build dist outputs .coverage htmlcov docs/_build docs/generated docs/made docs/notebooks
	@rm -rf .jax_cache .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
	@echo "Clean"

# A stamp is touched only after its step is done, so a step that was interrupted is done again.

.venv/.made:
	$(call make_venv,.venv,$(CANDIDATES),v >= (3, 11),Python 3.11 or newer)
	@touch $@

.venv/.demo: .venv/.made $(METADATA)
	@echo "Installing l2m-optax and what the demo needs (minutes, the first time)"
	@$(PY) $(PIP_INSTALL) -e '.[demo]'
	@touch $@

.venv/.dev: .venv/.made $(METADATA)
	@echo "Installing l2m-optax and what its development needs (minutes, the first time)"
	@$(PY) $(PIP_INSTALL) -e '.[dev]'
	@touch .venv/.demo $@

.venv/.mutants: .venv/.dev
	@$(PY) $(PIP_INSTALL) -e '.[mutants]'
	@touch $@

.venv-oldest/.made:
	$(call make_venv,.venv-oldest,$(CANDIDATES),(3, 11) <= v < (3, 14),Python 3.11 to 3.13 for the oldest versions)
	@touch $@

.venv-oldest/.test: .venv-oldest/.made $(METADATA) tests/constraints-oldest.txt
	@echo "Installing the oldest supported versions (minutes, the first time)"
	@$(PY_OLDEST) $(PIP_INSTALL) -c tests/constraints-oldest.txt -e '.[test]'
	@touch $@

.venv-bench/.made:
	$(call make_venv,.venv-bench,$(CANDIDATES),(3, 11) <= v < (3, 14),Python 3.11 to 3.13 for the peers)
	@touch $@

.venv-bench/.bench: .venv-bench/.made $(METADATA) benchmarks/peers-no-deps.txt
	@echo "Installing l2m-optax and the peers it is compared with (minutes, the first time)"
	@$(PY_BENCH) $(PIP_INSTALL) -e '.[bench]'
	@$(PY_BENCH) $(PIP_INSTALL) --no-deps -r benchmarks/peers-no-deps.txt
	@touch $@
