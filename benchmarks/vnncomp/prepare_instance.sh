#!/usr/bin/env bash
# The competition's second script: prepare_instance.sh VERSION CATEGORY ONNX VNNLIB. What runs of an earlier instance is
# ended, by the process group that run_instance.sh wrote down; nothing is prepared that belongs to the measured time.
set -euo pipefail
[ "${1:-}" = v1 ] || { echo "expected version v1, got '${1:-}'" >&2; exit 1; }
here=$(cd "$(dirname "$0")/../.." && pwd)
if [ -f "$here/.vnncomp/running" ]; then
  kill -KILL -- "-$(cat "$here/.vnncomp/running")" 2>/dev/null || true
  rm -f "$here/.vnncomp/running"
fi
