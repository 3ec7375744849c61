# What people type often. Everything here is plain pyinfra, pytest and python underneath; `make -n TARGET` shows it.

INVENTORY ?= inventories/lab.py
SLOT ?= 0
# The tests use slots TEST_SLOT and TEST_SLOT + 1 (one per worker), so that they and a running demo do not meet.
TEST_SLOT ?= 6
SYSTEM ?=

PYTHON := .venv/bin/python
# Lab hosts need root. -E: HOSTWRIGHT_*, PIP_*, proxies; env PATH: sudo replaces it.
ROOT := $(if $(filter-out 0,$(shell id -u)),sudo -n -E env PATH="$$PATH")
LAB_TESTS := $(if $(SYSTEM),$(wildcard tests/lab/test_$(SYSTEM).py tests/lab/test_$(SYSTEM)_*.py),tests/lab)
# The soak in parts, hours in all: what came with a system, and the rest, which every system stands on.
soak-tests = $(wildcard $(foreach name,$(1),tests/lab/test_$(name).py tests/lab/test_$(name)_*.py))
SOAK_cricksy := $(call soak-tests,cricksy backup_redis pgcluster redis celery tesseract s3)
SOAK_liap := $(call soak-tests,liap compose archive pgbouncer sentinel monitoring exporter prometheus)
SOAK_codeclashers := $(call soak-tests,codeclashers k3s manifests ci_runner backup_mongodb)
SOAK_OTHERS := $(SOAK_cricksy) $(SOAK_liap) $(SOAK_codeclashers)
SOAK_mcbench := $(filter-out $(SOAK_OTHERS) tests/lab/test_backup.py,$(call soak-tests,mcbench engine registry published container \
	replicas cleanup backup emulation images))
SOAK_foundation := $(filter-out $(SOAK_mcbench) $(SOAK_OTHERS),$(sort $(wildcard tests/lab/test_*.py)))
SOAK_PARTS := foundation mcbench cricksy liap codeclashers
PART ?= $(SOAK_PARTS)
PYTEST_LAB := $(ROOT) HOSTWRIGHT_LAB_SLOT=$(TEST_SLOT) $(PYTHON) -B -m pytest -p no:cacheprovider

export PYTHONDONTWRITEBYTECODE := 1

.PHONY: help setup venv demo test unit lab-test soak $(SOAK_PARTS:%=soak-%) lint verify bench docs lab-up lab-down clean lock

help:
	@echo 'make demo      boot real hosts here, provision the gateway on them, check them'
	@echo 'make demo SYSTEM=mcbench   the same with a fleet of containers; takes minutes'
	@echo 'make test      lint, unit tests, lab tests (as CI does)'
	@echo 'make unit | lint | docs'
	@echo 'make lab-test [SYSTEM=gateway] | soak [PART=foundation|mcbench|cricksy|liap|codeclashers] | bench'
	@echo 'make verify INVENTORY=inventories/prod.py'
	@echo 'make lab-up | lab-down | clean'

venv:
	@./bootstrap venv

setup:
	@./bootstrap lab

demo: setup
	@$(ROOT) HOSTWRIGHT_LAB_SLOT=$(SLOT) $(PYTHON) -m tests.lab demo $(if $(SYSTEM),--system $(SYSTEM))

# Says how long each step took. `date` and not SECONDS: make's shell is sh.
test:
	@for step in lint unit lab-test; do \
		started=$$(date +%s); status=0; \
		$(MAKE) --no-print-directory "$$step" || status=$$?; \
		echo "==> make $$step: $$(($$(date +%s) - started)) s, exit status $$status"; \
		[ "$$status" = 0 ] || exit "$$status"; \
	done

unit: venv
	$(PYTHON) -m pytest -n 2 tests/unit

lab-test: setup
	@test -n "$(LAB_TESTS)" || { echo "no lab tests: tests/lab/test_$(SYSTEM)*.py" >&2; exit 1; }
	@$(ROOT) $(PYTHON) -m tests.lab images --all
	$(PYTEST_LAB) -n 2 -m 'not soak or gate' $(LAB_TESTS)

soak: setup
	@$(ROOT) $(PYTHON) -m tests.lab images --all
	$(PYTHON) -m pytest -n 2 tests/unit
	@for part in $(PART); do \
		$(MAKE) --no-print-directory "soak-$$part" || failed="$$failed $$part"; \
	done; \
	[ -z "$$failed" ] || { echo "==> soak: failed:$$failed" >&2; exit 1; }

$(SOAK_PARTS:%=soak-%): soak-%:
	$(PYTEST_LAB) -n 2 $(SOAK_$*)

lint: venv
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy
	.venv/bin/shellcheck bootstrap .ci/run $$(git ls-files -co --exclude-standard '*.sh')
	.venv/bin/yamllint --strict .

verify: venv
	$(PYTHON) -m pytest tests/verify --inventory $(INVENTORY) $(if $(LIMIT),--limit $(LIMIT))

bench: setup
	$(ROOT) HOSTWRIGHT_LAB_SLOT=$(SLOT) $(PYTHON) -m benchmarks

docs: venv
	$(PYTHON) -m settings.reference > docs/settings.md

lab-up: setup
	@$(ROOT) HOSTWRIGHT_LAB_SLOT=$(SLOT) $(PYTHON) -m tests.lab up

# Without a virtual environment there is no lab either; the system's Python can still remove one.
lab-down:
	@$(ROOT) $(if $(wildcard $(PYTHON)),$(PYTHON),python3) -m tests.lab down

clean: lab-down
	@$(ROOT) $(if $(wildcard $(PYTHON)),$(PYTHON),python3) -m tests.lab clean
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis pyinfra-debug.log
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Locks for the Pythons of all supported systems; uv resolves for all of them at once.
lock: venv
	.venv/bin/pip install --quiet --disable-pip-version-check --target .venv/lock uv
	.venv/lock/bin/uv pip compile --universal --python-version 3.10 --generate-hashes --no-emit-index-url --no-emit-find-links \
		--custom-compile-command 'make lock' --quiet -o requirements.txt pyproject.toml
	.venv/lock/bin/uv pip compile --universal --python-version 3.10 --generate-hashes --no-emit-index-url --no-emit-find-links \
		--custom-compile-command 'make lock' --quiet -c requirements.txt --extra dev -o requirements-dev.txt pyproject.toml
