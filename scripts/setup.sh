#!/usr/bin/env bash
# Make .venv with the pinned dependencies and this package. Does nothing if that was done for this lock file.
# GRAFT_PYTHON=/path/to/python uses an environment of your own instead.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

[[ -n "${GRAFT_PYTHON:-}" ]] && exit 0
want=$(cat requirements.lock pyproject.toml | sha256sum | cut -d' ' -f1)
[[ -f .venv/.installed && "$(cat .venv/.installed)" == "$want" ]] && exit 0

python=""
for one in python3.13 python3.12 python3.11 python3; do
    # some managers leave a name that only says which versions have it
    if "$one" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
        python=$one
        break
    fi
done
[[ -n "$python" ]] || { echo "error: Python 3.11, 3.12 or 3.13 is needed and none was found" >&2; exit 2; }
# What runs out of it would lose its modules in mid-run. A file of it is mapped by any process that has torch.
user=$(grep -lsF "$PWD/.venv/" /proc/[0-9]*/maps | head -n 1 | cut -d/ -f3 || true)
if [[ -n "$user" ]]; then
    echo "error: .venv: made for another requirements.lock; process $user runs out of it, try again when that ended" >&2
    exit 2
fi
echo "installing into .venv (several GB; about two minutes on a fast connection) ..." >&2
rm -rf .venv
"$python" -m venv .venv
.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
echo "$want" >.venv/.installed
