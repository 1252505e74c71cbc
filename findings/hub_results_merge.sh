#!/usr/bin/env bash
# A good guess: two EvalResults with different dataset names and arguments become two results of the model card.
# What happens: huggingface_hub tells results apart by task, dataset type, configuration, split and revision only. The second
#   one's accuracy is put under the first one's dataset, and reading the card back gives both the name and arguments of the first.
# Versions: huggingface_hub 2.4.0.
# Why it matters: one dataset at several imbalance ratios is how this field reports, so ratio 10's accuracy stands as ratio 100's.
#   Here a card names its column as the dataset's configuration.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
"${PYTHON:-python3}" -m venv env
env/bin/pip install -q huggingface_hub==2.4.0 >&2
env/bin/python - <<'EOF'
import huggingface_hub
from huggingface_hub import EvalResult, ModelCard, ModelCardData

print("huggingface_hub", huggingface_hub.__version__)


def card(configured: bool) -> list[tuple[str, dict, float]]:
    results = [EvalResult("image-classification", "cifar10", f"CIFAR-10-LT, ratio {ratio}", "accuracy", accuracy,
                          dataset_args={"ratio": ratio}, dataset_config=f"lt-{ratio}" if configured else None)
               for ratio, accuracy in ((100, 70.0), (10, 88.0))]
    text = ModelCardData(model_name="model", eval_results=results).to_yaml()
    return [(r.dataset_name, r.dataset_args, r.metric_value) for r in ModelCard(f"---\n{text}\n---\n").data.eval_results]


for configured in (False, True):
    print("with a configuration each:" if configured else "told apart by name and arguments:")
    for line in card(configured):
        print("  ", line)
assert card(False)[1] == ("CIFAR-10-LT, ratio 100", {"ratio": 100}, 88.0)
assert card(True)[1] == ("CIFAR-10-LT, ratio 10", {"ratio": 10}, 88.0)
print("as described")
EOF
