# `make demo` and `make test` need Python 3.11 or newer, make and git, and set up all else by themselves.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
UV_VERSION := 0.13.9
UV := .tools/uv-$(UV_VERSION)/bin/uv
RUN := .venv/bin

# What is imported is compiled once, not by each of the many processes that tests start.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test check format bench soak clean

demo: .venv/.ready
	@$(RUN)/musher demo

# Four at a time: most of the time goes into waiting for servers that start.
test: .venv/.ready
	$(RUN)/coverage erase
	$(RUN)/pytest -n 4 --dist worksteal --cov --cov-report=
	$(RUN)/coverage report
	@$(RUN)/coverage report --include='crdt/*' --fail-under=95 --format=total | sed 's/^/coverage of crdt: /'
	@$(RUN)/coverage report --include='bot/*' --fail-under=85 --format=total | sed 's/^/coverage of bot: /'

check: .venv/.ready
	$(RUN)/ruff format --check
	$(RUN)/ruff check
	$(RUN)/mypy
	$(RUN)/pytest tests/test_architecture.py

format: .venv/.ready
	$(RUN)/ruff format
	$(RUN)/ruff check --fix

# Ten minutes; docs/benchmarks.md tells what it measures, and how to measure less.
bench: .venv/.ready
	@$(SYNC) --group bench --inexact --system-certs 2>/dev/null || $(SYNC) --group bench --inexact
	$(RUN)/python -m benchmarks.profile > docs/benchmarks-profile.txt
	$(RUN)/python -m benchmarks --json docs/benchmarks.json --svg docs/benchmarks.svg

# Ten minutes of random faults and kills; the seed is printed. `make soak SOAK="--minutes 60 --rooms 8 --encrypted 2"`
soak: .venv/.ready
	$(RUN)/python -m tests.soak $(SOAK)

clean:
	rm -rf .venv .tools .demo .coverage* .pytest_cache .mypy_cache .ruff_cache .hypothesis

# A company's own certificates are known to the system, not to uv; a system without certificates needs uv's.
SYNC = UV_PROJECT_ENVIRONMENT=.venv $(UV) sync --frozen --all-extras --no-python-downloads --python "$(PYTHON)" --quiet

.venv/.ready: pyproject.toml uv.lock $(UV)
	@$(SYNC) --system-certs 2>/dev/null || $(SYNC)
	@touch $@

$(UV):
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "musher needs Python 3.11 or newer, and found $$("$(PYTHON)" --version 2>&1 || echo none):" \
	    "install it, or name one with 'make PYTHON=/path/to/python3.11 …'" >&2; exit 1; }
	@"$(PYTHON)" -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "this Python can't make environments: install the package" \
	    "python$$("$(PYTHON)" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv" \
	    "(on Debian and Ubuntu: sudo apt install python3-venv), then run make again" >&2; exit 1; }
	@echo "setting up (the first time takes a minute) …"
	@"$(PYTHON)" -m venv .tools/uv-$(UV_VERSION)
	@.tools/uv-$(UV_VERSION)/bin/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
