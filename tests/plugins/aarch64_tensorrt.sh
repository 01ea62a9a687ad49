#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Cross-compiles the TensorRT plugin for Jetson boards (sm_87 Orin, sm_110 Thor) and loads it, under emulation, into the
# aarch64 TensorRT for RTX: registry, parser, and an engine for three consumer GPUs. No board and no GPU is needed; the
# kernels are compiled, not run.
#
#   tests/plugins/aarch64_tensorrt.sh [WORK_FOLDER]      (build/aarch64-tensorrt)
#
# Needs nvcc 13.0 or newer, cmake, aarch64-linux-gnu-g++, pip, apt-get and the network: packages of Debian 12 for arm64
# (the emulated Python), qemu-user of Debian 13 (that of Debian 12 crashes), wheels for aarch64. About 6 minutes and
# 1.5 GB on two cores. Nothing is installed; everything stays in the work folder.
set -euo pipefail
root="$(cd "$(dirname "$0")/../.." && pwd)"
work="${1:-$root/build/aarch64-tensorrt}"
python="${PYTHON:-$root/.venv/bin/python}"
rtx="1.7.1.116"
mkdir -p "$work" && cd "$work" && work="$PWD"

echo "== wheels for aarch64"
fetch() { # folder, requirement...
  local folder="$1"
  shift
  [[ -e $folder/.ready ]] && return
  "$python" -m pip download -q --disable-pip-version-check --no-deps --only-binary=:all: --python-version 3.11 \
    --platform manylinux_2_35_aarch64 --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 \
    --platform manylinux_2_17_aarch64 --platform manylinux2014_aarch64 -d "$folder-wheels" "$@"
  for wheel in "$folder-wheels"/*.whl; do "$python" -m zipfile -e "$wheel" "$folder"; done
  touch "$folder/.ready"
}
cuda_version="$(nvcc --version | sed -n 's/.*release \([0-9]*\.[0-9]*\),.*/\1/p')"
fetch cuda "nvidia-cuda-runtime==$cuda_version.*"
fetch site "tensorrt-rtx-cu13-libs==$rtx" "tensorrt-rtx-cu13-bindings==$rtx" numpy "onnx==1.18.*" protobuf \
  typing_extensions
# The package itself is plain Python and comes as source, the same for every processor.
here="$("$python" -c 'import importlib.util; print(importlib.util.find_spec("tensorrt_rtx").origin)')"
cp -r "$(dirname "$here")" site/

echo "== cross-compilation"
cuda="$work/cuda/nvidia/cu13"
headers="${TENSORRT_INCLUDE_DIR:-$root/build/tensorrt-headers/kernel_lens/include/tensorrt}"
toolkit="$(dirname "$(nvcc --dryrun -c -x cu /dev/null 2>&1 | sed -n 's/^#\$ _HERE_=//p')")"
cmake -S "$root/plugins" -B build -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
  -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ -DCMAKE_CUDA_COMPILER=nvcc "-DNQ_CUDA_ARCHITECTURES=87;110" \
  -DCMAKE_CUDA_HOST_COMPILER=aarch64-linux-gnu-g++ \
  "-DCMAKE_CUDA_FLAGS=-I$cuda/include -I$toolkit/targets/x86_64-linux/include -L$cuda/lib" \
  -DNQ_TENSORRT=ON "-DTENSORRT_INCLUDE_DIR=$headers" "-DNQ_CUDA_HEADERS=$toolkit/include" >configure.log
cmake --build build -j "$(nproc)" --target nanoquant_tensorrt >build.log
library="$work/build/tensorrt/libnanoquant_tensorrt.so"
aarch64-linux-gnu-readelf -h "$library" | grep Machine
newest="$(aarch64-linux-gnu-nm -D --undefined-only "$library" | grep -o 'GLIBC_2\.[0-9]*' | sort -uV | tail -n 1)"
echo "$(stat -c %s "$library") bytes, needs $newest"
# JetPack 6 has GLIBC 2.35.
[[ $(printf '%s\nGLIBC_2.35\n' "$newest" | sort -V | tail -n 1) == GLIBC_2.35 ]]

echo "== emulated machine"
source "$root/tests/debian_packages.sh"
debian "$work" bookworm arm64 machine libc6 libgcc-s1 libstdc++6 python3.11-minimal libpython3.11-minimal \
  libpython3.11-stdlib zlib1g libexpat1 libssl3 libffi8 libbz2-1.0 liblzma5 libsqlite3-0 libuuid1
debian "$work" trixie amd64 qemu qemu-user

echo "== TensorRT for RTX on aarch64"
machine="$work/machine"
libraries="$machine/usr/lib/aarch64-linux-gnu:$machine/lib/aarch64-linux-gnu"
NQ_CASE='{}' "$work/qemu/usr/bin/qemu-aarch64" -cpu neoverse-n1 -L "$machine" -E "LD_LIBRARY_PATH=$libraries" \
  -E "PYTHONHOME=$machine/usr" -E "PYTHONPATH=$work/site" -E PYTHONDONTWRITEBYTECODE=1 \
  "$machine/usr/bin/python3.11" "$root/tests/plugins/rtx_build.py" "$library" >result.json
"$python" - result.json <<'END'
import json, sys
found = json.load(open(sys.argv[1]))
assert found["plugins"] == ["group", "lone"] and found["engine_bytes"] > 0 and not found["reason"], found
print("TensorRT for RTX", found["version"], "registered", found["creators"])
print("and built an engine of", found["engine_bytes"], "bytes")
END
