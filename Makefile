# Every target does its own set-up. `make` lists them.
VENV   := .venv
PYTHON := $(VENV)/bin/python
PYTEST := $(VENV)/bin/pytest
SETUP  := $(VENV)/.installed-dev
CODE   := libs services native tests loadtests docs examples deploy/ansible

.DEFAULT_GOAL := help
.PHONY: help setup format lint types layers unit integration native-test proto proto-check wheel-test test \
        bench bench-peers soak bench-scheduler bench-scheduling validate-simulator live-vs-simulated retrieval \
        test-vllm conformance system rollout clean

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  \033[1m%-19s\033[0m %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(SETUP)  ## Create .venv with SAGE (editable, native code built) and the development tools

$(SETUP): pyproject.toml configs/constraints.txt $(wildcard native/CMakeLists.txt native/src/* native/src/*/* native/include/*/* native/include/*/*/*)
	./quickstart.sh --install dev
	touch $@

format: $(SETUP)  ## Rewrite the code in the common format
	$(VENV)/bin/ruff format $(CODE)
	$(VENV)/bin/ruff check --fix $(CODE)

lint: $(SETUP)  ## Check format and lint rules
	$(VENV)/bin/ruff format --check $(CODE)
	$(VENV)/bin/ruff check $(CODE)

types: $(SETUP)  ## Check types (mypy --strict)
	$(VENV)/bin/mypy

layers: $(SETUP)  ## Check that layers import downward only
	$(VENV)/bin/lint-imports

unit: $(SETUP)  ## Run the unit tests: no network, about a minute
	$(PYTEST) -q tests/unit

integration: $(SETUP)  ## Run the tests that need a real nats-server or processes
	$(PYTEST) -q -m "not vllm" tests/integration

native-test: $(SETUP)  ## Build the C++ code with ASan and UBSan and run its tests
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" cmake -S native -B build/asan -G Ninja -DSAGE_SANITIZE=ON \
	  -DCMAKE_BUILD_TYPE=RelWithDebInfo >/dev/null
	$(VENV)/bin/cmake --build build/asan
	$(VENV)/bin/ctest --test-dir build/asan --output-on-failure

proto: $(SETUP)  ## Regenerate proto/ and the settings reference from the code
	$(PYTHON) -m sage_wire.schema
	$(PYTHON) docs/reference/generate.py

proto-check: $(SETUP)  ## Fail when proto/ or the settings reference is stale
	$(PYTHON) -m sage_wire.schema --check
	$(PYTHON) docs/reference/generate.py --check

wheel-test: $(SETUP)  ## Build the wheel and test it with the source tree out of the way
	tests/wheel/run.sh

test: lint types layers proto-check native-test unit  ## Run everything that CI runs
	# Side by side: the integration tests wait more than they compute.
	$(MAKE) -j2 integration wheel-test

bench: $(SETUP)  ## Measure SAGE alone: requests/s, SSE tokens/s, what it adds, where (about 2 minutes)
	$(PYTHON) loadtests/peers/run.py --quick --peers sage-core,sage

bench-peers: $(SETUP)  ## Measure SAGE beside other OpenAI gateways (about 25 minutes; installs them)
	$(PYTHON) loadtests/peers/run.py

soak: $(SETUP)  ## Load a whole instance for an hour and fail where anything grows or is left over
	$(PYTHON) loadtests/soak/soak.py

bench-scheduler: $(SETUP)  ## Measure the time of one scheduling decision and the speed of the simulator
	$(PYTHON) loadtests/scheduling/decision_time.py
	$(PYTHON) loadtests/scheduling/simulator_speed.py

bench-scheduling: $(SETUP)  ## Compare the scheduling policies on real traces (about half an hour)
	$(PYTHON) loadtests/scheduling/bench.py

validate-simulator: $(SETUP)  ## Compare the simulator with measured runs of vLLM
	$(PYTHON) loadtests/scheduling/validate.py

live-vs-simulated: $(SETUP)  ## Compare a live fleet of emulated engines with its simulation
	$(PYTHON) loadtests/scheduling/live_vs_simulated.py

retrieval: $(SETUP)  ## Index 1,000+ real documents and score 20 questions
	loadtests/retrieval/run.sh

test-vllm:  ## Install vLLM (CPU build) in its own venv and test it through the whole stack
	tests/vllm/run.sh

conformance: $(SETUP)  ## Run other people's clients and test suites against SAGE (fetches them; about 15 minutes)
	PYTHONPATH=tests $(PYTHON) -m conformance

system: $(SETUP)  ## Build the images of deploy/compose and test the stack in containers (about 15 minutes; root, Docker)
	tests/system/run.sh

# The Python that wheels are built for: that of the hosts.
rollout:  ## Roll out to three hosts in containers with deploy/ansible and check them (about 20 minutes; root)
	PYTHONPATH=tests python3 -m rollout $(ARGS)

clean:  ## Remove what builds and tests left behind
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis native/sage_native/*.so
