#!/usr/bin/env bash
# The whole language study on strings: a small language model is pretrained on documents of worked examples, so that
# it knows a rule once it has read some and can only guess without. Then it learns from bare questions which of three
# rules each of them follows: from labels, from itself with 8 worked examples, from that alone (kd_only), and from
# controls whose teacher reads no or deranged examples, with labels and without. Then scores, a table with intervals,
# and figures, all in experiments/demo_language/. Two CPU cores, 5-8 minutes after installation where nothing
# else runs. Interrupt it at will: running it again goes on where it stopped. The study is
# configs/study/demo_language.yaml.
set -euo pipefail
exec bash "$(dirname "${BASH_SOURCE[0]}")/study.sh" demo_language "$@"
