#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Writes text: ./run.sh --prompt "Hello" --chat, or the prompt on standard input. Options as of nq-edge generate.
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$(readlink -f -- "$0")")" && pwd)
bundle="$here/bundle"
if [ -f "$here/engine/nq_bundle.json" ]; then
  bundle="$here/engine"
fi
if [ ! -f "$bundle/nq_bundle.json" ]; then
  echo "there is no engine yet: run $here/build_engine.sh" >&2
  exit 1
fi
exec "$here/nq-edge" generate "$bundle" "$@"
