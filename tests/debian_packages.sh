# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# Debian's packages unpacked into a folder, for scripts that emulate another machine; sourced, not run. Needs apt-get and
# its network. Nothing is installed.

# debian WORK_FOLDER SUITE ARCHITECTURE FOLDER PACKAGE...
#
# Fetches the packages once: FOLDER.ready says that FOLDER is complete. apt's state stays in the work folder.
debian() {
  local state="$1/apt-$2" suite="$2" architecture="$3" folder="$4"
  local keyring=/usr/share/keyrings/debian-archive-keyring.gpg
  shift 4
  [[ -e $folder.ready ]] && return
  mkdir -p "$state/lists/partial" "$state/cache/archives/partial" "$folder" "$folder-debs"
  echo "deb [signed-by=$keyring] http://deb.debian.org/debian $suite main" >"$state/sources.list"
  local apt=(apt-get -qq -o APT::Sandbox::User=root -o Dir::State::status=/dev/null
    -o "Dir::State=$state" -o "Dir::Cache=$state/cache"
    -o "Dir::Etc::sourcelist=$state/sources.list" -o Dir::Etc::sourceparts=/dev/null
    -o "APT::Architecture=$architecture" -o "APT::Architectures=$architecture")
  "${apt[@]}" update
  (cd "$folder-debs" && "${apt[@]}" download "$@")
  for package in "$folder-debs"/*.deb; do dpkg-deb -x "$package" "$folder"; done
  touch "$folder.ready"
}
