#!/usr/bin/env bash
# The CIFAR-10 study: CNN and self-supervised teachers, the student on labels alone, distilled from each of them, and
# the ablations, all by one recipe and over the same seeds; then scores with intervals in results.json.
# Interrupt it at will: running it again goes on where it stopped and skips what is done.
#
#   SEEDS="0 1 2"            seeds of every condition; the teachers have seed 0 alone
#   CNNS="resnet18 ..."      CNN teachers to train and distil, of resnet18 convnextv2 adaptive_cnn
#   DINOV2_CHECKPOINT=...    a local .safetensors or .pth file, or `hub`; the dinov2_* conditions are left out without it
#   TRAIN_ARGS="key=value"   over every run, such as train.compile=default or task.root=/data/cifar10
#   SMOKE=1                  four steps a run, fit for a CPU, in experiments/cifar10-smoke
set -euo pipefail
STUDY=cifar10 over=() SEEDS=${SEEDS:-0 1 2}
if [[ -n "${SMOKE:-}" ]]; then
    STUDY=cifar10-smoke over=(--config configs/smoke/cpu.yaml) SEEDS=${SEEDS%% *}
fi
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
read -r -a SEEDS <<<"$SEEDS"
read -r -a CNNS <<<"${CNNS:-resnet18 convnextv2 adaptive_cnn}"
read -r -a EXTRA <<<"${TRAIN_ARGS:-}"

DISTILL=("${CNNS[@]}")
if [[ " ${CNNS[*]} " == *" resnet18 "* ]]; then DISTILL+=(hard_resnet18); fi
SS=(ssl_cka ssl_token)
DINOV2=(dinov2_cka dinov2_gram dinov2_token dinov2_correlation)
dinov2_args=()
case "${DINOV2_CHECKPOINT:-}" in
    "") echo "left out: ${DINOV2[*]}; set DINOV2_CHECKPOINT to a file, or to hub" && DINOV2=() ;;
    hub) ;;
    *)
        [[ -f "$DINOV2_CHECKPOINT" ]] || { echo "error: DINOV2_CHECKPOINT: no such file: $DINOV2_CHECKPOINT" >&2; exit 2; }
        dinov2_args=("teacher.checkpoint=$DINOV2_CHECKPOINT")
        ;;
esac
ABLATIONS=(ce_only gram cls_only random_teacher shuffled_features unaligned_views as_published)
CONDITIONS=(baseline ce_longer "${DISTILL[@]}" "${SS[@]}" "${DINOV2[@]}" "${ABLATIONS[@]}")

runs=("${CNNS[@]/%/_teacher/seed0}" ssl_teacher/seed0)
for condition in "${CONDITIONS[@]}"; do runs+=("${SEEDS[@]/#/$condition/seed}"); done
slots=${SLOTS:-1}
if has_gpu; then slots=$(nvidia-smi -L | wc -l); fi
"$PYTHON" scripts/progress.py --base_dir "experiments/$STUDY" --slots "$slots" --runs "${runs[@]}" &

job ssl_teacher 0 train_ssl_teacher.py --base_config configs/base/cifar10_ssl.yaml "${over[@]}" "${EXTRA[@]}"
for cnn in "${CNNS[@]}"; do
    job "${cnn}_teacher" 0 train_baseline.py --base_config "configs/base/cifar10_$cnn.yaml" "${over[@]}" "${EXTRA[@]}"
done
deit=(--base_config configs/base/cifar10_deit.yaml)
for seed in "${SEEDS[@]}"; do
    job baseline "$seed" train_baseline.py "${deit[@]}" "${over[@]}" "${EXTRA[@]}"
    # The smoke config is last here: it must cut this ablation's length too.
    job ce_longer "$seed" train_ablation.py "${deit[@]}" --config configs/ablation/ce_longer.yaml "${over[@]}" \
        "${EXTRA[@]}"
done
finish_jobs

for condition in "${DISTILL[@]}"; do
    cnn=${condition#hard_}_teacher
    needs "$cnn" || continue
    for seed in "${SEEDS[@]}"; do
        job "$condition" "$seed" train_distill.py "${deit[@]}" --config "configs/distill/$condition.yaml" "${over[@]}" \
            "teacher.path=experiments/$STUDY/$cnn/seed0" "${EXTRA[@]}"
    done
done
for condition in "${DINOV2[@]}"; do
    for seed in "${SEEDS[@]}"; do
        job "$condition" "$seed" train_ss_distill.py "${deit[@]}" --config "configs/ss_distill/$condition.yaml" \
            "${over[@]}" "${dinov2_args[@]}" "${EXTRA[@]}"
    done
done
if needs ssl_teacher; then
    ssl=("teacher.path=experiments/$STUDY/ssl_teacher/seed0")
    for seed in "${SEEDS[@]}"; do
        for condition in "${SS[@]}"; do
            job "$condition" "$seed" train_ss_distill.py "${deit[@]}" --config "configs/ss_distill/$condition.yaml" \
                "${over[@]}" "${ssl[@]}" "${EXTRA[@]}"
        done
        # The ablation is last: train_ablation.py prints what it changes in the files before it.
        for condition in "${ABLATIONS[@]}"; do
            job "$condition" "$seed" train_ablation.py "${deit[@]}" --config configs/ss_distill/ssl_cka.yaml \
                "${over[@]}" --config "configs/ablation/$condition.yaml" "${ssl[@]}" "${EXTRA[@]}"
        done
    done
fi
finish_jobs
sequence_status

scored=("${CONDITIONS[@]}" --references "${CNNS[@]/%/_teacher}")
# 10,000 test images a run are minutes on a CPU; two conditions on validation show that the path works.
if [[ -n "${SMOKE:-}" ]]; then scored=(baseline "${DISTILL[0]}" --splits val); fi
"$PYTHON" scripts/eval_checkpoints.py --base_dir "experiments/$STUDY" --output "experiments/$STUDY/results.json" \
    --conditions "${scored[@]}"
