#!/usr/bin/env bash
# A good guess: within torch.autocast a layer computes with its weights as they are, also right after optimizer.step().
# What happens: the bfloat16 copy of a weight is made once and kept until the outermost autocast block ends; that the weight has
#   changed since is not noticed. A second forward pass in the block has the old weights, whatever the step did.
# Versions: torch 2.13.0 (on the CPU; the cache is the same code on a GPU).
# Why it matters: an evaluation, a second step (sharpness-aware, meta-learned weights) or a whole loop inside one block measures
#   the network before the step. cache_enabled=False, or a block a pass, is right. Here every forward pass has a block of its own.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
"${PYTHON:-python3}" -m venv env
env/bin/pip install -q torch==2.13.0 >&2
env/bin/python -W ignore - <<'EOF'
import torch

print("torch", torch.__version__.partition("+")[0])


def train(blocks: str, **options) -> list[float]:
    """Three steps of gradient descent on (w x - 3)^2, and the output before each."""
    layer = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(layer.weight, 1.0)
    optimiser, x, seen = torch.optim.SGD(layer.parameters(), lr=0.125), torch.ones(1, 1), []

    def step() -> None:
        output = layer(x)
        seen.append(output.item())
        optimiser.zero_grad()
        (output.float() - 3).square().sum().backward()
        optimiser.step()

    if blocks == "one block":
        with torch.autocast("cpu", dtype=torch.bfloat16, **options):
            for _ in range(4):
                step()
    else:
        for _ in range(4):
            with torch.autocast("cpu", dtype=torch.bfloat16, **options):
                step()
    print(f"{blocks}{', no cache' if options else ''}: outputs {seen}, weight in the end {layer.weight.item():.4f}")
    return seen


right = train("a block a step")
assert right == sorted(set(right))
assert train("one block", cache_enabled=False) == right
assert train("one block") == [1.0] * 4
print("as described")
EOF
