#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Builds the CUDA self-test for this machine's GPU and runs it alone, under memcheck and under racecheck; without an
# argument attention's cases (tests/plugins/attention_grid.py) follow, under both.
#
#   tests/plugins/cuda/sanitize.sh [ALGORITHM]      all, or gemv_bits, gemv_bytes, gemm_mma, gemm_wgmma
#
# NQ_SELFTEST names a binary that is there already. Exit status 0: no difference, no bad access, no race.
set -euo pipefail
cd "$(dirname "$0")/../../.."
mkdir -p build
selftest=${NQ_SELFTEST:-build/sanitize/tests/nq_cuda_selftest}
if [[ -z ${NQ_SELFTEST:-} ]]; then
  cmake -S plugins -B build/sanitize -DNQ_BUILD_TESTS=ON -DNQ_CUDA=ON >build/sanitize.log
  cmake --build build/sanitize -j "$(nproc)" --target nq_cuda_selftest nanoquant_cuda >>build/sanitize.log
fi
"$selftest" "$@"
for tool in memcheck racecheck; do
  echo "== $tool"
  compute-sanitizer --tool "$tool" --error-exitcode 9 "$selftest" "$@"
done
if [[ $# -eq 0 ]]; then
  library=${NQ_EDGE_NATIVE_DIR:-build/sanitize/kernels/cuda}/libnanoquant_cuda.so
  for tool in memcheck racecheck; do
    echo "== $tool, attention"
    NQ_GUARD_BYTES=0 compute-sanitizer --tool "$tool" --error-exitcode 9 \
      "${PYTHON:-python3}" -m tests.plugins.attention_grid "$library" ragged shared splits "two tiles" windows
  done
fi
