#!/usr/bin/env bash
# All tests, after installing everything they need. --quick leaves out what launches processes or trains.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
PYTHON=${GRAFT_PYTHON:-$PWD/.venv/bin/python}
marks=()
if [[ "${1:-}" == --quick ]]; then
    marks=(-m "not slow")
    shift
fi
export OMP_NUM_THREADS=1 PYTHONPATH="$PWD/src:$PWD/scripts${PYTHONPATH:+:$PYTHONPATH}"
"$PYTHON" -m ruff check src scripts tests
exec "$PYTHON" -m pytest -q -n "${GRAFT_TEST_WORKERS:-2}" --dist worksteal "${marks[@]}" "$@"
