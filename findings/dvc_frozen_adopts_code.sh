#!/usr/bin/env bash
# A good guess: a frozen stage is left alone: `dvc repro` neither runs it nor touches its entry in dvc.lock.
# What happens: once its output was replaced by hand, `dvc repro` writes into dvc.lock the new output and, beside it, the code as
#   it is today, although that has never run. Unfrozen, the stage is then "didn't change, skipping".
# Versions: dvc 3.67.1 (needs git).
# Why it matters: days of training are what one freezes, and weights fetched from another machine are what one puts there. From
#   then on dvc.lock says that today's code made them. Here frozen stages have no outputs, which a test keeps so.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
"${PYTHON:-python3}" -m venv env
env/bin/pip install -q dvc==3.67.1 >&2
export PATH="$work/env/bin:$PATH" DVC_NO_ANALYTICS=1
mkdir project
cd project
git init -q
dvc init -q
echo 'print("weights of the first code")' > train.py
cat > dvc.yaml <<'EOF'
stages:
  train:
    cmd: python train.py > weights
    deps: [train.py]
    outs: [weights]
EOF
code() { python -c 'import hashlib; print(hashlib.md5(open("train.py", "rb").read()).hexdigest())'; }
echo "dvc $(dvc --version)"
dvc repro -q
first=$(code)
dvc freeze train >&2
echo 'print("weights of the second code")' > train.py
second=$(code)
dvc repro -q
grep -q "$first" dvc.lock
echo "frozen, code edited, repro: dvc.lock has the first code"
rm weights
echo 'weights fetched from elsewhere' > weights
dvc repro -q
grep -q "$second" dvc.lock
echo "weights replaced, repro: dvc.lock has the second code, which has never run"
dvc unfreeze train >&2
echo "unfrozen, repro: $(dvc repro 2>&1 | grep '^Stage'); weights: $(cat weights)"
[ "$(cat weights)" = "weights fetched from elsewhere" ]
echo "as described"
