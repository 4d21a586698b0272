#!/usr/bin/env bash
# Qwen3-1.7B on GSM8K: the few-shot gap, its distillation into LoRA adapters, all controls and the sweeps.
# Interrupt it at will: running it again goes on where it stopped. What can be set is in scripts/language.sh.
STUDY=gsm8k_qwen1b7 MODEL=gsm8k_qwen1b7 METHOD=fewshot SHOTS=(0 4 8)
ABLATIONS=(zeroshot_teacher shuffled_answers wrong_shots random_shots kd_only kd_only_zeroshot kd_only_shuffled label_smoothing
    kd_first64 kd_last64 centred_mse kl jsd published_position weight_0.1 weight_0.25 weight_1 weight_2 k_16 k_64)
# shellcheck source=scripts/language.sh
source "$(dirname "${BASH_SOURCE[0]}")/language.sh"
