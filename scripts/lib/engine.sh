# Sourced by scripts/study.sh: runs the jobs that scripts/lib/jobs.py lists, each when what it needs is done, on free
# devices; one failure stops only what needs it and is not swallowed.
#
#   read_jobs FILE     the records of jobs.py
#   run_jobs           start what is not done, wait for all of it, name what was skipped
#   end_of_jobs        what failed; its exit code is the study's
#
# Devices: GPUS="0 1" picks GPUs, otherwise all that are free of those in CUDA_VISIBLE_DEVICES; GPUS_PER_JOB=2 gives
# every training run two (their port is chosen by the launcher), GPUS_PER_WORK and GPUS_PER_EVAL other programs;
# ACCELERATE=fsdp takes configs/accelerate/fsdp.yaml instead of DDP. SLOTS=2 runs that many jobs at once on the CPU
# where there is no GPU (default: 2, or 1 on a single core).
# shellcheck shell=bash
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$ROOT"
bash scripts/setup.sh "$@"
# shellcheck disable=SC2034 # for those that source this
PYTHON=${GRAFT_PYTHON:-$ROOT/.venv/bin/python}
export PYTHONPATH="$ROOT/src:$ROOT/scripts${PYTHONPATH:+:$PYTHONPATH}"
# The launcher passes these signals on and waits for the checkpoint they cause.
export PET_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-120}
export CUDA_DEVICE_ORDER=PCI_BUS_ID

# Of the devices that are here those that may be used, by UUID: an index means another GPU to CUDA than to nvidia-smi
# once CUDA_VISIBLE_DEVICES or MIG is set. A GPU in MIG mode is its instances. Whoever set CUDA_VISIBLE_DEVICES, a queue
# say, granted these and no others.
our_gpus() {
    local line uuid index="" whole="" listed=()
    declare -A names=() # UUID -> by which names it may be granted
    while IFS= read -r line; do
        [[ "$line" =~ \(UUID:\ ([^\)]+)\) ]] || continue
        uuid=${BASH_REMATCH[1]}
        if [[ "$line" =~ ^GPU\ ([0-9]+): ]]; then
            index=${BASH_REMATCH[1]} whole=$uuid
        else
            unset "names[$whole]"
        fi
        listed+=("$uuid")
        names[$uuid]="$index $whole $uuid"
    done < <(nvidia-smi -L 2>/dev/null || true)
    for uuid in "${listed[@]}"; do
        [[ -n "${names[$uuid]:-}" ]] || continue
        [[ -z "${GPUS:-}" || " ${GPUS//,/ } " == *" ${names[$uuid]%% *} "* ]] || continue
        [[ -z "${CUDA_VISIBLE_DEVICES+set}" ]] || _granted "${names[$uuid]}" || continue
        echo "$uuid"
    done
}

