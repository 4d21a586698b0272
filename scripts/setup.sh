#!/usr/bin/env bash
# Make .venv with the pinned dependencies and this package. Does nothing if that was done for this lock file.
# GRAFT_PYTHON=/path/to/python uses an environment of your own instead. The words are those of the script that asks.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

[[ -n "${GRAFT_PYTHON:-}" ]] && exit 0
# shellcheck source=scripts/lib/environment.sh
source scripts/lib/environment.sh
want=$(cat requirements.lock pyproject.toml | sha256sum | cut -d' ' -f1)
installed .venv "$want" && exit 0
find_python python3.13 python3.12 python3.11 python3
make_way .venv "$want" "$@"
echo "installing into .venv (several GB; about two minutes on a fast connection) ..." >&2
"$python" -m venv .venv
.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
echo "$want" >.venv/.installed
