#!/usr/bin/env bash
# All tests, after installing everything they need. --quick leaves out what launches processes or trains.
# --vllm: only those of the real vLLM, on the CPU, in an environment of their own (scripts/setup_vllm.sh; minutes).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export OMP_NUM_THREADS=1 PYTHONPATH="$PWD/src:$PWD/scripts${PYTHONPATH:+:$PYTHONPATH}"
if [[ "${1:-}" == --vllm ]]; then
    [[ -n "${GRAFT_VLLM_PYTHON:-}" ]] || bash scripts/setup_vllm.sh --cpu
    # vLLM itself warns of this and that.
    exec "${GRAFT_VLLM_PYTHON:-.venv-vllm/bin/python}" -m pytest -q -s -W default tests/test_vllm_real.py "${@:2}"
fi
bash scripts/setup.sh
PYTHON=${GRAFT_PYTHON:-$PWD/.venv/bin/python}
marks=()
if [[ "${1:-}" == --quick ]]; then
    marks=(-m "not slow")
    shift
fi
"$PYTHON" -m ruff check src scripts tests
# Three on two cores: those of a queue mostly wait.
exec "$PYTHON" -m pytest -q -n "${GRAFT_TEST_WORKERS:-3}" --dist worksteal "${marks[@]}" "$@"
