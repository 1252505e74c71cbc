#!/usr/bin/env bash
# A good guess: pivot_table(margins=True) of two columns gives in "All" what it gives for each of them alone.
# What happens: before the margins are computed, every row that lacks either value is dropped. One run without a calibration error
#   changes the overall accuracy, though the cell above still counts that run, and nothing is said.
# Versions: pandas 3.1.1.
# Why it matters: results with a hole (a diverged run, a metric added later) are ordinary in tables of runs, and the margin is the
#   number that is quoted. dropna=False gives the mean of what is there.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
"${PYTHON:-python3}" -m venv env
env/bin/pip install -q pandas==3.1.1 >&2
env/bin/python - <<'EOF'
import pandas as pd

print("pandas", pd.__version__)
runs = pd.DataFrame({"method": ["ce", "ce", "mm", "mm"], "accuracy": [70.0, 72.0, 74.0, 76.0], "ece": [10.0, None, 9.0, 8.0]})
print(runs.to_string())


def table(columns: list[str], **options) -> pd.DataFrame:
    return runs.pivot_table(values=columns, index="method", aggfunc="mean", margins=True, **options)


alone, both, kept = table(["accuracy"]), table(["accuracy", "ece"]), table(["accuracy", "ece"], dropna=False)
for name, found in (("accuracy alone", alone), ("accuracy and ece", both), ("accuracy and ece, dropna=False", kept)):
    print(f"\n{name}\n{found.round(2).to_string()}")
assert alone["accuracy"].loc["All"] == kept["accuracy"].loc["All"] == runs["accuracy"].mean() == 73.0
assert abs(both["accuracy"].loc["All"] - 220 / 3) < 1e-9
assert both["accuracy"].loc["ce"] == 71.0
print("\nas described")
EOF
