#!/usr/bin/env bash
# Make .venv with the pinned dependencies and this package. Does nothing if that was done for this lock file.
# GRAFT_PYTHON=/path/to/python uses an environment of your own instead.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

[[ -n "${GRAFT_PYTHON:-}" ]] && exit 0
want=$(cat requirements.lock pyproject.toml | sha256sum | cut -d' ' -f1)
[[ -f .venv/.installed && "$(cat .venv/.installed)" == "$want" ]] && exit 0

for python in python3.13 python3.12 python3.11 python3; do
    command -v "$python" >/dev/null && "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' && break
    python=""
done
[[ -n "$python" ]] || { echo "error: Python 3.11, 3.12 or 3.13 is needed and none was found" >&2; exit 2; }
echo "installing into .venv (several GB; about two minutes on a fast connection) ..." >&2
rm -rf .venv
"$python" -m venv .venv
.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
echo "$want" >.venv/.installed
