#!/usr/bin/env bash
# Trains with several processes on this machine:
#
#     launch/local.sh N --config=configs/demo.py --workdir=runs/demo
#     launch/local.sh N moon_jax.embed --model=runs/demo --input=items.jsonl --output=out
#
# The GPUs are dealt out evenly; N must divide their number, and a program gets 0.92 of their memory, which is what
# moon_jax.aot counts with (XLA_PYTHON_CLIENT_MEM_FRACTION). Without GPUs every process has one device, or as many as
# XLA_FLAGS=--xla_force_host_platform_device_count=M says. $PYTHON is the interpreter, `python` by default.
#
# SIGTERM and Ctrl-C reach all processes, which save a checkpoint after the step that runs and end with status 143.
# If one process fails, the others are ended, and its status is returned.
set -euo pipefail

if [[ $# -lt 2 || ! $1 =~ ^[1-9][0-9]*$ ]]; then
    sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
processes=$1
shift
module=moon_jax.train
if [[ $1 != -* ]]; then
    module=$1
    shift
fi
python=${PYTHON:-python}

gpus=0
if [[ ${JAX_PLATFORMS:-} != cpu ]] && command -v nvidia-smi >/dev/null; then
    gpus=$(nvidia-smi --list-gpus | wc -l)
fi
if ((gpus % processes)); then
    echo "$gpus GPUs cannot be dealt out evenly to $processes processes" >&2
    exit 2
fi
each=$((gpus / processes))

port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
export MOON_COORDINATOR=127.0.0.1:$port MOON_PROCESSES=$processes

declare -A running=() # process ids
signalled=
trap 'signalled=1; kill -TERM "${!running[@]}" 2>/dev/null || true' TERM INT

for ((i = 0; i < processes; i++)); do
    if ((each)); then
        JAX_LOCAL_DEVICE_IDS=$(seq -s, $((i * each)) $((i * each + each - 1)))
        export JAX_LOCAL_DEVICE_IDS XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-.92}
    fi
    MOON_PROCESS_ID=$i "$python" -m "$module" "$@" &
    running[$!]=1
done

status=0
while ((${#running[@]})); do
    code=0
    wait -n -p ended || code=$?
    if [[ -z ${ended:-} ]]; then # a signal came, or bash has noticed an end elsewhere and `wait -n` will not tell it
        for pid in "${!running[@]}"; do
            kill -0 "$pid" 2>/dev/null || ended=$pid
        done
        [[ -n ${ended:-} ]] || continue
        code=0
        wait "$ended" || code=$?
    fi
    unset "running[$ended]"
    if ((code && !status)); then
        status=$code
        if [[ -z $signalled ]] && ((${#running[@]})); then
            sleep 1 # a process that was forked this moment has no use for a signal yet
            kill -TERM "${!running[@]}" 2>/dev/null || true
        fi
    fi
done
exit "$status"
