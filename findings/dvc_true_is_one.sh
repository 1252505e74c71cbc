#!/usr/bin/env bash
# A good guess: a parameter that changes from `true` to `1`, or from `0` to `false`, is changed, so `dvc repro` runs its stage.
# What happens: DVC compares the values as Python does, where True == 1 and False == 0: "didn't change, skipping". A change from 1
#   to 2 is seen.
# Versions: dvc 3.67.1 (needs git).
# Why it matters: a switch that becomes a strength is ordinary (mixup: true, then mixup: 1 for alpha = 1; smoothing: 0, then
#   false), and the training script tells them apart. The old result then stands under the new parameters. Here a switch takes
#   true or false only and a number numbers only, so that no such change is accepted.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
"${PYTHON:-python3}" -m venv env
env/bin/pip install -q dvc==3.67.1 PyYAML==6.0.3 >&2
export PATH="$work/env/bin:$PATH" DVC_NO_ANALYTICS=1
mkdir project
cd project
git init -q
dvc init -q
cat > train.py <<'EOF'
import yaml

mixup = yaml.safe_load(open("params.yaml"))["mixup"]
print("alpha", 0.2 if mixup is True else mixup)
EOF
cat > dvc.yaml <<'EOF'
stages:
  train:
    cmd: python train.py > seen.txt
    deps: [train.py]
    params: [mixup]
    outs: [seen.txt]
EOF
echo "dvc $(dvc --version)"
for value in true 1 2; do
  echo "mixup: $value" > params.yaml
  said=$(dvc repro 2>&1 | grep -E "^(Running stage|Stage)")
  echo "mixup: $value -> $said; the result says: $(cat seen.txt); the script would say: $(python train.py)"
  [ "$value" != 1 ] || { [ "$(cat seen.txt)" = "alpha 0.2" ] && [ "$(python train.py)" = "alpha 1" ]; }
done
[ "$(cat seen.txt)" = "alpha 2" ]
echo "as described"
