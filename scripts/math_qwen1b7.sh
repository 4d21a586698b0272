#!/usr/bin/env bash
# Qwen3-1.7B on MATH: the few-shot gap, its distillation into LoRA adapters and the controls.
# Interrupt it at will: running it again goes on where it stopped. What can be set is in scripts/language.sh.
STUDY=math_qwen1b7 MODEL=math_qwen1b7 METHOD=fewshot_math SHOTS=(0 4)
ABLATIONS=(zeroshot_teacher shuffled_answers kd_only kd_only_zeroshot kd_only_shuffled label_smoothing)
# shellcheck source=scripts/language.sh
source "$(dirname "${BASH_SOURCE[0]}")/language.sh"
