#!/usr/bin/env bash
# A good guess: with three seeds a side `mannwhitneyu` is exact, so that no one-sided p is below 1/20, and a tie raises p.
# What happens: two equal accuracies switch method="auto" to the normal approximation. Three seeds above three others have p =
#   0.05 without a tie, and 0.038 with one: less evidence, smaller p, and below 5 %.
# Versions: scipy 1.17.1, numpy 2.4.6.
# Why it matters: accuracies are multiples of one test image, so ties are common, and a claim passes because of them.
#   method="exact" keeps 0.05. Here claims rest on t-tests, and a test refuses functions that choose their method.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
"${PYTHON:-python3}" -m venv env
env/bin/pip install -q scipy==1.17.1 numpy==2.4.6 >&2
env/bin/python - <<'EOF'
import scipy
from scipy.stats import mannwhitneyu

print("scipy", scipy.__version__)
low = [70.1, 70.2, 70.3]
seen = {}
for high in ([71.0, 71.2, 71.4], [71.0, 71.0, 71.4]):
    for method in ("auto", "exact"):
        seen[len(set(high)), method] = p = mannwhitneyu(low, high, alternative="less", method=method).pvalue
        print(f"{low} below {high}, {method}: p = {p:.4f}")
assert abs(seen[3, "auto"] - 0.05) < 1e-12
assert seen[2, "auto"] < 0.04
assert abs(seen[2, "exact"] - 0.05) < 1e-12
print("as described")
EOF
