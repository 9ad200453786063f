# Everything starts here. Each target first makes .venv what it must be (scripts/install.sh); that costs
# nothing when nothing has changed.

KUDOS := .venv/bin/kudos
PYTHON := .venv/bin/python
# Left to `make test`: real engines, browsers and database servers, and whatever takes long.
QUICK := not engine and not browser and not postgres and not slow
TEST_ARGS ?=
# Where a container sets this, every process would compile torch and vLLM anew: half a minute each.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help run demo test test-clients check fmt clean constraints reference install install-dev

help: ## Say what the targets do
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

run: install ## Set everything up, start the server and the trainer, print the page's address
	@exec $(KUDOS) up

demo: install ## Watch simulated raters teach a fresh kudos, and the proof that it got better
	@exec $(KUDOS) demo

test: install-dev ## All tests, with real engines, databases and browsers
	$(PYTHON) -m pytest -n 2 --dist loadscope $(TEST_ARGS)

test-clients: install-dev ## Clients that no one here wrote, against a real server; installs them first (minutes, 3 GB)
	sh tests/clients/install.sh
	$(PYTHON) -m pytest tests/clients $(TEST_ARGS)

check: install-dev ## Style, types, arrows and quick tests; under two minutes
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	.venv/bin/lint-imports
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -q -n 3 --dist worksteal -m "$(QUICK)" $(TEST_ARGS) # some of them wait

fmt: install-dev ## Format, and fix what can be fixed by itself
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check --fix .

constraints: ## Recompile constraints/ (UPGRADE=--upgrade moves every pin)
	sh scripts/constraints.sh $(UPGRADE)

reference: install-dev ## Rewrite docs/reference.md from the code
	$(PYTHON) scripts/reference.py

clean: ## Remove the environment and all caches; the home folder stays
	rm -rf .venv .uv .clients .schemathesis .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

install:
	@sh scripts/install.sh run

install-dev:
	@sh scripts/install.sh test
