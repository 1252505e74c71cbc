#!/usr/bin/env bash
# A good guess: `dvc exp run -S weight_decay=0.00005` puts that number into params.yaml, and every YAML library reads it as one.
# What happens: DVC writes 5e-05. That is a number in YAML 1.2, which DVC follows; PyYAML follows 1.1, where an exponent needs a
#   point before it, and returns text. Numbers from 0.0001 up are written with a point and are read.
# Versions: dvc 3.67.1, PyYAML 6.0.3 (needs git).
# Why it matters: weight decays and the last rates of schedules are that small, and DVC and the training script disagree about the
#   type of the parameter that was just set. Here the reader of params.yaml knows both spellings.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
"${PYTHON:-python3}" -m venv env
env/bin/pip install -q dvc==3.67.1 PyYAML==6.0.3 >&2
export PATH="$work/env/bin:$PATH" DVC_NO_ANALYTICS=1
export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@example.org GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@example.org
mkdir project
cd project
git init -q
dvc init -q
echo 'weight_decay: 0.0005' > params.yaml
cat > train.py <<'EOF'
import yaml

value = yaml.safe_load(open("params.yaml"))["weight_decay"]
print(type(value).__name__, repr(value))
EOF
cat > dvc.yaml <<'EOF'
stages:
  train:
    cmd: python train.py > seen.txt
    deps: [train.py]
    params: [weight_decay]
    outs: [seen.txt: {cache: false}]
EOF
git add -A
git commit -qm start
echo "dvc $(dvc --version), PyYAML $(python -c 'import yaml; print(yaml.__version__)')"
for value in 0.0001 0.00005; do
  dvc exp run -q -S "weight_decay=$value" >&2
  echo "set $value: the file has '$(cat params.yaml)', the training script got $(cat seen.txt)"
  grep -F "weight_decay:" dvc.lock | sed 's/^ */  dvc.lock has /'
done
[ "$(cat seen.txt)" = "str '5e-05'" ]
echo "as described"
