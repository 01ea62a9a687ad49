#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Drives the TensorRT plugin through its public interface on this machine's GPU (plugins/tests/tensorrt), plainly and
# then under compute-sanitizer's memcheck and racecheck.
#
#   plugins/tests/run_tensorrt_conformance.sh [BUILD_FOLDER]
#
# Builds what is missing, with nvcc, cmake and TensorRT's headers (TENSORRT_INCLUDE_DIR, JetPack's or the Makefile's).
# NQ_CONFORMANCE names a folder that holds nq_tensorrt_conformance and libnanoquant_tensorrt.so already, for a machine
# without them. Exit status 0: every check passed, no bad access, no race.
set -euo pipefail
root="$(cd "$(dirname "$0")/../.." && pwd)"
build="${1:-$root/build/conformance}"
mkdir -p "$build"
if [[ -n ${NQ_CONFORMANCE:-} ]]; then
  runner="$NQ_CONFORMANCE/nq_tensorrt_conformance"
  library="$NQ_CONFORMANCE/libnanoquant_tensorrt.so"
else
  runner="$build/tests/tensorrt/nq_tensorrt_conformance"
  library="$build/tensorrt/libnanoquant_tensorrt.so"
  cmake -S "$root/plugins" -B "$build" -DNQ_BUILD_TESTS=ON -DNQ_TENSORRT=ON \
    ${TENSORRT_INCLUDE_DIR:+"-DTENSORRT_INCLUDE_DIR=$TENSORRT_INCLUDE_DIR"} >"$build/configure.log"
  cmake --build "$build" -j "$(nproc)" --target nanoquant_tensorrt nq_tensorrt_conformance >"$build/build.log"
fi
# The reasons of the refusals that are provoked go to the standard error stream.
"$runner" "$library" 2>"$build/refusals.txt"
for tool in memcheck racecheck; do
  echo "== $tool"
  compute-sanitizer --tool "$tool" --error-exitcode 9 "$runner" "$library" 2>"$build/refusals.txt"
done
