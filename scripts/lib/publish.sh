#!/usr/bin/env bash
# Copy what README, paper and tests show of a study into assets/<study>/, to be committed: its JSON files and figures,
# and its tables into README.md and assets/README.md where they have a place for them. A study itself writes only into
# experiments/<study>/.
#
#   bash scripts/lib/publish.sh demo
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
[[ $# -eq 1 ]] || { echo "usage: bash scripts/lib/publish.sh STUDY" >&2; exit 2; }
study=$1
from=experiments/$study to=assets/$study
[[ -f "$from/results.json" ]] || { echo "error: $from/results.json: missing; run bash scripts/study.sh $study" >&2; exit 2; }
PYTHON=${GRAFT_PYTHON:-$PWD/.venv/bin/python}
rm -rf "$to"; mkdir -p "$to"  # no figure of an earlier version stays
# No SVG: each figure is there to be looked at (.png) and printed (.pdf); the scripts draw it from the JSON again.
for file in "$from"/{results,forensics,robustness,retention}.json "$from"/figures/*.{pdf,png,csv}; do
    if [[ -f "$file" ]]; then cp "$file" "$to/"; fi
done
for file in README.md assets/README.md; do
    if grep -qE "<!-- (results|contrasts|verdicts|notes) $study -->" "$file"; then
        PYTHONPATH=src "$PYTHON" scripts/write_results.py --results "$to/results.json" --out "$from" --into "$file"
    fi
done
git status --short "$to" README.md assets/README.md
