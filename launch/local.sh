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
# A mistake in the config is told in one line, not once more under the launcher's own traceback.
case " $* " in *" --"*) ;; *) "$python" -m distgan config --ranks "$gpus" "$@" >/dev/null ;; esac
export PET_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGQUIT,SIGUSR1,SIGUSR2 # handed on to the ranks; SIGHUP stays nohup's
exec "$python" -m accelerate.commands.launch --multi_gpu --num_processes "$gpus" --gpu_ids all \
  --num_machines 1 --machine_rank 0 --main_process_port 0 --same_network --rdzv_backend static \
  --mixed_precision no --dynamo_backend no -m distgan train "$@"
