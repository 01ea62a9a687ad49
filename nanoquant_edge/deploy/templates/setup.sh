#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Makes this folder ready on @TITLE@. Works without a network if wheels/ is filled; run it again at any time.
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
cd "$here"

say() { echo "setup: $*" >&2; }
die() {
  say "$*"
  exit 1
}

machine=$(uname -m)
[ "$machine" = "@ARCHITECTURE@" ] || die "this folder is for @ARCHITECTURE@, this machine is $machine"

# A file that was damaged on its way is noticed here, not in the middle of a text.
sha256sum --check --quiet SHA256SUMS || die "files differ from SHA256SUMS: copy the folder again"

python=""
for candidate in python@PYTHON@ python3; do
  if command -v "$candidate" >/dev/null 2>&1 &&
    [ "$("$candidate" -I -c 'import sys; print("%d.%d" % sys.version_info[:2])')" = "@PYTHON@" ]; then
    python=$candidate
    break
  fi
done
[ -n "$python" ] || die "Python @PYTHON@ is needed (its wheels are in wheels/); for another one: nq-edge deploy --python"

state=$(sha256sum SHA256SUMS requirements.txt | sha256sum | cut -d ' ' -f 1)
if [ -f .venv/.nq-ready ] && [ "$(cat .venv/.nq-ready)" = "$state" ]; then
  say "nothing to install"
else
  rm -rf .venv
  "$python" -I -m venv @VENV_OPTIONS@ .venv ||
    die "no virtual environment could be made: sudo apt-get install python3-venv"
  if [ -f wheels/.complete ]; then
    .venv/bin/python -I -m pip install --quiet --disable-pip-version-check --no-index --find-links wheels \
      --requirement requirements.txt
  else
    .venv/bin/python -I -m pip install --quiet --disable-pip-version-check --find-links wheels \
      --requirement requirements.txt
  fi
fi

# The operator's library: the one that came along, or built from plugins/ here. local/ is what runs.
loads() {
  NQ_EDGE_NATIVE_DIR="$here/$1" .venv/bin/python -I -c \
    'from nanoquant_edge.system.native import ort_library_info as info; print("setup: kernels", info()["isa"])' >&2
}
mkdir -p local
if [ -f native/libnanoquant_ort.so ]; then
  cp native/*.so local/
fi
if ! loads local; then
  [ -d plugins ] || die "the operator's library cannot be loaded, and there are no sources to build it from"
  command -v cmake >/dev/null 2>&1 || die "the operator's library must be built: sudo apt-get install cmake g++"
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  cmake -S plugins -B "$work" -DCMAKE_BUILD_TYPE=Release -DNQ_CUDA=OFF -DSKBUILD_PROJECT_VERSION_FULL=@VERSION@
  cmake --build "$work" -j "$(nproc)"
  cmake --install "$work" --prefix local
  loads local || die "the library that was built here cannot be loaded either"
fi

printf '%s\n' "$state" >.venv/.nq-ready
say "ready: ./run.sh --prompt \"Hello\""
