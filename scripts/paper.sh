#!/usr/bin/env bash
# The paper: every table, number and figure from the JSON files of a study, then paper/main.pdf.
#   bash scripts/paper.sh                   assets/cifar10_small, the published study of photographs
#   STUDY=cifar10 bash scripts/paper.sh     experiments/cifar10; it needs results.json and forensics.json
#   LANGUAGE_STUDY=NAME                     the language section: experiments/NAME (default: the published words_smollm2)
# Debian: apt-get install latexmk texlive-latex-extra texlive-fonts-recommended
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
FROM=assets/cifar10_small
[[ -z "${STUDY:-}" ]] || FROM=experiments/$STUDY
TEXT=assets/words_smollm2
[[ -z "${LANGUAGE_STUDY:-}" ]] || TEXT=experiments/$LANGUAGE_STUDY
OUT=paper/generated

fail() { echo "error: $*" >&2; exit 2; }

if ! command -v latexmk >/dev/null || ! command -v pdflatex >/dev/null || ! kpsewhich placeins.sty >/dev/null; then
    fail "LaTeX is missing: apt-get install latexmk texlive-latex-extra texlive-fonts-recommended"
fi
[[ -f $FROM/results.json ]] || fail "$FROM/results.json: scripts/eval_checkpoints.py writes it"
[[ -f $FROM/forensics.json ]] || fail "$FROM/forensics.json: scripts/analyze_locality.py writes it"

if [[ -z "${GRAFT_PYTHON:-}" ]]; then bash scripts/setup.sh; fi
PYTHON=${GRAFT_PYTHON:-$PWD/.venv/bin/python}
export PYTHONPATH="$PWD/src:$PWD/scripts${PYTHONPATH:+:$PYTHONPATH}"

figure() { # NAME SCRIPT ARGS...: draw generated/NAME.pdf
    local name=$1 script=$2
    shift 2
    [[ -f $script ]] || fail "$name.pdf: there is no $script"
    "$PYTHON" "$script" "$@" --out "$OUT" >/dev/null
    [[ -f $OUT/$name.pdf ]] || fail "$name.pdf: $script did not write it"
}

rm -rf "$OUT"  # nothing of another study may stay
language=()
if [[ -f $TEXT/results.json ]]; then
    language=(--language "$TEXT")
elif [[ -n "${LANGUAGE_STUDY:-}" ]]; then
    fail "$TEXT/results.json: scripts/eval_checkpoints.py writes it"
fi
"$PYTHON" scripts/gen_paper_numbers.py --study "$FROM" --out "$OUT" "${language[@]}"
[[ ${#language[@]} -eq 0 ]] || figure ablation scripts/gen_ablation_fig.py --results "$TEXT/results.json"
if grep -q retentiontrue "$OUT/language.tex"; then
    figure retention scripts/gen_retention_fig.py --retention "$TEXT/retention.json" --results "$TEXT/results.json"
fi
"$PYTHON" scripts/write_results.py --results "$FROM/results.json" --split test --out "$OUT" >/dev/null
mapfile -t CENTRAL <"$OUT/central.txt"
mapfile -t ARMS <"$OUT/arms.txt"
forensics() { figure "$1" "$2" --forensics "$FROM/forensics.json" "${@:3}"; }
beyond() { figure "$1" "$2" --results "$FROM/robustness.json" --conditions "${ARMS[@]}"; }
figure accuracy scripts/gen_accuracy_fig.py --results "$FROM/results.json"
figure differences scripts/gen_forest_fig.py --results "$FROM/results.json"
forensics locality_spectrum scripts/gen_locality_fig.py --conditions "${CENTRAL[@]}"
forensics layer_progression scripts/gen_layer_fig.py --conditions "${CENTRAL[@]}"
forensics cka_heatmap scripts/gen_cka_fig.py --conditions "${CENTRAL[@]}"
if grep -q curvaturetrue "$OUT/numbers.tex"; then
    forensics forensics_summary scripts/gen_forensics_fig.py --conditions "${CENTRAL[@]}"
    forensics hessian_spectrum scripts/gen_hessian_fig.py --conditions "${CENTRAL[@]}"
else # the text says that curvature was not measured
    forensics forensics_summary scripts/gen_forensics_fig.py --conditions "${CENTRAL[@]}" --allow_missing
fi
if grep -q dosestrue "$OUT/numbers.tex"; then
    forensics dose_response scripts/gen_dose_fig.py
fi
if grep -q teacherstrue "$OUT/numbers.tex"; then
    figure teacher scripts/gen_teacher_fig.py --results "$FROM/results.json"
fi
if grep -q robustnesstrue "$OUT/numbers.tex"; then
    beyond reliability scripts/gen_reliability_fig.py
    beyond confusion scripts/gen_confusion_fig.py
    beyond roc scripts/gen_roc_fig.py
fi

# A fixed date, so that the same inputs give the same PDF.
export SOURCE_DATE_EPOCH=0 FORCE_SOURCE_DATE=1
cd paper
latexmk -C -silent main.tex >/dev/null 2>&1 || true
latexmk -pdf -silent -halt-on-error -interaction=nonstopmode main.tex >build.log 2>&1 || {
    grep -A 3 '^!' main.log >&2 || tail -n 20 build.log >&2
    fail "paper/main.tex does not compile; all of it in paper/main.log"
}
if grep -E 'LaTeX Warning: (Reference|Citation).*undefined' main.log >&2; then
    fail "paper/main.tex refers to something that is not there"
fi
echo "wrote paper/main.pdf"
