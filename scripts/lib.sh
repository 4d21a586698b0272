# Sourced by the sequences: set-up, free devices, one job per condition and seed, failures that are not swallowed.
#
#   job CONDITION SEED SCRIPT ARGS...   start a training run on the next free device; skipped if it is done
#   work NAME SCRIPT ARGS...            the same for another script: what it makes is kept in experiments/$STUDY
#   finish_jobs                         wait for all of them
#   needs CONDITION...                  false (and says so) if one of these has a run that is not done
#   sequence_status                     what is done and what failed; its exit code is the sequence's
#
# Set STUDY (experiments/<study>) before. Devices: GPUs="0 1" picks GPUs, otherwise all that are free are used;
# GPUS_PER_JOB=2 gives every training run two (their port is chosen by the launcher), GPUS_PER_WORK every other script;
# ACCELERATE=fsdp takes configs/accelerate/fsdp.yaml instead of DDP. SLOTS=2 runs that many jobs at
# once on the CPU where there is no GPU.
# shellcheck shell=bash
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$ROOT"
bash scripts/setup.sh
PYTHON=${GRAFT_PYTHON:-$ROOT/.venv/bin/python}
export PYTHONPATH="$ROOT/src:$ROOT/scripts${PYTHONPATH:+:$PYTHONPATH}"
# The launcher passes these signals on and waits for the checkpoint they cause.
export PET_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 TORCH_ELASTIC_SHUTDOWN_TIMEOUT=120
export CUDA_DEVICE_ORDER=PCI_BUS_ID

# GPUs with no process on them and almost no memory in use, by UUID: an index means another GPU to CUDA than to
# nvidia-smi once CUDA_VISIBLE_DEVICES or MIG is set.
free_gpus() {
    command -v nvidia-smi >/dev/null || return 0
    local busy uuid used index
    busy=$(nvidia-smi --query-compute-apps=gpu_uuid --format=csv,noheader 2>/dev/null || true)
    while IFS=', ' read -r index uuid used; do
        [[ -n "${GPUS:-}" && " $GPUS " != *" $index "* ]] && continue
        [[ "$used" -lt 600 && "$busy" != *"$uuid"* ]] && echo "$uuid"
    done < <(nvidia-smi --query-gpu=index,uuid,memory.used --format=csv,noheader,nounits 2>/dev/null || true)
    return 0
}

has_gpu() { command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; }

state_of() { # DIR: the state in its status.json
    "$PYTHON" - "$1/status.json" <<'PY'
import json, pathlib, sys
path = pathlib.Path(sys.argv[1])
print(json.loads(path.read_text())["state"] if path.exists() else "none")
PY
}

declare -A JOB_OF=()   # pid -> condition/seed
declare -a FAILED=() PLANNED=()

_reap() { # wait for one job and note how it ended
    local pid code name error
    while :; do
        for pid in "${!JOB_OF[@]}"; do
            # bash remembers the exit code of a child that is gone; `wait -n` forgets those that ended before it
            kill -0 "$pid" 2>/dev/null && continue
            code=0
            wait "$pid" || code=$?
            name=${JOB_OF[$pid]}
            unset "JOB_OF[$pid]"
            if [[ $code -ne 0 ]]; then
                FAILED+=("$name")
                # After a program's own line accelerate and torchrun write theirs, which say less.
                error=$(grep -a "^error: " "experiments/$STUDY/$name/log.txt" | tail -n 1 || true)
                echo "FAILED $name: ${error:-$(tail -n 1 "experiments/$STUDY/$name/log.txt")}" >&2
            fi
            return 0
        done
        sleep 0.2
    done
}

