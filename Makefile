# make demo and make test need nothing but Python 3.11+ and a C library; both set up a virtual environment first,
# make demo one with what it needs, make test one with everything.
PYTHON ?= python3
VENV ?= .venv
MODEL ?= minilm-hybrid
ENGINE ?= onnxruntime
DIVISION ?= 0
# Test files at once; a worker takes up to 1.5 GB. 0: all in one process, for a debugger.
JOBS ?= 2
BIN := $(VENV)/bin
STAMP := $(VENV)/.covey-installed
SOURCES := pyproject.toml setup.py edge_runtime/native/kernel/perturb.c
EXTRA_executorch := ,executorch
EXTRA_mixed := ,executorch
export PYTHON VENV

.PHONY: $(shell sed -nE 's/^([a-z-]+):.*/\1/p' $(firstword $(MAKEFILE_LIST)))

help: ## what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

install: $(STAMP) ## a virtual environment with everything

$(STAMP): $(SOURCES)
	@.ci/setup installed server,export,executorch,dev

$(VENV)/.covey-demo-%: $(SOURCES)
	@.ci/setup demo-$* server,export$(EXTRA_$*)

dev: $(STAMP) ## for contributors: the environment, and git hooks that lint what is committed
	$(BIN)/pre-commit install --install-hooks

demo: $(VENV)/.covey-demo-$(ENGINE) ## 8 devices learn from real reviews (MODEL=minilm-hybrid, minilm or smollm2, ENGINE=onnxruntime, executorch or mixed, DIVISION=0, 1, …)
	@$(BIN)/covey demo --model $(MODEL) --engine $(ENGINE) --division $(DIVISION)

test: $(STAMP) ## the default tests (JOBS=2: files at once)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

test-all: $(STAMP) ## the slow tests too
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder -m 'not long and not hil'

test-long: $(STAMP) ## every architecture on every runtime (most of an hour)
	$(BIN)/python -m pytest -m long

explore: $(STAMP) ## the property tests with new examples; the default tests draw the same ones in every run
	$(BIN)/python -m pytest -m 'hypothesis and not long and not hil' --hypothesis-profile explore

test-oldest: $(STAMP) ## the oldest versions that pyproject.toml allows, each side in an environment of its own (some minutes)
	python310=$$(.ci/python310) && $(BIN)/python .ci/versions.py edge oldest --python "$$python310"
	$(BIN)/python .ci/versions.py edge oldest
	$(BIN)/python .ci/versions.py export oldest

test-newest: $(STAMP) ## the newest versions that pyproject.toml allows (some minutes)
	$(BIN)/python .ci/versions.py edge newest
	$(BIN)/python .ci/versions.py export newest

test-arm: $(STAMP) ## golden values and full steps on emulated arm64: Pythons and processors of docs/arm.md (a quarter of an hour)
	$(BIN)/python -m pytest tests/arm -m 'not hil'

# GGML_NATIVE=OFF: the same code on every machine.
test-llama: $(STAMP) ## llama.cpp against PyTorch on what covey finish writes for it: compiles llama-cpp-python (some minutes)
	CMAKE_ARGS="-DGGML_NATIVE=OFF" $(BIN)/python -m pip install --quiet --disable-pip-version-check 'llama-cpp-python>=0.3.16'
	$(BIN)/python -m pytest tests/export/test_llama_cpp.py -m 'slow or not slow'

check: $(STAMP) ## one file in seconds: make check FILE=edge_runtime/seeds.py (lint, types, the tests that import it)
	@test -n "$(FILE)" || { echo "name the file: make check FILE=edge_runtime/seeds.py"; exit 2; }
	@$(BIN)/python .ci/check.py $(FILE)

files: $(STAMP) ## write docs/files.md, and the fields in docs/protocol.md, from the sources
	$(BIN)/python .ci/house.py --write

lint: $(STAMP) ## ruff, mypy, import-linter, and the house: sizes, circles, rooms, docs/files.md
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --config-file .ci/mypy_tests.ini
	$(BIN)/lint-imports
	$(BIN)/python .ci/house.py

format: $(STAMP) ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP) ## speed and memory as ratios, and a short comparison of methods; each ends with a line of JSON
	$(BIN)/python -m benchmarks.speed.step
	$(BIN)/python -m benchmarks.learning.convergence --quick

bench-full: $(STAMP) ## speed and memory where every weight is trained (SmolLM2; some minutes)
	$(BIN)/python -m benchmarks.speed.step --train full --repeats 5

bench-convergence: $(STAMP) ## all methods, tuned, three seeds, two runs at a time (hours; can be stopped and started)
	$(BIN)/python -m benchmarks.learning.convergence --model $(MODEL:-hybrid=) --jobs 2

bench-droppeft: $(STAMP) ## dropout levels, personal layers, hybrid rounds, three seeds (hours; can be stopped and started)
	$(BIN)/python -m benchmarks.learning.droppeft --model $(MODEL:-hybrid=)

bench-engines: $(STAMP) ## ExecuTorch against ONNX Runtime (MODEL=minilm or smollm2); the last line is JSON
	$(BIN)/python -m benchmarks.speed.engines --model $(MODEL:-hybrid=)

