#!/usr/bin/env bash
# Train on every GPU of this machine, or in one process where there is one or none:
#   launch/local.sh CONFIG [key=value ...]
# GPUS=2 takes fewer. Every flag of the launcher stands here, so a default_config.yaml of yours changes nothing.
set -euo pipefail

python=${PYTHON:-python}
gpus=${GPUS:-$("$python" -c 'import torch; print(torch.cuda.device_count())')}
if [ "$gpus" -le 1 ]; then
  exec "$python" -m distgan train "$@" # a launcher round one process would only swallow its signals
fi
export PET_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1,SIGUSR2 # which the launcher hands on to the ranks
exec "$python" -m accelerate.commands.launch --multi_gpu --num_machines 1 --num_processes "$gpus" \
  --mixed_precision no --dynamo_backend no --main_process_port 0 -m distgan train "$@"
