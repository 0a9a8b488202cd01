#!/usr/bin/env bash
# Run a tool in several processes: tools/dist_run.sh TOOL GPUS ARGUMENTS...; dist_train.sh and dist_test.sh call it.
# GPUS processes run on this machine, each with a GPU of its own or, where there are none, on the CPU. Environment: NNODES (1)
# machines, of which this is NODE_RANK (0) and the first has the address MASTER_ADDR and the free port PORT (29500); on one
# machine a free port is chosen where PORT is not given. PYTHON: the interpreter.
set -euo pipefail

tool=$1 gpus=$2
shift 2
python=${PYTHON:-python}
if [[ ${NNODES:-1} != 1 && -z ${MASTER_ADDR:-} ]]; then
    echo "error: NNODES=$NNODES needs MASTER_ADDR, the first machine's address" >&2
    exit 2
fi
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
export PYTHONPATH="$root/lib${PYTHONPATH:+:$PYTHONPATH}"
# torchrun would set 1; on the CPU the processes then leave cores idle
cores=$(nproc 2>/dev/null || echo 1)
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((cores > gpus ? cores / gpus : 1))}"

if [[ ${NNODES:-1} == 1 && -z ${PORT:-} ]]; then
    meeting=(--standalone --local-addr=127.0.0.1)
else
    port=${PORT:-29500}
    if [[ ! $port =~ ^[0-9]{1,5}$ ]] || ((10#$port > 65535)); then
        echo "error: PORT=$port: must be a number from 0 to 65535; give a free port, or none on a single machine" >&2
        exit 1
    fi
    meeting=(--node-rank="${NODE_RANK:-0}" --master-addr="${MASTER_ADDR:-127.0.0.1}" --master-port="$port")
    if [[ ${NODE_RANK:-0} == 0 ]]; then     # the machine that listens; torchrun would end with a traceback
        "$python" -c '
import os, socket, sys
try:
    socket.create_server(("", int(sys.argv[1]))).close()
except OSError as error:
    sys.exit(f"error: PORT={sys.argv[1]}: {os.strerror(error.errno)}; give a free port, or none on a single machine")
' "$port"
    fi
fi
exec "$python" -m torch.distributed.run --nnodes="${NNODES:-1}" --nproc-per-node="$gpus" "${meeting[@]}" "$root/tools/$tool" "$@"