_in_background() { # DIR GPUS COMMAND...: hold that many devices while the command runs
    local dir=$1 wanted=$2 lock_fd gpu held locks
    shift 2
    if has_gpu; then
        # A lock per GPU keeps two sequences of this project off the same one until memory shows it is taken.
        while :; do
            held="" locks=()
            for gpu in $(free_gpus); do
                exec {lock_fd}>"${TMPDIR:-/tmp}/graft-$gpu.lock"
                if flock -n "$lock_fd"; then
                    held+=${held:+,}$gpu
                    locks+=("$lock_fd")
                else
                    exec {lock_fd}>&-
                fi
                if [[ ${#locks[@]} -eq $wanted ]]; then
                    CUDA_VISIBLE_DEVICES=$held exec "$@" >>"$dir/log.txt" 2>&1
                fi
            done
            # Too few: let go of them, so that two jobs that each hold half of what they need do not wait forever.
            for lock_fd in "${locks[@]}"; do exec {lock_fd}>&-; done
            sleep $((5 + RANDOM % 10))
        done
    fi
    OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} exec "$@" >>"$dir/log.txt" 2>&1
}

_start() { # NAME GPUS COMMAND...: run the command on the next free devices, unless NAME is done
    local name=$1 gpus=$2 slots=${SLOTS:-1} dir=experiments/$STUDY/$1
    shift 2
    [[ "$name" =~ ^[a-z0-9][a-z0-9._-]{0,63}/[a-z0-9]+$ ]] || { echo "error: bad condition name: $name" >&2; return 2; }
    PLANNED+=("$name")
    [[ "$(state_of "$dir")" == "done" ]] && return 0
    has_gpu && slots=$(($(if [[ -n "${GPUS:-}" ]]; then wc -w <<<"$GPUS"; else nvidia-smi -L | wc -l; fi) / gpus))
    if [[ "$slots" -lt 1 ]]; then
        echo "error: $name: wants $gpus GPUs, which are more than there are" >&2
        stop_jobs
        return 2
    fi
    while [[ ${#JOB_OF[@]} -ge $slots ]]; do _reap; done
    mkdir -p "$dir"
    _in_background "$dir" "$gpus" "$@" &
    JOB_OF[$!]=$name
}

job() { # CONDITION SEED SCRIPT ARGS...
    local condition=$1 seed=$2 script=$3 gpus=1 accelerate=cpu
    shift 3
    if has_gpu; then
        gpus=${GPUS_PER_JOB:-1}
        accelerate=${ACCELERATE:-$([[ $gpus -eq 1 ]] && echo 1gpu || echo 2gpu)}
    fi
    _start "$condition/seed$seed" "$gpus" "$PYTHON" -m accelerate.commands.launch \
        --config_file "configs/accelerate/$accelerate.yaml" --num_processes "$gpus" "src/graft/$script" "$@" \
        --output_dir "experiments/$STUDY/$condition" --seed "$seed"
}

work() { # NAME SCRIPT ARGS...
    local name=$1
    shift
    # shellcheck disable=SC2016 # the inner shell expands it
    _start "$name/work" "${GPUS_PER_WORK:-1}" bash -c '"${@:2}" && echo "{\"state\": \"done\"}" >"$1"' "$name" \
        "experiments/$STUDY/$name/work/status.json" "$PYTHON" "$@"
}

finish_jobs() {
    while [[ ${#JOB_OF[@]} -gt 0 ]]; do _reap; done
}

needs() { # CONDITION...: whether every planned run of these conditions is done
    local condition name
    for condition in "$@"; do
        for name in "${PLANNED[@]}"; do
            if [[ "$name" == "$condition"/* && "$(state_of "experiments/$STUDY/$name")" != "done" ]]; then
                echo "SKIPPED what needs $condition: $name is not done" >&2
                FAILED+=("needs-$condition")
                return 1
            fi
        done
    done
}

sequence_status() {
    [[ ${#FAILED[@]} -eq 0 ]] && return 0
    printf 'failed: %s\n' "${FAILED[@]}" >&2
    return 1
}

stop_jobs() { # let every job save and end
    local pid
    for pid in "${!JOB_OF[@]}"; do pkill -TERM -P "$pid" 2>/dev/null || kill -TERM "$pid" 2>/dev/null || true; done
    for pid in "${!JOB_OF[@]}"; do wait "$pid" 2>/dev/null || true; done
}
trap 'trap - INT TERM; echo "interrupted; run the same command again to continue" >&2; stop_jobs; exit 143' INT TERM
