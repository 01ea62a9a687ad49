#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Builds the warp-level product for this GPU and, as PTX that the driver compiles, for the oldest
# two families (so that their code paths run here too), then checks. From the repository's root:
#   sh plugins/tests/gemm_mma/run.sh BUILD_FOLDER [check] [sanitize] [measure] [tune] [breakdown] [rates]
set -e
build=$1
shift
here=plugins/tests/gemm_mma
cuda=plugins/kernels/cuda
mkdir -p "$build"
real=${NQ_REAL:-90}
export PYTHONPATH=.
flags="-std=c++17 -O3 -Iplugins/kernels -lineinfo -Xcompiler=-fPIC,-Wall,-Wextra"
sources="$here/forced.cu $cuda/api.cu $cuda/device.cu $cuda/tiles.cu"
compile() { nvcc $flags -shared -gencode "arch=compute_$1,code=$2_$1" $sources -o "$build/$2_$1.so"; }
compile "$real" sm &
compile 75 compute &
compile 80 compute &
nvcc $flags -gencode "arch=compute_$real,code=sm_$real" $sources $here/sanitize.cu \
  -o "$build/sanitize" &
nvcc $flags -gencode "arch=compute_$real,code=sm_$real" $here/rates.cu -o "$build/rates" &
wait
status=0
for what in "$@"; do
  case $what in
    check)
      for library in "sm_$real" compute_75 compute_80; do
        python3 $here/check.py "$build/$library.so" "${NQ_SEED:-1}" "${NQ_CASES:-150}" || status=1
      done
      ;;
    sanitize)
      "$build/sanitize" || status=1
      compute-sanitizer --tool memcheck --error-exitcode 9 "$build/sanitize" | tail -4 || status=1
      compute-sanitizer --tool racecheck --error-exitcode 9 "$build/sanitize" | tail -4 || status=1
      compute-sanitizer --tool initcheck --error-exitcode 9 "$build/sanitize" | tail -4 || status=1
      ;;
    measure) python3 $here/measure.py "$build/sm_$real.so" || status=1 ;;
    tune) python3 $here/measure.py "$build/sm_$real.so" tune || status=1 ;;
    rates) "$build/rates" || status=1 ;;
    breakdown) python3 $here/breakdown.py "$build/sm_$real.so" || status=1 ;;
  esac
done
exit $status
