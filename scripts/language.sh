# Sourced by the GSM8K, MATH and CommonsenseQA sequences: k-shot gap of the untrained model -> teacher caches ->
# baseline and distillation side by side -> ablations -> scores -> figures. What is done is skipped; a condition that
# fails fails the sequence at its end and does not stop those that do not need it.
#
# The sequence sets STUDY, MODEL (configs/base/<MODEL>.yaml), METHOD (configs/distill/<METHOD>.yaml), SHOTS (of the
# gap) and ABLATIONS; the user may set
#   SEEDS="0 1 2"            seeds of every condition
#   ONLY="kd_only kl"        these of the ablations; "none": none of them
#   TRAIN_ARGS="key=value"   over every run, such as task.root=/data/gsm8k or student.model=/models/qwen3
#   TEACHER_ARGS="key=value"  over every run with a teacher, such as teacher.cache_dtype=fp32
#   EVAL_ARGS="--engine vllm"  for scripts/eval_icl.py and scripts/eval_checkpoints.py
#   GPUS="0 1" GPUS_PER_JOB=2  see scripts/lib.sh
#   SMOKE=1                  four steps a run, fit for a CPU, in experiments/$STUDY-smoke
# shellcheck shell=bash disable=SC2034,SC2153
set -euo pipefail
over=() splits=(val test) SEEDS=${SEEDS:-0 1 2}
if [[ -n "${SMOKE:-}" ]]; then
    STUDY+=-smoke over=(--config configs/smoke/cpu.yaml) splits=(val) SEEDS=${SEEDS%% *}
fi
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
read -r -a SEEDS <<<"$SEEDS"
read -r -a EXTRA <<<"${TRAIN_ARGS:-}"
read -r -a TEACHER <<<"${TEACHER_ARGS:-}"
read -r -a SCORE <<<"${EVAL_ARGS:-}"
[[ -n "${ONLY:-}" ]] && read -r -a ABLATIONS <<<"${ONLY/none/}"
base=(--base_config "configs/base/$MODEL.yaml")
method=("${base[@]}" --config "configs/distill/$METHOD.yaml")
at=experiments/$STUDY

ablation() { [[ -f "configs/ablation/$1.yaml" ]] && echo "configs/ablation/$1.yaml"; }

# Which cache a condition reads: its own where the teacher is another, else that of the method.
cache_of() {
    case "$1" in
        zeroshot_teacher | shuffled_answers | wrong_shots | random_shots | published_position) echo "$1" ;;
        *) echo fewshot ;;
    esac
}

runs=()
for condition in baseline distill "${ABLATIONS[@]}"; do
    for seed in "${SEEDS[@]}"; do runs+=("$condition/seed$seed"); done
done
slots=${SLOTS:-1}
if has_gpu; then slots=$(($(nvidia-smi -L | wc -l) / ${GPUS_PER_JOB:-1})); fi
"$PYTHON" scripts/progress.py --base_dir "$at" --slots "$slots" --runs "${runs[@]}" &

work icl scripts/eval_icl.py "${method[@]}" "${over[@]}" --output "$at/icl.json" --shots "${SHOTS[@]}" \
    --split "${splits[@]}" "${SCORE[@]}" "${EXTRA[@]}" "${TEACHER[@]}"
declare -A cached=()
for condition in distill "${ABLATIONS[@]}"; do
    [[ "$condition" == label_smoothing ]] && continue # it has no teacher
    name=$(cache_of "$condition")
    [[ -n "${cached[$name]:-}" ]] && continue
    cached[$name]=1
    change=()
    [[ "$name" != fewshot ]] && change=(--config "$(ablation "$name")")
    work "cache-$name" scripts/cache_teacher.py "${method[@]}" "${change[@]}" "${over[@]}" \
        "teacher.path=$at/cache/$name" "${EXTRA[@]}" "${TEACHER[@]}"
done
for seed in "${SEEDS[@]}"; do
    job baseline "$seed" train_baseline.py "${base[@]}" "${over[@]}" "${EXTRA[@]}"
    [[ " ${ABLATIONS[*]} " == *" label_smoothing "* ]] && job label_smoothing "$seed" train_ablation.py "${base[@]}" \
        "${over[@]}" --config "$(ablation label_smoothing)" "${EXTRA[@]}"
done
finish_jobs
for seed in "${SEEDS[@]}"; do
    for condition in distill "${ABLATIONS[@]}"; do
        [[ "$condition" == label_smoothing ]] && continue
        name=$(cache_of "$condition")
        needs "cache-$name" || continue
        served=(teacher.serve=cache "teacher.path=$at/cache/$name" "${EXTRA[@]}" "${TEACHER[@]}")
        if [[ "$condition" == distill ]]; then
            job distill "$seed" train_distill.py "${method[@]}" "${over[@]}" "${served[@]}"
        else
            # The ablation is last: train_ablation.py prints what it changes in the files before it.
            job "$condition" "$seed" train_ablation.py "${method[@]}" "${over[@]}" \
                --config "$(ablation "$condition")" "${served[@]}"
        fi
    done
done
finish_jobs

# What did not fail is scored; the sequence fails at its end all the same.
conditions=(baseline distill "${ABLATIONS[@]}") untrained=()
needs icl && untrained=(--icl "$at/icl.json")
if needs baseline; then
    rm -f "$at/scores/work/status.json" # it knows itself what is scored, and there may be more to score
    work scores scripts/eval_checkpoints.py --base_dir "$at" --output "$at/results.json" --allow_missing \
        --conditions "${conditions[@]}" "${untrained[@]}" --splits "${splits[@]}" "${SCORE[@]}"
    finish_jobs
fi
if needs scores; then
    for figure in accuracy ablation; do
        "$PYTHON" "scripts/gen_${figure}_fig.py" --results "$at/results.json" --out "assets/$STUDY" --allow_missing \
            --split "${splits[-1]}"
    done
    "$PYTHON" scripts/gen_checkpoint_fig.py --results "$at/results.json" --out "assets/$STUDY" --allow_missing
    "$PYTHON" scripts/gen_curves_fig.py --base_dir "$at" --conditions "${conditions[@]}" --out "assets/$STUDY" \
        --keys train/ce train/topk val/nll --band ci95 --name losses --allow_missing
    "$PYTHON" scripts/write_results.py --results "$at/results.json" --out "$at"
fi
sequence_status
