#!/usr/bin/env bash
# A good guess: NumPy sums in pairs, so the float32 mean of many pixels is good to about six digits along any axes.
# What happens: pairs are used along the axis that lies in memory only. The mean of each channel of channels-last images adds
#   pixel by pixel in float32, and at 2^24 a sum of numbers below 1 stops growing: of CIFAR-10's 51,200,000 pixels 0.50 becomes
#   0.33.
# Versions: numpy 2.4.6 (takes about 1 GB of memory).
# Why it matters: this is how the means for normalising a training set are computed, and a network trains with wrong ones too. The
#   mean over everything is right, and so is dtype=np.float64.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
"${PYTHON:-python3}" -m venv env
env/bin/pip install -q numpy==2.4.6 >&2
env/bin/python - <<'EOF'
import numpy as np

print("numpy", np.__version__)
pixels = np.random.default_rng(0).integers(0, 256, (50_000, 32, 32, 3), dtype=np.uint8)
axes = (0, 1, 2)
exact = pixels.mean(axis=axes) / 255  # NumPy adds integers in float64
images = pixels.astype(np.float32)
images /= 255
del pixels
found = {"mean over everything": images.mean(), "mean of each channel": images.mean(axis=axes),
         "the same, dtype=np.float64": images.mean(axis=axes, dtype=np.float64),
         "of the bytes, by 255": exact}
for name, value in found.items():
    print(f"{name}: {np.array2string(np.asarray(value, np.float64), precision=4)}")
assert (np.abs(found["mean of each channel"] - exact) > 0.1).all()
assert np.allclose(found["the same, dtype=np.float64"], exact, atol=1e-6)
assert abs(found["mean over everything"] - exact.mean()) < 1e-4
print("as described")
EOF
