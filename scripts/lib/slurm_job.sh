#!/usr/bin/env bash
# What a job of Slurm does (scripts/lib/slurm.py submits it): KIND FOLDER DIGEST COMMAND...
#
# The command is a step of the job, so that Slurm's signals reach it: before the time limit, at a preemption, by
# `scancel --signal=USR1 ID` or `scancel ID` a run saves and ends. All but the last put the same job into the queue
# again, where it goes on; what depends on it waits. Slurm itself does that after a node's failure.
set -euo pipefail
kind=$1 folder=$2 digest=$3
shift 3
export PYTHONPATH="$PWD/src:$PWD/scripts${PYTHONPATH:+:$PYTHONPATH}"
# A launcher passes these signals on and waits for the checkpoint they cause.
export PET_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 TORCH_ELASTIC_SHUTDOWN_TIMEOUT=$GRAFT_GRACE
export CUDA_DEVICE_ORDER=PCI_BUS_ID SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}

status() { cat "$folder/status.json" 2>/dev/null || true; }
before=$(status)
if [[ ($kind == run && "$before" == *'"state": "done"'*) || ($kind == work && "$before" == *'"done"'*"$digest"*) ]]; then
    echo "$folder: done"
    exit
fi

step=(srun "--ntasks=$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --kill-on-bad-exit=0 "--wait=$GRAFT_GRACE")
if [[ $SLURM_JOB_NUM_NODES -gt 1 ]]; then # a launcher on each node, by `python -m accelerate.commands.launch`
    address=(--main_process_ip "$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
        --main_process_port $((10000 + SLURM_JOB_ID % 20000)))
    # shellcheck disable=SC2016 # it is the step that knows which node it is on
    set -- bash -c 'exec "${@:1:3}" --machine_rank "$SLURM_NODEID" "${@:4}"' _ "${@:1:3}" "${address[@]}" "${@:4}"
fi

began=$(date +%s%N)
kept() { # a file of the study that was written in the second half of this job's time, if there is one
    # Programs write locks and the like when they start; those that get on write all the time. Training, logs and what
    # this script writes are others'.
    local half=$(((began + $(date +%s%N)) / 2))
    find "${folder%/*/*}" -type f -newermt "@${half::-9}.${half: -9}" ! -name '.*' ! -path '*/configs/*' \
        \( ! -path '*/seed*/*' -o -path '*/eval*/*' \) \
        ! -name status.json ! -name stopped.txt ! -name log.txt ! -name queue.txt -print -quit
}

moved() { # whether it got on since it was last queued again, or that has not happened often
    local at="" last="" times=0
    if [[ -f "$folder/stopped.txt" ]]; then read -r times last <"$folder/stopped.txt"; fi
    if [[ $kind == run ]]; then
        at=$(grep -o '"step": [0-9]*' "$folder/status.json" 2>/dev/null || true)
        [[ "$at" == "$last" ]] || times=0
    elif [[ -n "$(kept)" ]]; then
        times=0
    fi
    echo "$((times + 1)) $at" >"$folder/stopped.txt"
    [[ $times -lt 4 ]] || { echo "error: stopped five times without a step forward; it needs a longer time limit"; return 1; }
}

cancelled=""
trap 'cancelled=1' TERM # the step has it too, and saves
"${step[@]}" "$@" &
while :; do
    wait $! || true
    kill -0 $! 2>/dev/null || break
done
code=0
wait $! || code=$?

after=$(status)
if [[ $code -eq 0 && $kind == run && "$after" != *'"state": "done"'* ]]; then code=1; fi
if [[ $code -eq 0 && $kind == work ]]; then
    echo "{\"state\": \"done\", \"digest\": \"$digest\"}" >"$folder/status.json"
fi
# 138 and 143: it ended by the signal itself. A launcher makes 1 of everything, so that a run's own word counts.
if [[ $code -eq 138 || $code -eq 143 || ($code -ne 0 && "$after" != "$before" && "$after" == *'"preempted"'*) ]]; then
    if [[ -z "$cancelled" ]] && moved; then
        echo "job $SLURM_JOB_ID: stopped by a signal; it is queued again and goes on"
        scontrol requeue "$SLURM_JOB_ID"
        sleep 60 # Slurm ends this script
        exit "$code"
    fi
fi
rm -f "$folder/stopped.txt" # when it is submitted anew, it has five tries again
exit "$code"
