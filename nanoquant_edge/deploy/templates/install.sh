#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# In a container: install what came along; nothing is fetched if wheels/ is filled.
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$(readlink -f -- "$0")")/.." && pwd)
"$here/setup.sh"
