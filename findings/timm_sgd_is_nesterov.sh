#!/usr/bin/env bash
# A good guess: create_optimizer_v2(model, opt="sgd", momentum=0.9, weight_decay=5e-4) is torch.optim.SGD with those values.
# What happens: "sgd" is Nesterov's momentum; the plain one is called "momentum". And biases and all one-dimensional weights,
#   those of normalisation, get no weight decay, where torch.optim.SGD(model.parameters(), ...) decays everything.
# Versions: timm 1.0.31, torch 2.13.0, torchvision 0.28.0.
# Why it matters: the papers of this field train with SGD of momentum 0.9 and decay on everything; the same words in timm are
#   another optimiser. Here optimisers are written out, plain and Nesterov by name.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
"${PYTHON:-python3}" -m venv env
env/bin/pip install -q timm==1.0.31 torch==2.13.0 torchvision==0.28.0 >&2
env/bin/python -W ignore - <<'EOF'
import timm
import torch
from timm.optim import create_optimizer_v2

print("timm", timm.__version__, "torch", torch.__version__.partition("+")[0])
model = timm.create_model("resnet10t")
seen = {}
for name in ("sgd", "momentum"):
    groups = create_optimizer_v2(model, opt=name, lr=0.1, momentum=0.9, weight_decay=5e-4).param_groups
    seen[name] = {group["nesterov"] for group in groups}, {group["weight_decay"]: len(group["params"]) for group in groups}
    print(f"timm {name!r}: nesterov {seen[name][0]}, tensors by weight decay {seen[name][1]}")
[group] = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4).param_groups
decays = {group["weight_decay"]: len(group["params"])}
print(f"torch.optim.SGD: nesterov {group['nesterov']}, tensors by weight decay {decays}")
assert seen["sgd"][0] == {True}
assert seen["momentum"][0] == {False}
assert seen["sgd"][1][0.0] > seen["sgd"][1][5e-4] > 0
assert not group["nesterov"]
print("as described")
EOF
