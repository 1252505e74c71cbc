#!/usr/bin/env bash
# A good guess: `ray start --head`, then ray.init(address=...) on the same machine and by the same user works today as it did
#   yesterday.
# What happens: any local ray.init() in between writes ~/.ray/auth_token. A head that finds it asks every client for the token,
#   but clients send it only with RAY_AUTH_MODE=token, so the unchanged second command ends in "Failed to connect to Ray cluster".
# Versions: ray 2.60.0.
# Why it matters: a test or a notebook that once ran Ray locally breaks the documented two commands of a cluster, and the last
#   message speaks of the network. Here the refusal is recognised, and the message names the token.
set -euo pipefail
work=$(mktemp -d)
head=
stop() { [ -z "$head" ] || { kill -KILL -- "-$head" 2>/dev/null || true; wait "$head" 2>/dev/null || true; head=; }; }
trap 'stop; rm -rf "$work"' EXIT
cd "$work"
"${PYTHON:-python3}" -m venv env
env/bin/pip install -q ray==2.60.0 >&2
export HOME="$work/home" RAY_TMPDIR="$work/r" RAY_USAGE_STATS_ENABLED=0 PATH="$work/env/bin:$PATH"
unset RAY_AUTH_MODE RAY_AUTH_TOKEN RAY_AUTH_TOKEN_PATH RAY_ADDRESS
mkdir -p home r
port=$(python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
start() {
  setsid ray start --head --port="$port" --num-cpus=1 --include-dashboard=false --block > head.log 2>&1 &
  head=$!
  for _ in $(seq 90); do grep -q "Ray runtime started" head.log && return; sleep 1; done
  cat head.log >&2
  return 1
}
connect() {
  python -W ignore - "$port" <<'EOF' 2>/dev/null
import sys

import ray

try:
    ray.init(address=f"127.0.0.1:{sys.argv[1]}", logging_level="error", log_to_driver=False)
except ConnectionError as error:
    print(f"{type(error).__name__}: {str(error).rpartition(' at ')[0]}")
else:
    print("connected to", len(ray.nodes()), "machine")
EOF
}
echo "ray $(python -c 'import ray; print(ray.__version__)')"
start
first=$(connect)
echo "a fresh user, head and client: $first"
stop
python -W ignore -c 'import ray; ray.init("local", num_cpus=1, include_dashboard=False, logging_level="error"); ray.shutdown()' >&2
echo "after a local ray.init(): $(cd home && find . -type f)"
start
second=$(connect)
third=$(RAY_AUTH_MODE=token connect)
echo "the same two commands: $second"
echo "the client with RAY_AUTH_MODE=token: $third"
[ "$first" = "connected to 1 machine" ]
[ "$second" = "ConnectionError: Failed to connect to Ray cluster" ]
[ "$third" = "$first" ]
echo "as described"
