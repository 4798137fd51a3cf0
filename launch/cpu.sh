#!/usr/bin/env bash
# Train in two processes on this machine's CPU, the way many GPUs do it:
#   launch/cpu.sh CONFIG [key=value ...]
# PROCESSES=4 takes more. (`accelerate launch --cpu --num_processes 2` would start one process, without a word.)
set -euo pipefail

export ACCELERATE_USE_CPU=true OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
# A mistake in the config is reported by one process, at once.
case " $* " in *" --"*) ;; *) "${PYTHON:-python}" -m distgan config --ranks "${PROCESSES:-2}" "$@" >/dev/null ;; esac
exec "${PYTHON:-python}" -m distgan.distributed.launch --multi_gpu --num_processes "${PROCESSES:-2}" --gpu_ids all \
  --num_machines 1 --machine_rank 0 --main_process_port 0 --same_network --rdzv_backend static \
  --mixed_precision no --dynamo_backend no -m distgan train "$@"
