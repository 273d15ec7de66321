# `make demo` and `make test` set up all they need, for an ordinary user and for root: see
# CONTRIBUTING.md. Everything else works in the virtual environment that they make.

# Debian's Python and not whatever PATH says: the sandbox's user must be able to read it.
PYTHON ?= /usr/bin/python3
VENV ?= .venv
# Handed to pytest, such as PYTEST_ARGS="-k pivot -x"
PYTEST_ARGS ?=
# Handed to the benchmarks, such as BENCH_ARGS="--rounds 3 kernel_start" or BENCH_ARGS=--long
BENCH_ARGS ?=
export PYTHON VENV PYTEST_ARGS BENCH_ARGS

.DEFAULT_GOAL := help
.PHONY: help demo test test-escape test-browser test-vm vm-run caps-table bench venv lint format types wheel sdist clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## run the quickstart notebook in a sandbox and print what it saw
	@tools/run demo

test: ## all checks and all tests, as an ordinary user (root makes a throw-away one)
	@tools/run test

test-escape: ## only the tests that try to get out
	@tools/run test-escape

test-browser: ## cells in a real JupyterLab in Chromium; pictures of them in build/test
	@tools/run test-browser

test-vm: ## the suites that start sandboxes, in a Debian 12 of its own with cgroup v2 (root only)
	@tools/vm/prerequisites
	@"$(PYTHON)" -I tools/vm/suites.py

vm-run: ## one command in it, as in make vm-run VM_CMD="--user deleg pytest -x integration"
	@tools/vm/run $(VM_CMD)

caps-table: ## docs/caps.md from the results of make test and make test-vm, both run by root
	@"$(PYTHON)" -I tools/caps-table

bench: ## ours, ipykernel, bubblewrap and runc side by side, in minutes: a table and bench.json
	@tools/run bench

venv: ## the virtual environment with everything for development, this package included
	@tools/prerequisites
	@tools/venv "$(VENV)" dev
	@tools/install "$(VENV)"

lint: venv ## ruff and mypy, and nothing is run
	@tools/checks "$(VENV)" lint

types: venv ## mypy alone
	@"$(VENV)/bin/mypy" sandbox_kernel

format: venv ## let ruff lay out the code
	@"$(VENV)/bin/ruff" format .
	@"$(VENV)/bin/ruff" check --fix .

wheel: venv ## build dist/*.whl, one for all Pythons from 3.11 on
	@"$(VENV)/bin/python" -m build --wheel --no-isolation

sdist: venv ## build dist/*.tar.gz
	@"$(VENV)/bin/python" -m build --sdist --no-isolation

clean: ## remove what was built here, the virtual environment included
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage
	rm -f sandbox_kernel/syscalls/_lib.c sandbox_kernel/syscalls/_lib.o
	rm -f sandbox_kernel/syscalls/_lib*.so sandbox_kernel/syscalls/_seccomp_abi.py
	find sandbox_kernel tests tools -name __pycache__ -prune -exec rm -rf {} +
	if [ -e "$(VENV)/pyvenv.cfg" ]; then rm -rf "$(VENV)"; fi
