#!/usr/bin/env bash
# statsmodels 0.15.0 with scipy 1.17.1: two policies that agree on every case differ with p = 0, with p = 1 or with p = NaN, and a NaN takes the
# other metrics along.
#
# One would guess that no difference at all has p = 1. McNemar's test says 0.0 in its chi-squared form, the strongest evidence that there is, and
# 1.0 in its exact form; the test of two proportions and the paired t-test say NaN where neither side has an attack that succeeded. The NaN then
# goes among the p-values of the other metrics: `multipletests` by Benjamini and Hochberg makes NaN of every corrected p-value, while `reject` goes
# on saying True; by Holm it counts as one more test, and pushes others over .05 that pass without it. numpy warns of divisions in the tests;
# nothing warns in the correction.
#
# Seen: 20 cases, on none of which an attack succeeds for either policy, by four tests; then two other metrics' p-values with and without that NaN.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q statsmodels==0.15.0 scipy==1.17.1
cat > "$folder/show.py" <<'PY'
import numpy as np
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportions_ztest

before, after = np.zeros(20), np.zeros(20)
table = [[int(((before == a) & (after == b)).sum()) for b in (1, 0)] for a in (1, 0)]
print("mcnemar, chi-squared", mcnemar(table, exact=False).pvalue)
print("mcnemar, exact", mcnemar(table, exact=True).pvalue)
print("two proportions", proportions_ztest([before.sum(), after.sum()], [20, 20])[1])
nothing = stats.ttest_rel(after, before).pvalue
print("paired t", nothing)
for method in ("holm", "fdr_bh"):
    for values in ([0.01, 0.03], [0.01, 0.03, nothing]):
        reject, corrected, *_ = multipletests(values, method=method)
        print(method, reject[:2].tolist(), corrected[:2].round(4).tolist())
PY
"$folder/venv/bin/python" -W ignore "$folder/show.py" > "$folder/seen"
cat > "$folder/said" <<'END'
mcnemar, chi-squared 0.0
mcnemar, exact 1.0
two proportions nan
paired t nan
holm [True, True] [0.02, 0.03]
holm [True, False] [0.03, 0.06]
fdr_bh [True, True] [0.02, 0.03]
fdr_bh [True, True] [nan, nan]
END
cat "$folder/seen"
diff "$folder/said" "$folder/seen"
echo "as described"