_granted() { # NAMES: whether CUDA_VISIBLE_DEVICES has one of them, or the beginning of a UUID
    local one name
    for one in ${CUDA_VISIBLE_DEVICES//,/ }; do
        for name in $1; do
            [[ "$name" == "$one" || ("$one" == ?*-?* && "$name" == "$one"*) ]] && return 0
        done
    done
    return 1
}

# Ours, with no process on them and almost no memory in use, where that is known. All of ours where a queue gave them to
# us, or with GPU_BUSY=ignore: a display or a daemon (MPS) is on some at all times, and would be waited for in vain.
free_gpus() {
    local busy uuid used index
    declare -A taken=()
    command -v nvidia-smi >/dev/null || return 0
    if [[ "${GPU_BUSY:-}" == ignore || (-n "${SLURM_JOB_ID:-}" && -n "${CUDA_VISIBLE_DEVICES:-}") ]]; then
        our_gpus
        return
    fi
    busy=$(nvidia-smi --query-compute-apps=gpu_uuid --format=csv,noheader 2>/dev/null || true)
    while IFS=', ' read -r index uuid used _; do
        [[ ! "$used" =~ ^[0-9]+$ || "$used" -lt 600 ]] || taken[$uuid]=1
    done < <(nvidia-smi --query-gpu=index,uuid,memory.used --format=csv,noheader,nounits 2>/dev/null || true)
    for uuid in $(our_gpus); do
        [[ "$busy" == *"$uuid"* || -n "${taken[$uuid]:-}" ]] || echo "$uuid"
    done
}

GRAFT_GPUS=0
if command -v nvidia-smi >/dev/null; then GRAFT_GPUS=$(our_gpus | wc -l); fi
if [[ -n "${GPUS:-}" && $GRAFT_GPUS -eq 0 ]]; then
    echo "error: GPUS: '$GPUS': no such GPU here among those of CUDA_VISIBLE_DEVICES" >&2
    exit 2
fi
export GRAFT_GPUS
SLOTS=${SLOTS:-$(($(nproc) < 2 ? 1 : 2))}

# Of each job by name, as jobs.py says it; `WORDS` is where its command begins in FIELDS, and how many words it has.
declare -A KIND=() STATE=() GPUS_OF=() THREADS=() FOLDER=() DIGEST=() NEEDS=() WORDS=()
declare -A JOB_OF=()   # pid -> name
declare -a FIELDS=() ORDER=() FAILED=()
DRY=""

read_jobs() { # FILE
    local i=0 name
    ORDER=()
    mapfile -d '' -t FIELDS <"$1"
    while [[ $i -lt ${#FIELDS[@]} ]]; do
        name=${FIELDS[i]}
        ORDER+=("$name")
        KIND[$name]=${FIELDS[i + 1]} STATE[$name]=${FIELDS[i + 2]} GPUS_OF[$name]=${FIELDS[i + 3]}
        THREADS[$name]=${FIELDS[i + 4]} FOLDER[$name]=${FIELDS[i + 5]} DIGEST[$name]=${FIELDS[i + 6]}
        NEEDS[$name]=${FIELDS[i + 7]} WORDS[$name]="$((i + 9)) ${FIELDS[i + 8]}"
        i=$((i + 9 + FIELDS[i + 8]))
    done
}

log_of() { # NAME
    if [[ -n "$DRY" ]]; then echo "$DRY/${1//\//-}.txt"; else echo "${FOLDER[$1]}/log.txt"; fi
}

_ended() { # NAME CODE: note how a job ended
    local name=$1 code=$2 error log
    log=$(log_of "$name")
    if [[ $code -eq 0 && -z "$DRY" && ${KIND[$name]} == run ]]; then
        grep -q '"state": "done"' "${FOLDER[$name]}/status.json" 2>/dev/null || code=1
    fi
    if [[ $code -eq 0 ]]; then
        STATE[$name]="done"
        [[ -z "$DRY" ]] || echo "ok $name"
        if [[ -z "$DRY" && ${KIND[$name]} != run ]]; then
            echo "{\"state\": \"done\", \"digest\": \"${DIGEST[$name]}\"}" >"${FOLDER[$name]}/status.json"
        fi
        return 0
    fi
    STATE[$name]=failed
    FAILED+=("$name")
    # After a program's own line accelerate and torchrun write theirs, which say less.
    error=$(grep -a "^error: " "$log" | tail -n 1 || true)
    echo "FAILED $name: ${error:-$(tail -n 1 "$log")}" >&2
}

_reap() { # wait for one job and note how it ended
    local pid code name
    while :; do
        for pid in "${!JOB_OF[@]}"; do
            # bash remembers the exit code of a child that is gone; `wait -n` forgets those that ended before it
            kill -0 "$pid" 2>/dev/null && continue
            code=0
            wait "$pid" || code=$?
            name=${JOB_OF[$pid]}
            unset "JOB_OF[$pid]"
            _ended "$name" "$code"
            return 0
        done
        sleep 0.2
    done
}

_in_background() { # LOG GPUS THREADS COMMAND...: hold that many devices while the command runs
    local log=$1 wanted=$2 threads=$3 lock_fd gpu held locks told=""
    shift 3
    if [[ $wanted -gt 0 ]]; then
        # A lock per GPU keeps two sequences of this user off the same one until memory shows it is taken.
        while :; do
            held="" locks=()
            for gpu in $(free_gpus); do
                exec {lock_fd}>"${TMPDIR:-/tmp}/graft-$UID-$gpu.lock"
                if flock -n "$lock_fd"; then
                    held+=${held:+,}$gpu
                    locks+=("$lock_fd")
                else
                    exec {lock_fd}>&-
                fi
                if [[ ${#locks[@]} -eq $wanted ]]; then
                    CUDA_VISIBLE_DEVICES=$held exec "$@" >>"$log" 2>&1
                fi
            done
            # Too few: let go of them, so that two jobs that each hold half of what they need do not wait forever.
            for lock_fd in "${locks[@]}"; do exec {lock_fd}>&-; done
            [[ -n "$told" ]] || echo "$(dirname "$log"): waiting for $wanted of $GRAFT_GPUS GPUs to be free: no process" \
                "on them and less than 600 MiB in use (GPU_BUSY=ignore takes them as they are)" >&2
            told=1
            sleep $((5 + RANDOM % 10))
        done
    fi
    [[ $threads -gt 1 ]] && OMP_NUM_THREADS=$threads
    # It wants none, and must not land on the first that is there. Its threads sleep while they wait: awake they take the
    # cores from their own neighbours where others compute too, and a step takes many times as long.
    CUDA_VISIBLE_DEVICES='' OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE} \
        exec "$@" >>"$log" 2>&1
}

_slots() { # GPUS: how many jobs that want so many run at a time
    if [[ $1 -eq 0 ]]; then echo "$SLOTS"; else echo $((GRAFT_GPUS / $1)); fi
}

_room_for() { # NAME: whether one more may run now
    local slots
    slots=$(_slots "${GPUS_OF[$1]}")
    if [[ "$slots" -lt 1 ]]; then
        echo "error: $1: wants ${GPUS_OF[$1]} GPUs, which are more than there are" >&2
        stop_jobs
        exit 2
    fi
    [[ ${#JOB_OF[@]} -lt $slots ]]
}

_start() { # NAME: run its command on the next free devices
    local name=$1 at count log
    log=$(log_of "$name")
    mkdir -p "$(dirname "$log")"
    [[ ${KIND[$name]} != step ]] || : >"$log"  # it runs every time, and its log is read
    read -r at count <<<"${WORDS[$name]}"
    STATE[$name]=running
    _in_background "$log" "${GPUS_OF[$name]}" "${THREADS[$name]}" "${FIELDS[@]:at:count}" &
    JOB_OF[$!]=$name
}

_blocked_by() { # NAME: sets BLOCK to what it still waits for (empty: nothing), GONE to what will never be
    local need
    BLOCK="" GONE=""
    for need in ${NEEDS[$1]}; do
        case ${STATE[$need]} in
            done) ;;
            failed | skipped | other | later) GONE=$need ;;
            *) BLOCK=$need ;;
        esac
    done
}

run_jobs() {
    local name left
    declare -A lacks=() skipped=()
    for name in "${ORDER[@]}"; do
        [[ ${STATE[$name]} != other ]] || FAILED+=("$name")
        case ${STATE[$name]} in new | begun) STATE[$name]=waiting ;; esac
    done
    while :; do
        left=0
        for name in "${ORDER[@]}"; do
            [[ ${STATE[$name]} == waiting ]] || continue
            _blocked_by "$name"
            if [[ -n "$GONE" ]]; then
                STATE[$name]=skipped
                lacks[$name]=$GONE
            elif [[ -n "$BLOCK" ]]; then
                left=1
            elif _room_for "$name"; then
                _start "$name"
            else
                left=1
                break # until a job has ended; then from the first again, for what that one made ready
            fi
        done
        [[ $left -eq 1 || ${#JOB_OF[@]} -gt 0 ]] || break
        [[ ${#JOB_OF[@]} -eq 0 ]] || _reap
    done
    for name in "${ORDER[@]}"; do # in the study's order, however the jobs ended
        [[ -z "${lacks[$name]:-}" ]] || skipped[${lacks[$name]}]+=" $name"
    done
    for name in "${!skipped[@]}"; do echo "SKIPPED what needs $name:${skipped[$name]}" >&2; done
}

end_of_jobs() {
    [[ ${#FAILED[@]} -eq 0 ]] && return 0
    printf 'failed: %s\n' "${FAILED[@]}" >&2
    return 1
}

stop_jobs() { # let every job save and end
    local pid
    # Python itself, or torchrun, which passes it on; those that wait for a GPU just end.
    for pid in "${!JOB_OF[@]}"; do kill -TERM "$pid" 2>/dev/null || true; done
    for pid in "${!JOB_OF[@]}"; do wait "$pid" 2>/dev/null || true; done
}
trap 'trap - INT TERM; echo "interrupted; run the same command again to continue" >&2; stop_jobs; exit 143' INT TERM
