#!/usr/bin/env bash
# A good guess: safetensors.numpy saves an array's values, or refuses one that is not contiguous, as its torch writer does.
# What happens: it writes the memory as it lies under the shape as it is seen. A transposed array comes back with its numbers in
#   other places, and every second value as the first half. Nothing is said.
# Versions: safetensors 0.8.0, numpy 2.4.6.
# Why it matters: a classifier is often transposed or cut on its way into another framework, and the shape is right, so that the
#   model loads and is wrong. Here arrays are put in C order before they are exported.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
"${PYTHON:-python3}" -m venv env
env/bin/pip install -q safetensors==0.8.0 numpy==2.4.6 >&2
env/bin/python - <<'EOF'
import numpy as np
import safetensors
from safetensors.numpy import load, save

print("safetensors", safetensors.__version__)
weight = np.arange(6, dtype=np.float32).reshape(2, 3)
for name, seen in (("whole", weight), ("transposed", weight.T), ("every second", np.arange(6, dtype=np.float32)[::2])):
    back = load(save({"w": seen}))["w"]
    print(f"{name}: saved {seen.tolist()}, loaded {back.tolist()}")
    assert back.shape == seen.shape
    assert np.array_equal(back, seen) == (name == "whole")
    assert np.array_equal(load(save({"w": np.asarray(seen, order="C")}))["w"], seen)
print("with np.asarray(w, order='C') all three come back")
print("as described")
EOF
