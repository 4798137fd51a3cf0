#!/usr/bin/env bash
# Train on every GPU of this machine, or in one process where there is one or none:
#   launch/local.sh CONFIG [key=value ...]
# GPUS=2 takes fewer. Every flag of the launcher is set here, so a default_config.yaml of yours changes nothing.
set -euo pipefail

python=${PYTHON:-python}
gpus=${GPUS:-$("$python" -c 'import torch; print(torch.cuda.device_count())')}
if [ "$gpus" -le 1 ]; then
  exec "$python" -m distgan train "$@" # one process needs no launcher
fi
# A mistake in the config is reported by one process, at once.
case " $* " in *" --"*) ;; *) "$python" -m distgan config --ranks "$gpus" "$@" >/dev/null ;; esac
exec "$python" -m distgan.distributed.launch --multi_gpu --num_processes "$gpus" --gpu_ids all \
  --num_machines 1 --machine_rank 0 --main_process_port 0 --same_network --rdzv_backend static \
  --mixed_precision no --dynamo_backend no -m distgan train "$@"
