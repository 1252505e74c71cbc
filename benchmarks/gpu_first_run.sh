#!/usr/bin/env bash
# The first ten minutes on a GPU, in one command: a check, one campaign on one column, forty lines.
#
#   bash benchmarks/gpu_first_run.sh PARCEL OUT
#
# PARCEL: a file of `python -m papers pack-data cifar10 --imbalance lt --to PARCEL`. OUT: a folder for what has to come home:
# records.tar (and records-2.tar, ...: `python -m papers merge` takes all of them), log.txt, log.jsonl, summary.txt.
# It needs Python with torch and what pyproject.toml names; no git, no DVC, no network. The check stops it with the reason where
# captured steps are not those of a CPU. Then the runs of the column that are worth most train until second 560.
#
# For a rehearsal: DEVICE=cpu COLUMN=digits-lt-20 SECONDS_IN_ALL=60 RUNS=4 bash benchmarks/gpu_first_run.sh "" /tmp/out
set -u
cd "$(dirname "$0")/.."
PARCEL=$1 OUT=$2
PYTHON=${PYTHON:-python3} DEVICE=${DEVICE:-cuda} COLUMN=${COLUMN:-cifar10-lt-100} RUNS=${RUNS:-32}
SECONDS_IN_ALL=${SECONDS_IN_ALL:-560} SMOKE=${SMOKE:-60}
export PYTHONUNBUFFERED=1
PROFILE=paper
case $COLUMN in digits*) PROFILE=quick ;; esac
mkdir -p "$OUT" .work
date -u +%Y-%m-%dT%H:%M:%S+00:00 > .work/first-run-started
exec > >(tee "$OUT/log.txt") 2>&1

stop() { echo "STOP after $SECONDS s: $1"; cp .work/log.jsonl "$OUT" 2>/dev/null; exit 1; }

command -v nvidia-smi > /dev/null && nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader
"$PYTHON" -c 'import sys, torch; print("Python", sys.version.split()[0], "torch", torch.__version__, "CUDA", torch.version.cuda)' ||
    stop "torch does not load"
if [ -n "$PARCEL" ]; then
    "$PYTHON" -m papers prepare "${COLUMN%%-*}" --from "$PARCEL" || stop "the parcel cannot be unpacked"
fi

echo "== check, at second $SECONDS"
if [ "$DEVICE" != cpu ]; then
    timeout "$SMOKE" "$PYTHON" -m pytest -x -q -p no:cacheprovider tests/common/train/test_cuda.py \
        -k "captured_step or captured_pack or leaves_its_neighbours" || stop "the captured steps of test_cuda.py are not the CPU's"
fi
timeout "$SMOKE" "$PYTHON" benchmarks/first_run.py smoke --device "$DEVICE" --column "$COLUMN" --runs "$RUNS" ||
    stop "two captured steps of a pack of $RUNS are not the CPU's, or took more than $SMOKE s"

echo "== campaign, at second $SECONDS"
minutes=$(awk "BEGIN { print ($SECONDS_IN_ALL - $SECONDS) / 60 }")
"$PYTHON" -m papers campaign --profile $PROFILE --columns "$COLUMN" --device "$DEVICE" --minutes "$minutes" --pack "$RUNS" \
    --out "$OUT/records.tar"
cp .work/log.jsonl "$OUT" 2>/dev/null

echo "== summary, at second $SECONDS"
"$PYTHON" benchmarks/first_run.py summary --column "$COLUMN" --out "$OUT" | tee "$OUT/summary.txt"
exit "${PIPESTATUS[0]}"
