#!/usr/bin/env bash
# Test with several processes: tools/dist_test.sh CONFIG CHECKPOINT GPUS [--out FILE.pkl] [--eval mAP] [KEY VALUE ...]
# GPUS processes run on this machine, each with a GPU of its own or, where there are none, on the CPU. Environment: NNODES (1)
# machines, of which this is NODE_RANK (0) and the first has the address MASTER_ADDR (127.0.0.1) and the free port PORT (29500);
# PYTHON, the interpreter.
set -euo pipefail

if [[ $# -lt 3 || ! $3 =~ ^[1-9][0-9]*$ ]]; then
    echo "usage: ${0##*/} CONFIG CHECKPOINT GPUS [--out FILE.pkl] [--eval mAP] [KEY VALUE ...]" >&2
    exit 2
fi
config=$1 checkpoint=$2 gpus=$3
shift 3
if [[ ${NNODES:-1} != 1 && -z ${MASTER_ADDR:-} ]]; then
    echo "error: NNODES=$NNODES needs MASTER_ADDR, the first machine's address" >&2
    exit 2
fi
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
export PYTHONPATH="$root/lib${PYTHONPATH:+:$PYTHONPATH}"
# torchrun would set 1; on the CPU the processes then leave cores idle
cores=$(nproc 2>/dev/null || echo 1)
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((cores > gpus ? cores / gpus : 1))}"

exec "${PYTHON:-python}" -m torch.distributed.run --nnodes="${NNODES:-1}" --node-rank="${NODE_RANK:-0}" --nproc-per-node="$gpus" \
    --master-addr="${MASTER_ADDR:-127.0.0.1}" --master-port="${PORT:-29500}" "$root/tools/test.py" --cfg "$config" "$@" TEST.MODEL_FILE "$checkpoint"
