#!/usr/bin/env bash
# Qwen3-1.7B on CommonsenseQA: answers of one sentence, decided by one token. Of five letters a shuffled answer is right
# one time in five, so wrong_shots is the control of content here.
# Interrupt it at will: running it again goes on where it stopped. What can be set is in scripts/language.sh.
STUDY=csqa_qwen1b7 MODEL=commonsenseqa_qwen1b7 METHOD=fewshot_commonsenseqa SHOTS=(0 5)
ABLATIONS=(zeroshot_teacher wrong_shots shuffled_answers kd_only kd_only_zeroshot kd_only_shuffled label_smoothing)
# shellcheck source=scripts/language.sh
source "$(dirname "${BASH_SOURCE[0]}")/language.sh"
