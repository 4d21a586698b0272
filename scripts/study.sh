#!/usr/bin/env bash
# Run a study: its teachers, every condition over its seeds, then scores, table and figures, all into
# experiments/<study>/, which git ignores. What is done is skipped if it is the run that is asked for; another run is
# refused, never overwritten. Interrupt it at will: the same command goes on where it stopped.
#
#   bash scripts/study.sh cifar10                         a study of configs/study/, by name
#   bash scripts/study.sh mine.yaml --only baseline kl    a file of your own (configs/study/example_*.yaml)
#     --seeds 0 1           these instead of the study's
#     --set optim.lr=1e-4   over every run that has such a key; with --name mine_lr into a folder of its own
#     --smoke               four steps a run, one seed, fit for a CPU, in experiments/<study>-smoke
#     --list                what would run: state, command line, time where it is known
#     --dry_run             every configuration, seeds apart, through its script's own --dry_run
#     --then                only what follows the runs, such as the scores (--steps scores table: only these)
#
# QUEUE=slurm gives all of it to Slurm at once, each job after what it needs; asked again, what is neither done nor
# queued. What a job gets: configs/queue/slurm.yaml, QUEUE_TIME=4:00:00 and the like.
# EVAL_ARGS="--engine vllm" goes to scripts/eval_icl.py and scripts/eval_checkpoints.py. Devices: scripts/lib/engine.sh.
set -euo pipefail
WORDS_GIVEN=()
for word in "$@"; do # a file of the user's is found from where the user is
    if [[ "$word" == *.yaml && "$word" != *=* && -f "$word" ]]; then word=$(realpath "$word"); fi
    WORDS_GIVEN+=("$word")
done
# shellcheck source=scripts/lib/engine.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib/engine.sh"

plan=$(mktemp)
trap 'rm -rf "$plan" "$plan.dry"' EXIT
has() { [[ " ${WORDS_GIVEN[*]} " == *" $1 "* ]]; }
jobs() { "$PYTHON" scripts/lib/jobs.py "${WORDS_GIVEN[@]}" "$@"; }

if has --help || has -h || has --list || has --graph; then
    jobs
    exit
fi
if has --then; then
    jobs >"$plan"
    read_jobs "$plan"
    run_jobs
    end_of_jobs
    exit
fi
jobs >"$plan"
read_jobs "$plan"
if has --dry_run; then
    DRY=$plan.dry
    mkdir "$DRY"
    later=0
    for name in "${ORDER[@]}"; do
        if [[ ${STATE[$name]} == later ]]; then
            echo "later $name: needs ${NEEDS[$name]}"
            later=$((later + 1))
        fi
    done
    run_jobs
    echo "checked $((${#ORDER[@]} - later)) of ${#ORDER[@]} configurations, seeds apart; ${#FAILED[@]} failed," \
        "$later wait for what they need"
    [[ ${#FAILED[@]} -eq 0 ]]
    exit
fi

runs=() already=() todo=0
for name in "${ORDER[@]}"; do
    case ${STATE[$name]} in
        "done") already+=("$name") ;;
        new | begun) todo=1 ;;
    esac
    [[ ${KIND[$name]} == run && ${STATE[$name]} != other ]] && runs+=("$name")
done
[[ ${#already[@]} -eq 0 ]] || echo "done, skipped: ${already[*]}"
if [[ $todo -eq 1 ]]; then
    "$PYTHON" scripts/lib/preflight.py "${WORDS_GIVEN[@]}"
fi
if [[ -n "${QUEUE:-}" ]]; then
    [[ "$QUEUE" == slurm ]] || { echo "error: QUEUE: must be slurm, or empty, got '$QUEUE'" >&2; exit 2; }
    jobs --graph >"$plan"
    "$PYTHON" scripts/lib/slurm.py <"$plan"
    exit
fi
if [[ $todo -eq 1 ]]; then
    base=${FOLDER[${ORDER[0]}]}
    "$PYTHON" scripts/progress.py --base_dir "${base%/*/*}" --slots "$(_slots "$((GRAFT_GPUS > 0))")" \
        --runs "${runs[@]}" &
fi
run_jobs

code=0
jobs --then >"$plan" || code=$?
if [[ $code -eq 0 ]]; then
    read_jobs "$plan"
    run_jobs
    [[ -z "${FOLDER[then/table]:-}" || ${STATE[then/table]} != "done" ]] || cat "${FOLDER[then/table]%/*/*}/table.md"
elif [[ $code -ne 75 ]]; then # 75: it waits for a baseline that was not asked for, or has failed and is named below
    FAILED+=("what follows")
fi
end_of_jobs
