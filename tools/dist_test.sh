#!/usr/bin/env bash
# Test with several processes: tools/dist_test.sh CONFIG CHECKPOINT GPUS [--out FILE.pkl] [--eval mAP] [KEY VALUE ...]
# The environment that it reads is described in dist_run.sh.
set -euo pipefail

if [[ $# -lt 3 || ! $3 =~ ^[1-9][0-9]*$ ]]; then
    echo "usage: ${0##*/} CONFIG CHECKPOINT GPUS [--out FILE.pkl] [--eval mAP] [KEY VALUE ...]" >&2
    exit 2
fi
config=$1 checkpoint=$2 gpus=$3
shift 3
exec bash "$(dirname -- "${BASH_SOURCE[0]}")/dist_run.sh" test.py "$gpus" --cfg "$config" "$@" TEST.MODEL_FILE "$checkpoint"
