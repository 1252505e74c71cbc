#!/usr/bin/env bash
# A good guess: the same tensors with the same metadata are saved as the same bytes; the format has no timestamp.
# What happens: two or more entries of metadata are written in an order that changes from call to call within one process, so
#   files of equal weights have different digests. With one entry, or none, the bytes are equal.
# Versions: safetensors 0.8.0, numpy 2.4.6.
# Why it matters: whoever finds checkpoints by their digest (DVC, an object store, a cache) sees new weights in every save. Here
#   all that a checkpoint says of itself is one entry of JSON.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
"${PYTHON:-python3}" -m venv env
env/bin/pip install -q safetensors==0.8.0 numpy==2.4.6 >&2
env/bin/python - <<'EOF'
import hashlib

import numpy as np
import safetensors
from safetensors.numpy import save

print("safetensors", safetensors.__version__)
weights = {"head.weight": np.ones((2, 3), np.float32)}
found = {}
for entries in (0, 1, 2, 5):
    metadata = {name: "x" for name in ("epoch", "seed", "method", "column", "commit")[:entries]}
    found[entries] = len({hashlib.sha256(save(weights, metadata or None)).hexdigest() for _ in range(40)})
    print(f"{entries} entries, 40 saves: {'one digest' if found[entries] == 1 else 'more than one digest'}")
assert found[0] == found[1] == 1
assert found[2] == 2
assert found[5] > 10
print("as described")
EOF
