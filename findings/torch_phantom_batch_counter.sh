#!/usr/bin/env bash
# A good guess: a module whose batch normalisation keeps no counter of batches (`num_batches_tracked = None`, which PyTorch allows
#   and which saves a kernel a layer) takes back its own weights from a safetensors file, or from a plain dictionary of them.
# What happens: strict loading fails with `Unexpected key(s) in state_dict: "num_batches_tracked"`, a key that is in no file.
#   Without the version number that `state_dict()` carries as an attribute, BatchNorm adds the counter to what it loads, as if the
#   file were of 2018, and then the module complains. torch.save and torch.load keep the attribute, so there it works.
# Versions: torch 2.15.0, safetensors 0.8.0.
# Why it matters: a checkpoint that goes through safetensors, as every one here does, cannot be loaded with `strict=True`, and
#   `strict=False` would hide real mistakes. Here names and shapes are compared by hand, and tensors copied.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
"${PYTHON:-python3}" -m venv env
env/bin/pip install -q torch==2.15.0 safetensors==0.8.0 numpy==2.4.6 packaging==26.3 >&2
env/bin/python - <<'EOF'
import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import nn

print("torch", torch.__version__.partition("+")[0], "safetensors", safetensors.__version__)


def norm() -> nn.Module:
    layer = nn.BatchNorm1d(3)
    layer.num_batches_tracked = None
    return layer


state = norm().state_dict()
print("its keys:", *state)
save_file(state, "w.safetensors")
torch.save(state, "w.pt")
for name, found in (("state_dict()", state), ("torch.load", torch.load("w.pt")), ("dict(state_dict())", dict(state)),
                    ("safetensors", load_file("w.safetensors"))):
    assert set(found) == set(state)
    try:
        norm().load_state_dict(found)
        said = "loaded"
    except RuntimeError as error:
        said = str(error).split("\n\t")[1].strip()
    print(f"{name}: {said}")
    assert said == ("loaded" if name in ("state_dict()", "torch.load") else 'Unexpected key(s) in state_dict: "num_batches_tracked".')
print("as described")
EOF