bench-decode: $(STAMP) ## tokens a second with a key-value cache, against without one (SmolLM2; some minutes); the last line is JSON
	$(BIN)/python -m benchmarks.speed.decode
bench-fronts: $(STAMP) ## steps with a frozen front: looked up, run for the first time, never kept (MiniLM); the last line is JSON
	$(BIN)/python -m benchmarks.speed.fronts
bench-stacked: $(STAMP) ## many directions in one call against one by one, rows × tokens × adapters × threads; the last line is JSON
	$(BIN)/python -m benchmarks.speed.stacked
bench-base: $(STAMP) ## memory, speed and loss of a quantised base (MODEL=minilm or smollm2); the last line is JSON
	$(BIN)/python -m benchmarks.speed.base --model $(MODEL:-hybrid=)

bench-levels: $(STAMP) ## speed and memory of training graphs, against PyTorch (some minutes)
	$(BIN)/python -m benchmarks.speed.levels

bench-top: $(STAMP) ## the last layers trained alone: speed, memory and accuracy (MiniLM; an hour, can be stopped and started)
	$(BIN)/python -m benchmarks.speed.top_levels --model minilm --tokens 48
	$(BIN)/python -m benchmarks.learning.top_levels

bench-schedules: $(STAMP) ## schedules over kinds of devices and over the front (MiniLM; an hour, can be stopped and started)
	$(BIN)/python -m benchmarks.learning.schedules

bench-memory: $(STAMP) ## estimated memory of training graphs against measured peaks, every architecture (some minutes)
	$(BIN)/python -m benchmarks.speed.memory_need

bench-switches: $(STAMP) ## what each switch of the step rule gives, three seeds (an hour; can be stopped and started); the last line is JSON
	$(BIN)/python -m benchmarks.learning.switches

bench-bandit: $(STAMP) ## policies of the bandit on traces, simulated; the last line is JSON
	$(BIN)/python -m benchmarks.arm_choice.policies --seeds 12 --plot docs/bandit.png

bench-fleet: $(STAMP) ## the bandit with eight device processes and MiniLM, against full depth (half an hour)
	$(BIN)/python -m benchmarks.arm_choice.fleet --workdir .covey/bandit-fleet --seeds 2 --plot .covey/bandit-fleet.png

bench-load: $(STAMP) ## 500 real sessions through mosquitto with TLS and signatures, 200 rounds of 200 (15 minutes); the last line is JSON
	$(BIN)/python -m benchmarks.fleet

bench-scale: $(STAMP) ## thousands of sessions on one server, and what else grows with a fleet; the last line is JSON
	$(BIN)/python -m benchmarks.scale

bench-rounds: $(STAMP) ## what a round, dead devices and a fleet at rest cost the server; the last line is JSON
	$(BIN)/python -m benchmarks.speed.rounds

bench-costs: $(STAMP) ## what a device and a round cost the server, and the model of covey scale; the last line is JSON
	$(BIN)/python -m benchmarks.speed.costs --write

bench-failover: $(STAMP) ## seconds until a standby goes on after kill -9, and rounds with PostgreSQL against SQLite (some minutes); the last line is JSON
	$(BIN)/python -m benchmarks.speed.failover

bench-signing: $(STAMP) ## what signatures cost, per message and per round of 1,000 devices; the last line is JSON
	$(BIN)/python -m benchmarks.speed.signing

bench-ray: $(STAMP) ## replay and evaluation on two workers of Ray, against one process (MiniLM; some minutes); the last line is JSON
	$(BIN)/python -m benchmarks.speed.ray_work

bench-dashboard: $(STAMP) ## seconds of the dashboard's pages with 10,000 devices; the last line is JSON
	$(BIN)/python -m benchmarks.speed.dashboard

bench-perturb: $(STAMP) ## speed of perturbing and replay; the last line is JSON
	$(BIN)/python -m benchmarks.speed.perturb

deb: $(STAMP) ## Debian packages of the device side: Debian 12 and 13, 64-bit Arm; they are in dist/
	mkdir -p dist
	$(BIN)/covey flash deb --python 3.11 --out dist
	$(BIN)/covey flash deb --python 3.13 --out dist

docs: $(STAMP) ## the documentation as a site, in build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict -f .ci/mkdocs.yml

board: $(STAMP) ## the emulated arm64 board: makes its root from Debian's packages, as root, and boots it; Ctrl-A x ends it
	$(BIN)/python -m tests.hil.board --boot

LG_ENV ?= tests/hil/environments/qemu-arm64.yaml
hil: $(STAMP) ## tests on a board: the emulated one, or another with LG_ENV=board.yaml (docs/hil.md; some minutes)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[hil]'
	$(BIN)/python -m pytest -m hil tests/hil --ignore tests/hil/test_cards.py --lg-env $(LG_ENV)

hil-cards: $(STAMP) ## cards flashed in each first-boot format, booted by QEMU until they have trained; as root (about half an hour)
	$(BIN)/python -m pytest -m hil tests/hil/test_cards.py

clean: ## remove the virtual environment and the demo's files
	rm -rf $(VENV) .covey build edge_runtime/native/*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis
