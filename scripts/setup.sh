#!/usr/bin/env bash
# Make .venv with the pinned dependencies and this package. Does nothing if that was done for this lock file.
# GRAFT_PYTHON=/path/to/python uses an environment of your own instead. The words are those of the script that asks.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

[[ -n "${GRAFT_PYTHON:-}" ]] && exit 0
want=$(cat requirements.lock pyproject.toml | sha256sum | cut -d' ' -f1)
installed() { [[ -f .venv/.installed && "$(cat .venv/.installed)" == "$want" ]]; }
installed && exit 0
refuse() {
    echo "error: .venv: made for another requirements.lock, or not to its end; $1" >&2
    exit 2
}

python=""
for one in python3.13 python3.12 python3.11 python3; do
    # some managers leave a name that only says which versions have it
    if "$one" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
        python=$one
        break
    fi
done
[[ -n "$python" ]] || { echo "error: Python 3.11, 3.12 or 3.13 is needed and none was found" >&2; exit 2; }
# One at a time, whichever terminal asks; where there is no flock, or not on this file system, without.
if command -v flock >/dev/null; then
    exec {lock}>.venv.lock
    flock -n "$lock" || if [[ $? -eq 1 ]]; then
        echo "waiting for another setup.sh to end ..." >&2
        flock "$lock"
    fi
    ! installed || exit 0
fi
if [[ -e .venv ]]; then
    if [[ -n "${SLURM_JOB_ID:-}" || " $* " =~ \ (--list|--graph|--then|--help|-h)\  ]]; then
        refuse "neither a job of Slurm nor a command that only looks makes it anew: bash scripts/setup.sh"
    fi
    # What runs out of it would lose its modules in mid-run. A file of it is mapped by any process that has torch; of
    # jobs on other machines Slurm knows where they run.
    user=$(grep -lsF "$PWD/.venv/" /proc/[0-9]*/maps | head -n 1 | cut -d/ -f3 || true)
    [[ -z "$user" ]] || refuse "process $user runs out of it, try again when that ended"
    running=$(squeue --noheader --states=RUNNING --user="$UID" --format=%Z 2>/dev/null || true)
    [[ $'\n'$running$'\n' != *$'\n'"$(pwd -P)"$'\n'* ]] ||
        refuse "jobs of Slurm run out of it, try again when these ended"
fi
echo "installing into .venv (several GB; about two minutes on a fast connection) ..." >&2
rm -rf .venv
"$python" -m venv .venv
.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
echo "$want" >.venv/.installed
