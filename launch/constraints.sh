#!/usr/bin/env bash
# Makes constraints.txt: a version of every package that any extra of distgan brings, for each Python from 3.10 on.
#   launch/constraints.sh                  after a change of pyproject.toml: pins stay where they can
#   launch/constraints.sh --upgrade        newer versions of all; --upgrade-package NAME of one
# Needs uv (pip install uv). What torch brings for GPUs is left out: each build of torch pins its own.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

pins=$(mktemp)
trap 'rm -f "$pins"' EXIT
cp constraints.txt "$pins"
uv pip compile --quiet --universal --python-version 3.10 --all-extras --no-annotate --no-header "$@" \
  --output-file "$pins" pyproject.toml
{
  echo "# The versions this release was tested with: pip install -e '.[dev]' -c constraints.txt"
  echo "# Made by launch/constraints.sh; do not edit it by hand."
  grep -vE '^(nvidia-|cuda-|triton=)' "$pins"
} >constraints.txt
