#!/usr/bin/env bash
# Trains on GPU nodes of a SLURM cluster, one process per node with all of its GPUs:
#
#     sbatch --nodes=8 launch/slurm.sh --config=configs/moon_3b.py --workdir=/shared/runs/moon --config.mesh.fsdp=16
#
# Options before the script's name overrule those below; partition and account are the cluster's own. Submit from the
# checkout, with the environment active that has the package; $PYTHON is the interpreter, `python` by default. The work
# folder must be on a disk that all nodes share. The processes find each other through SLURM's variables.
#
# Five minutes before the time limit, and at a preemption, the run saves a checkpoint after the step that it is in and
# ends with status 143. SLURM queues a preempted job again by itself, and this script one at its time limit: the same
# command resumes. `scancel` ends it for good, with a checkpoint.
#SBATCH --job-name=moon
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=moon-%j.log
#SBATCH --signal=B:USR1@300
set -euo pipefail

if (($# == 0)) || [[ -z ${SLURM_JOB_ID:-} ]]; then
    sed -n '2,/^#SBATCH/{/^#SBATCH/!s/^# \{0,1\}//p}' "$0" >&2
    exit 2
fi

step=
limit=
# shellcheck disable=SC2317,SC2329 # the traps call it
stop() {
    [[ -z $step ]] || kill -TERM "$step" # srun passes it on to every task
}
trap 'limit=1; stop' USR1 # SLURM, at the time limit
trap stop TERM INT        # SLURM, at a preemption, or a person

# What moon_jax.aot counts with; the rest of a GPU is for CUDA and NCCL.
export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-.92}

srun "${PYTHON:-python}" -m moon_jax.train "$@" &
step=$!

while true; do
    status=0
    wait "$step" || status=$?
    kill -0 "$step" 2>/dev/null || break # it has ended; before that, it was a signal that ended the wait
done

if [[ -n $limit && $status -eq 143 ]]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
