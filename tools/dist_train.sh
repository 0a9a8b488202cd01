#!/usr/bin/env bash
# Train with several processes: tools/dist_train.sh CONFIG GPUS [KEY VALUE ...]
# The environment that it reads is described in dist_run.sh.
set -euo pipefail

if [[ $# -lt 2 || ! $2 =~ ^[1-9][0-9]*$ ]]; then
    echo "usage: ${0##*/} CONFIG GPUS [KEY VALUE ...]" >&2
    exit 2
fi
config=$1 gpus=$2
shift 2
exec bash "$(dirname -- "${BASH_SOURCE[0]}")/dist_run.sh" train.py "$gpus" --cfg "$config" "$@"
