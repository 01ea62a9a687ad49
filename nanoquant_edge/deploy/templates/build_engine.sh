#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Builds the TensorRT engine for @TITLE@ on the device itself; does nothing if it is there. --force builds again.
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$(readlink -f -- "$0")")" && pwd)
cd "$here"

die() {
  echo "build_engine: $*" >&2
  exit 1
}

[ -d graph ] || die "@NO_GRAPH@"
if [ -f engine/nq_bundle.json ] && [ "${1:-}" != "--force" ]; then
  echo "build_engine: engine/ is there; --force builds it again" >&2
  exit 0
fi
[ -f .venv/.nq-ready ] || die "run $here/setup.sh first"
.venv/bin/python -I -c 'import tensorrt' 2>/dev/null || die "TensorRT's Python package is missing: sudo apt-get install nvidia-jetpack"

if [ ! -f local/libnanoquant_tensorrt.so ]; then
  [ -d plugins ] || die "there is neither local/libnanoquant_tensorrt.so nor its sources"
  PATH="$PATH:/usr/local/cuda/bin"
  command -v nvcc >/dev/null 2>&1 || die "nvcc is missing: sudo apt-get install nvidia-jetpack"
  command -v cmake >/dev/null 2>&1 || die "cmake is missing: sudo apt-get install cmake g++"
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  cmake -S plugins -B "$work" -DCMAKE_BUILD_TYPE=Release -DNQ_CUDA=ON -DNQ_TENSORRT=ON \
    -DNQ_CUDA_ARCHITECTURES=@CUDA_ARCHITECTURE@ -DSKBUILD_PROJECT_VERSION_FULL=@VERSION@
  cmake --build "$work" -j "$(nproc)"
  cmake --install "$work" --prefix "$work/stage"
  for file in "$work"/stage/*.so; do # beside the old one and renamed: a running text keeps the library that it mapped
    cp "$file" "local/.${file##*/}.new"
    mv -f "local/.${file##*/}.new" "local/${file##*/}"
  done
fi

"$here/nq-edge" build graph --target @NAME@ --output engine --overwrite
