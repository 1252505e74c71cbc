#!/usr/bin/env bash
# A good guess: the bootstrap interval of three accuracies does not depend on whether they are in percent or fractions.
# What happens: the BCa interval (scipy's default) counts how many resampled means are below the mean. Where three values are
#   evenly spaced one resample in four or so equals it but for the last bit, which rounding decides: one scale gives the whole
#   range from smallest to largest, another cuts an end off. The percentile interval is the same on all scales.
# Versions: scipy 1.17.1, numpy 2.4.6.
# Why it matters: error bars over three seeds are common, and this one moves with the unit. Here those of a mean are Student's.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
"${PYTHON:-python3}" -m venv env
env/bin/pip install -q scipy==1.17.1 numpy==2.4.6 >&2
env/bin/python - <<'EOF'
import numpy as np
import scipy
from scipy.stats import bootstrap

print("scipy", scipy.__version__)
seen = {"BCa": set(), "percentile": set()}
for steps in ((712, 715, 718), (701, 704, 707), (653, 655, 657)):
    for method, ends in seen.items():
        for unit, by in (("percent", 10), ("fractions", 1000), ("steps", 1)):
            values = [s / by for s in steps]
            low, high = bootstrap((np.array(values),), np.mean, method=method, rng=0).confidence_interval
            scale = (steps[2] - steps[0]) / (values[2] - values[0])
            place = tuple(round(float((end - values[0]) * scale / (steps[2] - steps[0])), 2) for end in (low, high))
            ends.add(place)
            print(f"{steps} as {unit}, {method}: from {place[0]:.2f} to {place[1]:.2f} of the range of the three values")
assert len(seen["BCa"]) > 1
assert seen["percentile"] == {(0.0, 1.0)}
print("as described")
EOF
