#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Makes this folder ready on @TITLE@. Works without a network if wheels/ is filled; run it again at any time.
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$(readlink -f -- "$0")")" && pwd)
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
  # Made beside the old environment and renamed: what runs there goes on, and a failure leaves it as it was.
  rm -rf .venv.new .venv.old
  "$python" -I -m venv @VENV_OPTIONS@ .venv.new ||
    die "no virtual environment could be made: sudo apt-get install python3-venv"
  install() { .venv.new/bin/python -I -m pip install --quiet --disable-pip-version-check "$@"; }
  # Every wheel that came along is known by its hash, and this package is looked up on no index.
  if [ -f requirements-index.txt ]; then
    install --no-index --no-deps --require-hashes --find-links wheels --requirement requirements.txt
    install --requirement requirements-index.txt
  else
    install --no-index --require-hashes --find-links wheels --requirement requirements.txt
  fi
  if [ -d .venv ]; then mv .venv .venv.old; fi
  mv .venv.new .venv
  rm -rf .venv.old
fi

# The operator's library: the one that came along, or built from plugins/ here. local/ is what runs.
loads() {
  NQ_EDGE_NATIVE_DIR="$here/$1" .venv/bin/python -I -c \
    'from nanoquant_edge.system.native import ort_library_info as info; print("setup: kernels", info()["isa"])' >&2
}
# A library that is equal stays; another one takes its name in one step, so that a running text keeps the old one.
put() {
  for file in "$1"/*.so; do
    name=${file##*/}
    if [ -f "local/$name" ] && [ "$(sha256sum <"$file")" = "$(sha256sum <"local/$name")" ]; then continue; fi
    cp "$file" "local/.$name.new"
    mv -f "local/.$name.new" "local/$name"
  done
}
mkdir -p local
if [ -f native/libnanoquant_ort.so ]; then
  put native
fi
if ! loads local; then
  [ -d plugins ] || die "the operator's library cannot be loaded, and there are no sources to build it from"
  command -v cmake >/dev/null 2>&1 || die "the operator's library must be built: sudo apt-get install cmake g++"
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  cmake -S plugins -B "$work" -DCMAKE_BUILD_TYPE=Release -DNQ_CUDA=OFF -DSKBUILD_PROJECT_VERSION_FULL=@VERSION@
  cmake --build "$work" -j "$(nproc)"
  cmake --install "$work" --prefix "$work/stage"
  put "$work/stage"
  loads local || die "the library that was built here cannot be loaded either"
fi

printf '%s\n' "$state" >.venv/.nq-ready
say "ready: ./run.sh --prompt \"Hello\""
