#!/usr/bin/env bash
# Train on two machines: run the same command on both, in any order.
#   experiments/launch/two_machines.sh HOST:PORT GPUS CONFIG [KEY VALUE ...]
# HOST:PORT: an address of one of the two, and a free port there, where they meet (c10d rendezvous). GPUS: processes on each machine.
# Environment: MACHINES (2), RESTARTS (3) after a process died, JOB (a name of this training: another for each, the same on both machines),
# TORCH_ELASTIC_SHUTDOWN_TIMEOUT (150): seconds that processes have for their checkpoint when torchrun is told to stop, of its own 30.
set -euo pipefail

if [[ $# -lt 3 || ! $1 =~ ^.+:[0-9]+$ || ! $2 =~ ^[1-9][0-9]*$ ]]; then
    echo "usage: ${0##*/} HOST:PORT GPUS CONFIG [KEY VALUE ...]" >&2
    exit 2
fi
meeting=$1 gpus=$2 config=$3
shift 3
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd -P)
export PYTHONPATH="$root/lib${PYTHONPATH:+:$PYTHONPATH}"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-4}"
# the processes of each start meet in a store of their own: torchrun's lives on, and each machine counts its restarts for itself
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-150}"

exec "${PYTHON:-python}" -m torch.distributed.run --nnodes="${MACHINES:-2}" --nproc-per-node="$gpus" --max-restarts="${RESTARTS:-3}" \
    --rdzv-backend=c10d --rdzv-endpoint="$meeting" --rdzv-id="${JOB:-$(basename "$config" .yaml)}" \
    "$root/tools/train.py" --cfg "$config" AUTO_RESUME True "$@"
