#!/usr/bin/env bash
# The whole vision study on scikit-learn's digits: a CNN teacher, a self-supervised teacher, then a ViT trained on
# labels alone, distilled from the CNN, distilled from the self-supervised tokens, and one negative control, through
# the real training scripts; then scores, a table with intervals, the forensics of what was learned with a verdict on
# each claim, and figures. Two CPU cores, under eight minutes after installation. Interrupt it at will: running it again goes on where it stopped.
STUDY=demo
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
SLOTS=${SLOTS:-2}
read -r -a SEEDS <<<"${SEEDS:-0 1 2}"
CONDITIONS=(baseline distill ss_distill shuffled_features)

runs=(cnn_teacher/seed0 ssl_teacher/seed0)
for seed in "${SEEDS[@]}"; do
    for condition in "${CONDITIONS[@]}"; do runs+=("$condition/seed$seed"); done
done
"$PYTHON" scripts/progress.py --base_dir "experiments/$STUDY" --slots "$SLOTS" --runs "${runs[@]}" &

vit=(--base_config configs/base/digits_vit.yaml)
job ssl_teacher 0 train_ssl_teacher.py --base_config configs/base/digits_ssl.yaml
job cnn_teacher 0 train_baseline.py --base_config configs/base/digits_cnn.yaml
for seed in "${SEEDS[@]}"; do job baseline "$seed" train_baseline.py "${vit[@]}"; done
finish_jobs
for seed in "${SEEDS[@]}"; do
    needs cnn_teacher && job distill "$seed" train_distill.py "${vit[@]}" --config configs/distill/digits_cnn.yaml
    if needs ssl_teacher; then
        job ss_distill "$seed" train_ss_distill.py "${vit[@]}" --config configs/ss_distill/digits_ssl.yaml
        job shuffled_features "$seed" train_ablation.py "${vit[@]}" \
            --config configs/ss_distill/digits_ssl.yaml configs/ablation/shuffled_features.yaml
    fi
done
finish_jobs
sequence_status

"$PYTHON" scripts/eval_checkpoints.py --base_dir "experiments/$STUDY" --output "experiments/$STUDY/results.json" \
    --conditions "${CONDITIONS[@]}" --references cnn_teacher
"$PYTHON" scripts/gen_accuracy_fig.py --results "experiments/$STUDY/results.json" --out assets
"$PYTHON" scripts/gen_curves_fig.py --base_dir "experiments/$STUDY" --conditions "${CONDITIONS[@]}" --out assets
"$PYTHON" scripts/eval_robustness.py --base_dir "experiments/$STUDY" --conditions "${CONDITIONS[@]}" \
    --output "experiments/$STUDY/robustness.json"
# Curvature (--hessian 64) would take longer than all the training; the rest of the forensics is a minute.
"$PYTHON" scripts/analyze_locality.py --base_dir "experiments/$STUDY" --conditions baseline distill ss_distill \
    --cnn distill --ssl ss_distill --results "experiments/$STUDY/results.json" \
    --output "experiments/$STUDY/forensics.json"
for figure in locality layer cka; do
    "$PYTHON" "scripts/gen_${figure}_fig.py" --forensics "experiments/$STUDY/forensics.json" --out assets
done
