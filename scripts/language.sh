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
#   EVAL_ARGS="--engine vllm"  for scripts/eval_icl.py and scripts/eval_checkpoints.py. Every checkpoint answers the
#                            validation questions and one the test: days with transformers, hours with vLLM
#   GPUS="0 1" GPUS_PER_JOB=2 GPUS_PER_EVAL=2 ACCELERATE=fsdp  see scripts/lib.sh; --tensor_parallel needs GPUS_PER_EVAL
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

# The files that make an ablation of the method; without labels nothing hides what a teacher gives.
ablation() {
    case "$1" in
        kd_only_zeroshot) echo configs/ablation/kd_only.yaml configs/ablation/zeroshot_teacher.yaml ;;
        kd_only_shuffled) echo configs/ablation/kd_only.yaml configs/ablation/shuffled_answers.yaml ;;
        *) echo "configs/ablation/$1.yaml" ;;
    esac
}

# Which cache a condition reads: its own where the teacher is another, else that of the method.
cache_of() {
    case "$1" in
        kd_only_zeroshot) echo zeroshot_teacher ;;
        kd_only_shuffled) echo shuffled_answers ;;
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

GPUS_PER_WORK=${GPUS_PER_EVAL:-1} work icl scripts/eval_icl.py "${method[@]}" "${over[@]}" --output "$at/icl.json" --shots "${SHOTS[@]}" \
    --split "${splits[@]}" "${SCORE[@]}" "${EXTRA[@]}" "${TEACHER[@]}"
declare -A cached=()
for condition in distill "${ABLATIONS[@]}"; do
    [[ "$condition" == label_smoothing ]] && continue # it has no teacher
    name=$(cache_of "$condition")
    [[ -n "${cached[$name]:-}" ]] && continue
    cached[$name]=1
    change=()
    [[ "$name" != fewshot ]] && change=(--config "configs/ablation/$name.yaml")
    work "cache-$name" scripts/cache_teacher.py "${method[@]}" "${change[@]}" "${over[@]}" \
        "teacher.path=$at/cache/$name" "${EXTRA[@]}" "${TEACHER[@]}"
done
for seed in "${SEEDS[@]}"; do
    job baseline "$seed" train_baseline.py "${base[@]}" "${over[@]}" "${EXTRA[@]}"
    [[ " ${ABLATIONS[*]} " == *" label_smoothing "* ]] && job label_smoothing "$seed" train_ablation.py "${base[@]}" \
        "${over[@]}" --config configs/ablation/label_smoothing.yaml "${EXTRA[@]}"
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
            read -r -a files <<<"$(ablation "$condition")"
            job "$condition" "$seed" train_ablation.py "${method[@]}" "${over[@]}" --config "${files[@]}" \
                "${served[@]}"
        fi
    done
done
finish_jobs

# What did not fail is scored; the sequence fails at its end all the same.
conditions=(baseline distill "${ABLATIONS[@]}") untrained=()
needs icl && untrained=(--icl "$at/icl.json")
# A method is compared with its own controls, not only each of them with the baseline.
contrasts=()
for pair in distill:zeroshot_teacher distill:shuffled_answers distill:wrong_shots distill:label_smoothing \
    kd_only:kd_only_zeroshot kd_only:kd_only_shuffled; do
    [[ " ${conditions[*]} " == *" ${pair#*:} "* && " ${conditions[*]} " == *" ${pair%:*} "* ]] && contrasts+=("$pair")
done
[[ ${#contrasts[@]} -gt 0 ]] && contrasts=(--contrasts "${contrasts[@]}")
if needs baseline; then
    rm -f "$at/scores/work/status.json" # it knows itself what is scored, and there may be more to score
    GPUS_PER_WORK=${GPUS_PER_EVAL:-1} work scores scripts/eval_checkpoints.py --base_dir "$at" --output "$at/results.json" --allow_missing \
        --conditions "${conditions[@]}" "${untrained[@]}" --splits "${splits[@]}" \
        "${contrasts[@]}" "${SCORE[@]}"
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
