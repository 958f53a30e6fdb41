#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Trains or attacks one model by N workers on this machine, which share its GPUs evenly:
#   bash launch/workers.sh N [COMMAND] FLAGS...
# COMMAND is train (if left out) or attack, and FLAGS are those of python -m
# mtr_tf.COMMAND. Runs in the environment that is active (MTR_PYTHON names another
# Python). Ctrl-C and SIGTERM stop all workers, and what is done is kept; the same
# command goes on from there.
set -uo pipefail

command=train
if [[ "${2:-}" =~ ^[^-] ]]; then
  command="$2"
fi
if ! [[ "${1:-}" =~ ^[1-9][0-9]*$ && "$command" =~ ^(train|attack)$ ]]; then
  echo "usage: workers.sh N [train|attack] FLAGS...   (N: how many workers, a whole" \
    "number from 1)" >&2
  exit 2
fi
count="$1"
shift
[ "${1:-}" != "$command" ] || shift
python="${MTR_PYTHON:-python}"

# N free ports, as a list in JSON.
addresses="$("$python" - "$count" <<'PYTHON'
import json, socket, sys
sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(int(sys.argv[1]))]
print(json.dumps([f"127.0.0.1:{s.getsockname()[1]}" for s in sockets]))
PYTHON
)" || exit 1

named=()
if [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then
  IFS=', ' read -r -a named <<<"$CUDA_VISIBLE_DEVICES"
elif command -v nvidia-smi >/dev/null; then
  mapfile -t named < <(nvidia-smi --query-gpu=index --format=csv,noheader 2>/dev/null)
fi
gpus=()
for gpu in ${named[@]+"${named[@]}"}; do  # Older shells take an empty array for an error.
  # -1, NoDevFiles (SLURM) and "No devices were found" are none; CUDA ignores what follows.
  [[ "$gpu" =~ ^([0-9]+|GPU-.*|MIG-.*)$ ]] || break
  gpus+=("$gpu")
done
if [ "${#gpus[@]}" -gt 0 ] && [ $((${#gpus[@]} % count)) -ne 0 ]; then
  echo "error: ${#gpus[@]} GPUs must be shared evenly by $count workers; take another N," \
    "or name some of them in CUDA_VISIBLE_DEVICES." >&2
  exit 1
fi
share=$((${#gpus[@]} / count))

workers=()
trap 'kill -TERM "${workers[@]}" 2>/dev/null' INT TERM # What a script starts in the background ignores Ctrl-C.
for ((i = 0; i < count; i++)); do
  variables=("TF_CONFIG={\"cluster\": {\"worker\": $addresses}, \"task\": {\"type\": \"worker\", \"index\": $i}}")
  if [ "$share" -gt 0 ]; then
    mine=("${gpus[@]:i * share:share}")
    variables+=("CUDA_VISIBLE_DEVICES=$(IFS=, && echo "${mine[*]}")")
  fi
  env "${variables[@]}" "$python" -m "mtr_tf.$command" "$@" &
  workers+=($!)
done

# A worker that fails ends the others, once they have met.
code=0
for worker in "${workers[@]}"; do
  while kill -0 "$worker" 2>/dev/null; do
    wait "$worker" # Or until a signal comes to this script.
  done
  wait "$worker" || code=$?
done
exit "$code"
