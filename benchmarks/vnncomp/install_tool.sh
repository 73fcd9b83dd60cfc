#!/usr/bin/env bash
# The competition's first script: install_tool.sh VERSION. Python 3.11 or newer must be there.
set -euo pipefail
[ "${1:-}" = v1 ] || { echo "expected version v1, got '${1:-}'" >&2; exit 1; }
here=$(cd "$(dirname "$0")/../.." && pwd)
python3 -m venv "$here/.vnncomp"
"$here/.vnncomp/bin/pip" install --quiet "$here[onnx]" onnxruntime
