#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Serves the model over HTTP, at http://127.0.0.1:8000 unless told otherwise. Options as of nq-edge serve.
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
exec "$here/nq-edge" serve "$bundle" "$@"
