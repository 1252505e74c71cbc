#!/usr/bin/env bash
# A good guess: `dvc push` pushes everything that `dvc add` has put into a .dvc file, or says what it did not push.
# What happens: with `models/*/` in .gitignore, which hides every model's folder from git and leaves models/a.dvc to it, `dvc push`
#   says "Everything is up to date." and pushes nothing, with exit code 0. Named, `dvc push models/a.dvc` pushes its files. DVC asks
#   dulwich whether git ignores `models/`; dulwich lets `*` stand for nothing at all, so DVC never looks into that folder.
# Versions: dvc 3.67.1, dulwich 1.2.21 (needs git).
# Why it matters: weights of days of training are believed to be in the remote and are not; whoever clones finds out. Here
#   .gitignore names the files (`*/*`), and a test clones and pulls.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
"${PYTHON:-python3}" -m venv env
env/bin/pip install -q dvc==3.67.1 dulwich==1.2.21 >&2
export PATH="$work/env/bin:$PATH" DVC_NO_ANALYTICS=1
mkdir project
cd project
git init -q
dvc init -q
mkdir -p models/a
echo weights > models/a/weights
echo 'models/*/' > .gitignore
dvc add -q models/a
dvc remote add -q -d store ../store
echo "dvc $(dvc --version), dulwich $(python -c 'import dulwich; print(".".join(map(str, dulwich.__version__)))')"
echo "git sees: $(git status --short --untracked-files=all models)"
pushed() { find ../store -type f 2>/dev/null | wc -l; }
echo "dvc push: $(dvc push 2>&1); files in the remote: $(pushed)"
[ "$(git status --short --untracked-files=all models)" = "?? models/a.dvc" ]
[ "$(pushed)" = 0 ]
echo 'models/*/*' > .gitignore
echo "with models/*/* in .gitignore, dvc push: $(dvc push 2>&1); files in the remote: $(pushed)"
[ "$(pushed)" = 2 ]
echo "as described"
