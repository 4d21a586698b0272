#!/usr/bin/env bash
# The whole vision study on scikit-learn's digits: a CNN teacher, a self-supervised teacher, then a ViT trained on
# labels alone, distilled from the CNN, distilled from the self-supervised tokens, and a negative control of each, through
# the real training scripts; then scores, a table with intervals, the forensics of what was learned with a verdict on
# each claim, and figures, all in experiments/demo/. Two CPU cores, 5-8 minutes after installation.
# Interrupt it at will: running it again goes on where it stopped. The study is configs/study/demo.yaml.
set -euo pipefail
exec bash "$(dirname "${BASH_SOURCE[0]}")/study.sh" demo "$@"
