#!/usr/bin/env bash
# Gemma-3-270M on GSM8K, all weights: a model with next to no few-shot gap, the negative control among the models.
# Interrupt it at will: running it again goes on where it stopped. What can be set is in scripts/language.sh.
STUDY=gsm8k_gemma270m MODEL=gsm8k_gemma270m METHOD=fewshot SHOTS=(0 4 8)
ABLATIONS=(zeroshot_teacher shuffled_answers kd_only kd_only_zeroshot kd_only_shuffled label_smoothing)
# shellcheck source=scripts/language.sh
source "$(dirname "${BASH_SOURCE[0]}")/language.sh"
