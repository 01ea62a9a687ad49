#!/usr/bin/env bash
# Fail a build when a bundle does not compute what its checkpoint says: nq-edge validate ends with 0 only when every
# step passed, with 1 when one failed or could not be proved, and with 2 for a mistake.
#
#     examples/validate_in_ci.sh checkpoint bundle text.txt report.html
set -euo pipefail
checkpoint=$1 bundle=$2 text=$3 report=$4
if nq-edge validate "$bundle" --against "$checkpoint" --text "$text" --report "$report"; then
  echo "The bundle is right."
else
  status=$?
  echo "The bundle is not proved (exit status $status); see $report." >&2
  exit "$status"
fi
