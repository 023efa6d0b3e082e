# `make run` starts everything on this machine; `make test` checks everything once. Nothing is installed outside this folder.
.PHONY: run test test-all versions lint format lock docs clean
.DEFAULT_GOAL := run
PYTHON := .venv/bin/python
# Two modules at a time: they wait for clocks more than they compute, and have servers and ports of their own. In the order of
# the folders: the slow ones come first, and the many short ones fill the end of both.
PYTEST := $(PYTHON) -m pytest --cov -n 2 --dist loadfile --no-loadscope-reorder
# A link or an anchor that leads nowhere is an error.
SPHINX := $(PYTHON) -m sphinx -c docs --fresh-env --fail-on-warning --keep-going --quiet

run: .venv/runtime
	@$(PYTHON) manage.py migrate --verbosity 0
	@exec $(PYTHON) -m project.start

# One pairing of channel layer, server and database for every test.
test: lint
	$(PYTEST) -m "not matrix"

# Every test with every pairing.
test-all: lint
	$(PYTEST)

# The tests with the lowest and the newest versions of everything, on each Python that is on PATH.
# `make versions RUNS="lowest newest-3.12-*"` makes only these runs.
versions: .venv/development
	@$(PYTHON) -m tests.support.versions $(RUNS)

lint: .venv/development
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	.venv/bin/lint-imports
	.venv/bin/bandit --configfile pyproject.toml --recursive --quiet realtime project
	$(PYTHON) -m codespell_lib
	$(PYTHON) -m tests.support.lint.prose --quiet
	$(PYTHON) -m tests.support.lint.client_size
	$(SPHINX) -b dummy -d build/links . build/links

format: .venv/development
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

# Writes the requirements from pyproject.toml. `make lock UPGRADE=--upgrade` takes the newest versions that it allows.
lock: .venv/development
	@sh project/lock.sh $(UPGRADE)

# The pages of docs/ and the README as a site; open site/index.html.
docs: .venv/development
	$(SPHINX) -b html -d build/site . site

# The database in var/ stays.
clean:
	rm -rf .venv build dist site *.egg-info .coverage .coverage.* htmlcov
	rm -rf .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps are as old as the last installation, so requirements are installed again only when they changed.
.venv/runtime: requirements.txt project/make-venv.sh .venv/bin/python
	@sh project/make-venv.sh requirements.txt
	@touch $@

.venv/development: requirements-dev.txt requirements.txt project/make-venv.sh .venv/bin/python
	@sh project/make-venv.sh requirements-dev.txt
	@touch $@ .venv/runtime

# Made anew when its Python was removed from this machine.
.venv/bin/python:
	@sh project/make-venv.sh
