#!/usr/bin/env bash
# A good guess: `dvc exp run -S first.rate=0.5` sets that number, or says why it cannot, also where `second` is an alias of `first`.
# What happens: nothing is set. The stage runs with the old number, and DVC says "Ran experiment(s)". `-S second.rate=0.5` sets it
#   for both. DVC sets one of the two, then copies all values back in their order into what YAML has loaded as one and the same
#   mapping, so that the last name decides.
# Versions: dvc 3.67.1, ruamel.yaml 0.19.1 (needs git).
# Why it matters: anchors are how a params.yaml says that two stages share a setting. A sweep over such a number trains the same
#   thing again and again under different names, and its curve is flat. Here the README says so, and such numbers are edited.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
"${PYTHON:-python3}" -m venv env
env/bin/pip install -q dvc==3.67.1 ruamel.yaml==0.19.1 PyYAML==6.0.3 >&2
export PATH="$work/env/bin:$PATH" DVC_NO_ANALYTICS=1
export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@example.org GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@example.org
mkdir project
cd project
git init -q
dvc init -q
cat > params.yaml <<'EOF'
first: &sgd {rate: 0.1}
second: *sgd
EOF
cat > train.py <<'EOF'
import yaml

values = yaml.safe_load(open("params.yaml"))
print("first", values["first"]["rate"], "second", values["second"]["rate"])
EOF
cat > dvc.yaml <<'EOF'
stages:
  train:
    cmd: python train.py > seen.txt
    deps: [train.py]
    params: [first, second]
    outs: [seen.txt: {cache: false}]
EOF
git add -A
git commit -qm start
echo "dvc $(dvc --version), ruamel.yaml $(python -c 'import ruamel.yaml; print(ruamel.yaml.__version__)')"
for name in first second; do
  said=$(dvc exp run -S "$name.rate=0.5" 2>&1 | grep -oE "^(Ran experiment\(s\)|ERROR.*|WARNING.*)")
  echo "-S $name.rate=0.5: DVC says '$said'; the training script saw: $(cat seen.txt)"
  if [ "$name" = first ]; then [ "$(cat seen.txt)" = "first 0.1 second 0.1" ]; else [ "$(cat seen.txt)" = "first 0.5 second 0.5" ]; fi
  git checkout -q params.yaml
done
echo "as described"
