#!/usr/bin/env bash
# Train on two machines: run the same command on both, in any order.
#   experiments/launch/two_machines.sh HOST:PORT GPUS CONFIG [KEY VALUE ...]
# HOST:PORT: an address of one of the two, and a free port there, where they meet (c10d rendezvous). GPUS: processes on each machine.
# Environment: MACHINES (2), RESTARTS (3) after a process died, JOB (a name of this training: another for each, the same on both machines).
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

exec "${PYTHON:-python}" -m torch.distributed.run --nnodes="${MACHINES:-2}" --nproc-per-node="$gpus" --max-restarts="${RESTARTS:-3}" \
    --rdzv-backend=c10d --rdzv-endpoint="$meeting" --rdzv-id="${JOB:-$(basename "$config" .yaml)}" \
    "$root/tools/train.py" --cfg "$config" AUTO_RESUME True "$@"
