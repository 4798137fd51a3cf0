#!/usr/bin/env bash
# Train on several machines without SLURM; the same line on each of them, with its own NODE:
#   NODES=2 NODE=0 MASTER_ADDR=10.0.0.1 launch/multinode.sh CONFIG [key=value ...]
# NODE counts from 0, and MASTER_ADDR is machine 0. GPUS is the number on each (all of them), MASTER_PORT the port (29500).
# On CPUs: ACCELERATE_USE_CPU=true GPUS=1.
set -euo pipefail
: "${NODES:?how many machines}" "${NODE:?which of them this is, from 0}" "${MASTER_ADDR:?name or address of machine 0}"

python=${PYTHON:-python}
gpus=${GPUS:-$("$python" -c 'import torch; print(torch.cuda.device_count())')}
case $NODES$NODE$gpus in # bash runs code in place of a number in arithmetic
  *[!0-9]*) printf 'NODES=%q NODE=%q GPUS=%q: not all are numbers\n' "$NODES" "$NODE" "$gpus" >&2; exit 2 ;;
esac
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec "$python" -m distgan.distributed.launch --multi_gpu --num_processes $((10#$NODES * 10#$gpus)) --gpu_ids all \
  --num_machines "$NODES" --machine_rank "$NODE" --main_process_ip "$MASTER_ADDR" \
  --main_process_port "${MASTER_PORT:-29500}" --same_network --rdzv_backend static \
  --mixed_precision no --dynamo_backend no -m distgan train "$@"
