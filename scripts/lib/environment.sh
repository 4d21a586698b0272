# Sourced by scripts/setup.sh and setup_vllm.sh: environments are made by one at a time, and not anew under what runs out
# of them.
#
#   find_python NAME...             sets `python` to the first of the names that is a Python that fits
#   make_way FOLDER WANT WORDS...   removes an environment that is not what is wanted, or ends with one line; ends with 0
#                                   if it is. WORDS are those of the command that asks
# shellcheck shell=bash
set -euo pipefail

installed() { [[ -f "$1/.installed" && "$(cat "$1/.installed")" == "$2" ]]; }

find_python() {
    for python in "$@"; do
        # some managers leave a name that only says which versions have it
        "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && return
    done
    echo "error: Python 3.11, 3.12 or 3.13 is needed and none was found" >&2
    exit 2
}

make_way() {
    local folder=$1 want=$2 words=" ${*:3} " lock user running
    # One at a time, whichever terminal asks; where there is no flock, or not on this file system, without.
    if command -v flock >/dev/null; then
        exec {lock}>"$folder.lock" # until this script ends
        flock -n "$lock" || if [[ $? -eq 1 ]]; then
            echo "waiting for another setup of $folder to end ..." >&2
            flock "$lock"
        fi
        ! installed "$folder" "$want" || exit 0
    fi
    [[ -e "$folder" ]] || return 0
    if [[ -n "${SLURM_JOB_ID:-}" || "$words" =~ \ (--list|--graph|--then|--help|-h)\  ]]; then
        _refuse "neither a job of Slurm nor a command that only looks makes it anew: bash scripts/${0##*/}"
    fi
    # What runs out of it would lose its modules in mid-run. A file of it is mapped by any process that has torch; of
    # jobs on other machines Slurm knows where they run.
    user=$(grep -lsF "$PWD/$folder/" /proc/[0-9]*/maps | head -n 1 | cut -d/ -f3 || true)
    [[ -z "$user" ]] || _refuse "process $user runs out of it, try again when that ended"
    running=$(squeue --noheader --states=RUNNING --user="$UID" --format=%Z 2>/dev/null || true)
    [[ $'\n'$running$'\n' != *$'\n'"$(pwd -P)"$'\n'* ]] ||
        _refuse "jobs of Slurm run out of it, try again when these ended"
    rm -rf "$folder"
}

_refuse() { # uses `folder` of its caller
    echo "error: $folder: made for another lock file, or not to its end; $1" >&2
    exit 2
}
