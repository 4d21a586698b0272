#!/usr/bin/env bash
# The whole language study on strings: a small language model is pretrained on documents of worked examples, so that
# it knows a rule once it has read some and can only guess without. Then it learns one rule from bare questions: from
# labels, from itself with 8 worked examples, from that alone (kd_only), and from controls whose teacher reads no or
# deranged examples, with labels and without. Then scores, a table with intervals, and figures.
# Two CPU cores, about five minutes after installation where nothing else runs. Interrupt it at will: running it again
# goes on where it stopped.
STUDY=demo_language
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
SLOTS=${SLOTS:-2}
read -r -a SEEDS <<<"${SEEDS:-0 1 2}"
CONDITIONS=(baseline distill kd_only zeroshot_teacher shuffled_answers kd_only_zeroshot kd_only_shuffled)
at=experiments/$STUDY

runs=(pretrain/seed0)
for seed in "${SEEDS[@]}"; do
    for condition in "${CONDITIONS[@]}"; do runs+=("$condition/seed$seed"); done
done
"$PYTHON" scripts/progress.py --base_dir "$at" --slots "$SLOTS" --runs "${runs[@]}" &

# An architecture and a tokenizer of ten digits; the weights are drawn by the run that pretrains them.
work architecture scripts/make_tiny_lm.py --out "$at/architecture" --family qwen3 --plain --no_weights \
    --characters 0123456789 --hidden 64 --layers 3 --heads 4 --kv_heads 4 --ff 128 --init_std 0.1
finish_jobs
needs architecture && OMP_NUM_THREADS=$SLOTS job pretrain 0 train_baseline.py \
    --base_config configs/base/strings_pretrain.yaml
finish_jobs
needs pretrain || sequence_status # which is then a failure, and the end

base=(--base_config configs/base/strings_qwen3.yaml)
method=("${base[@]}" --config configs/distill/strings_fewshot.yaml)
changes=configs/ablation
work icl scripts/eval_icl.py "${method[@]}" --output "$at/icl.json" --shots 0 1 2 4 8 --split val test
for seed in "${SEEDS[@]}"; do
    job baseline "$seed" train_baseline.py "${base[@]}"
    job distill "$seed" train_distill.py "${method[@]}"
    for ablation in kd_only zeroshot_teacher shuffled_answers; do
        job "$ablation" "$seed" train_ablation.py "${method[@]}" --config "$changes/$ablation.yaml"
    done
    # Without labels nothing hides what the teacher gives.
    job kd_only_zeroshot "$seed" train_ablation.py "${method[@]}" \
        --config "$changes/kd_only.yaml" "$changes/zeroshot_teacher.yaml"
    job kd_only_shuffled "$seed" train_ablation.py "${method[@]}" \
        --config "$changes/kd_only.yaml" "$changes/shuffled_answers.yaml"
done
finish_jobs
sequence_status

"$PYTHON" scripts/eval_checkpoints.py --base_dir "$at" --output "$at/results.json" --conditions "${CONDITIONS[@]}" \
    --icl "$at/icl.json" --contrasts distill:zeroshot_teacher distill:shuffled_answers kd_only:kd_only_zeroshot \
    kd_only:kd_only_shuffled
"$PYTHON" scripts/write_results.py --results "$at/results.json" --out "$at"
for figure in accuracy checkpoint ablation; do
    "$PYTHON" "scripts/gen_${figure}_fig.py" --results "$at/results.json" --out "assets/$STUDY"
done
"$PYTHON" scripts/gen_curves_fig.py --base_dir "$at" --conditions "${CONDITIONS[@]}" --out "assets/$STUDY"
