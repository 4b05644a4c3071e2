#!/usr/bin/env bash
# Trains on all hosts of a Cloud TPU VM slice:
#
#     ZONE=us-east5-a launch/tpu_vm.sh NAME --config=configs/moon_3b.py --workdir=/shared/runs/moon
#
# NAME is the slice, as in `gcloud compute tpus tpu-vm create NAME`. The checkout must be in the same folder on every
# host, $FOLDER (by default moon_jax in the home folder), with the package installed for $PYTHON, by default `python3`;
# the work folder on a disk that all hosts mount (Filestore, or Cloud Storage FUSE):
#
#     gcloud compute tpus tpu-vm scp --recurse --worker=all --zone=ZONE . NAME:moon_jax
#     gcloud compute tpus tpu-vm ssh NAME --worker=all --zone=ZONE --command="pip install -e 'moon_jax[tpu]'"
#
# Ctrl-C here, or SIGTERM, is passed on: every host saves a checkpoint after the step that runs, and the same command
# resumes. A host that the cloud reclaims gets SIGTERM from the machine itself, which stops all of them alike.
set -euo pipefail

if (($# < 2)) || [[ $1 == -* || -z ${ZONE:-} ]]; then
    sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p}' "$0" >&2
    exit 2
fi
name=$1
shift

on_all_hosts() {
    gcloud compute tpus tpu-vm ssh "$name" --worker=all --zone="$ZONE" --command="$1"
}

# Every word is quoted for the remote shell. The process writes its number down, since ssh passes no signals on.
printf -v command '%q ' "${PYTHON:-python3}" -m moon_jax.train "$@"
printf -v folder '%q' "${FOLDER:-moon_jax}"
on_all_hosts "cd $folder && echo \$\$ >\$HOME/.moon_jax.pid && MOON_COORDINATOR=auto exec $command" &
run=$!

# shellcheck disable=SC2317,SC2329 # the trap calls it
stop() {
    echo "stopping after the step that runs" >&2
    # shellcheck disable=SC2016,SC2317 # for the remote shell
    on_all_hosts 'kill -TERM "$(cat $HOME/.moon_jax.pid)"' || true
}
trap stop TERM INT

while true; do
    status=0
    wait "$run" || status=$?
    kill -0 "$run" 2>/dev/null || break
done
exit "$status"
