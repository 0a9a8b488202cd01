#!/usr/bin/env bash
# Train on two machines: run the same command on both, in any order.
#   experiments/launch/two_machines.sh HOST:PORT GPUS CONFIG [KEY VALUE ...]
# HOST:PORT: an address of one of them and a free port there (c10d rendezvous).
# GPUS: processes per machine. Environment: MACHINES (2), RESTARTS (3) after a failed process, JOB (a
# name, different for each training and the same on both machines), and
# TORCH_ELASTIC_SHUTDOWN_TIMEOUT (150), seconds for the checkpoint when torchrun is stopped.
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
# a new store for every restart, because each machine counts its own restarts
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-150}"

exec "${PYTHON:-python}" -m torch.distributed.run --nnodes="${MACHINES:-2}" --nproc-per-node="$gpus" --max-restarts="${RESTARTS:-3}" \
    --rdzv-backend=c10d --rdzv-endpoint="$meeting" --rdzv-id="${JOB:-$(basename "$config" .yaml)}" \
    "$root/tools/train.py" --cfg "$config" AUTO_RESUME True "$@"
