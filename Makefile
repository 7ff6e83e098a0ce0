# Each command sets up what it needs: a virtual environment of its own, of locked versions.

# 3.11 is what requirements/dev.lock is for; a pyenv shim may be there and not run.
PYTHON ?= $(shell python3.11 -c 'print("python3.11")' 2>/dev/null || echo python3)
BIN = .venv/bin

NATIVE = runtime/native/libtsm.so

.PHONY: demo test test-arm lint train export lock native fuzz

# Without a C compiler the demo runs on LiteRT.
demo: .venv-demo/ready
	-@$(MAKE) -s native
	.venv-demo/bin/python runtime/generate.py

test: lint native
	$(BIN)/python -m pytest

# On emulated ARM: a Debian for amd64 is needed, and about 900 MB.
test-arm: .venv/ready native .arm/ready .arm/int4.tflite
	$(BIN)/python -m pytest tests/arm/emulated.py

native: $(NATIVE)

$(NATIVE): runtime/native/tsm.c runtime/native/tsm.h
	$(CC) -std=gnu99 -O3 -ffp-contract=off -Wall -Wextra -Wno-psabi -fPIC -shared -o $@.partial $< -lm -pthread
	mv $@.partial $@

# Ten million executions of each loader, or as many as FUZZ_RUNS says. Wants clang and its libFuzzer
# (Debian: clang, libclang-rt-14-dev). Inputs worth keeping stay in build/fuzz, as does a finding.
FUZZ_RUNS ?= 10000000
FUZZ = build/fuzz
fuzz: native
	mkdir -p $(FUZZ)/corpus
	$(PYTHON) tests/fuzz/seeds.py $(FUZZ)/seeds
	clang -std=gnu99 -O2 -g -Wno-psabi -Wno-pass-failed -DWIDE= -ffp-contract=off -fno-sanitize-recover=all \
	  -fsanitize=fuzzer,address,undefined -o $(FUZZ)/native \
	  tests/fuzz/fuzz_native.c runtime/native/tsm.c -lm -pthread
	$(FUZZ)/native $(FUZZ)/corpus $(FUZZ)/seeds -max_len=4096 -runs=$(FUZZ_RUNS) \
	  -artifact_prefix=$(FUZZ)/
	$(PYTHON) -m venv $(FUZZ)/venv
	$(FUZZ)/venv/bin/pip install -q atheris==3.0.0
	for loader in artifact state; do $(FUZZ)/venv/bin/python tests/fuzz/fuzz_loaders.py \
	  $$loader $(FUZZ)/$$loader -max_len=8192 -runs=$(FUZZ_RUNS) \
	  -artifact_prefix=$(FUZZ)/ || exit 1; done

lint: .venv/ready
	$(BIN)/ruff check -q .
	$(BIN)/ruff format -q --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

train: .venv/ready
	$(BIN)/python training/train.py --data shakespeare --compiled --out runs/shakespeare

export: .venv/ready native
	$(BIN)/python export/to_tflite.py
	$(BIN)/python export/to_onnx.py

# Stamps: an environment is brought up to date when its lock is newer.
.venv/ready: requirements/dev.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -r requirements/dev.lock
	$(BIN)/pip install -q --no-deps -e .
# The packages under their names, for pyright, which does not know setuptools' mapping.
	mkdir -p .venv/names/tsm
	ln -sfn ../../../training ../../../export ../../../runtime .venv/names/tsm/
	touch $@

# --no-deps: the interpreter's C library is all that runs; NumPy and the rest are never loaded.
.venv-demo/ready: requirements/demo.lock
	$(PYTHON) -m venv .venv-demo
	.venv-demo/bin/pip install -q --no-deps -r requirements/demo.lock
	touch $@

.arm/ready: tests/arm/setup.sh tests/arm/init tests/arm/count.c requirements/demo.lock | .venv/ready
	PYTHON=$(CURDIR)/$(BIN)/python bash tests/arm/setup.sh .arm
	touch $@

.arm/int4.tflite: models/shakespeare.safetensors $(wildcard export/*.py) | .arm/ready
	$(BIN)/python export/to_tflite.py --quantize int4 --out $@

# What a fresh resolution of the extras gives today, on a machine whose pip takes torch's CPU build.
# Its local version (+cpu) is dropped: where there is no such build, plain 2.13.0 serves as well.
lock:
	$(PYTHON) -m venv --clear .venv-lock
	.venv-lock/bin/pip install -q '.[dev]'
	.venv-lock/bin/pip freeze --exclude tsm | sed 's/+cpu$$//' > .venv-lock/versions
	! grep -E '^nvidia|://' .venv-lock/versions
	(echo "# Everything that make test needs, Python 3.11. Made by make lock."; \
	  cat .venv-lock/versions) > requirements/dev.lock
	(echo "# What make demo needs besides this repository. Made by make lock."; \
	  grep '^ai-edge-litert==' .venv-lock/versions) > requirements/demo.lock
	rm -rf .venv-lock build
