#!/usr/bin/env bash
#SBATCH --job-name=poise
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@180
#
# Train under SLURM: sbatch [--nodes N --gpus-per-node G --time T] experiments/launch/slurm.sh CONFIG [KEY VALUE ...]
# One torchrun per node starts a process per GPU; the rendezvous is on the first node. 180 seconds
# before the time limit, and on preemption (SIGTERM), the training writes a checkpoint and stops, and
# the job is requeued and resumes. Submit from the checkout, in the environment with Poise's packages.
# OUTPUT_DIR must be on a file system shared by all nodes.
set -euo pipefail

if [[ $# -lt 1 || -z ${SLURM_JOB_ID:-} ]]; then
    echo "usage: sbatch experiments/launch/slurm.sh CONFIG [KEY VALUE ...]" >&2
    exit 2
fi
config=$1
shift
root=${SLURM_SUBMIT_DIR:?}
gpus=${GPUS_OF_A_NODE:-${SLURM_GPUS_ON_NODE:-1}}
# without `| head`, which would stop scontrol before its last line, and with it this script
hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
first=${hosts%%$'\n'*}
export PYTHONPATH="$root/lib${PYTHONPATH:+:$PYTHONPATH}"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-4}"
# a new store for every restart, because each node counts its own restarts
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
# seconds for the checkpoint when torchrun is stopped (default 30); less than the 180 of --signal
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-150}"

# the step is a child in the background, for bash runs a trap only between commands or in `wait`
stopping=
stop() {
    stopping=1
    # torchrun on each node forwards it to its processes, which stop after a step with a checkpoint
    scancel --signal=TERM "$SLURM_JOB_ID.0" || kill -TERM "$step"
}
trap stop USR1 TERM

srun --kill-on-bad-exit=1 "${PYTHON:-python}" -m torch.distributed.run --nnodes="$SLURM_JOB_NUM_NODES" --nproc-per-node="$gpus" --max-restarts=3 \
    --rdzv-backend=c10d --rdzv-endpoint="$first:${PORT:-29400}" --rdzv-id="$SLURM_JOB_ID" \
    "$root/tools/train.py" --cfg "$config" AUTO_RESUME True "$@" &
step=$!

while true; do
    status=0
    wait "$step" || status=$?
    kill -0 "$step" 2>/dev/null || break      # else the trap has interrupted `wait`
done
if [[ -n $stopping && $status -ne 0 ]]; then
    echo "stopped before its time was over; back into the queue"
    scontrol requeue "$SLURM_JOB_ID" || true      # after a preemption SLURM does it by itself
fi
exit "$status"
