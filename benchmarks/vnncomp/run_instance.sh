#!/usr/bin/env bash
# The competition's third script: run_instance.sh VERSION CATEGORY ONNX VNNLIB RESULTS TIMEOUT. ONNX is a file, or a list
# of pairs of a network's name and its file. RESULTS gets sat with an assignment, unsat, timeout, unknown or error.
set -euo pipefail
[ "${1:-}" = v1 ] || { echo "expected version v1, got '${1:-}'" >&2; exit 1; }
here=$(cd "$(dirname "$0")/../.." && pwd)
echo timeout > "$5"  # stands if the process is ended from outside
set -m  # a process group of its own
"$here/.vnncomp/bin/mixtrain" verify "$3" "$4" --results "$5" --timeout "$6" &
echo $! > "$here/.vnncomp/running"
code=0
wait $! || code=$?
rm -f "$here/.vnncomp/running"
exit $code
