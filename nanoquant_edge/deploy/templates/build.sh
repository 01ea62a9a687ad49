#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# In a container, when install.sh failed: bring a compiler and build the operator's library from plugins/.
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$(readlink -f -- "$0")")/.." && pwd)
apt-get update
apt-get install -y --no-install-recommends cmake g++ make python3-venv
rm -rf /var/lib/apt/lists/*
"$here/setup.sh"
