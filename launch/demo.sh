#!/usr/bin/env bash
# From a fresh clone to a trained GAN in minutes: 1,797 scanned digits, 32 x 32, one class to a row.
# Needs Python 3.10+ with venv, and a package index. Settings may follow, such as train.max_minutes=5 (2 by default).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh

run=runs/digits32
[ -e data/digits32/dataset.json ] || distgan pack distgan/data/digits.npz data/digits32 --resolution 32

gpus=$(python -c 'import torch; print(torch.cuda.device_count())')
if [ "$gpus" -gt 0 ]; then launcher=launch/local.sh ranks=$gpus; else launcher=launch/cpu.sh ranks=2; fi
batch=$(((64 + ranks - 1) / ranks * ranks)) # 64, or a little more where so many GPUs do not divide it
"$launcher" configs/digits32.yaml run.dir=$run train.batch=$batch train.max_minutes=2 "$@"

python tests/helpers/judge_digits.py $run
echo
echo "samples    $(ls -t $run/samples/fakes-*.png | head -n 1)   (the real ones: $run/samples/reals.png)"
echo "curves     $run/metrics.jsonl   (in the terminal: wandb leet $run/wandb/latest-run)"
echo "W&B run    $(grep -m 1 '^wandb:' $run/log.txt || echo 'none')"
echo "more       distgan generate $run --num 100 --as grid --out digits.png"
