#!/usr/bin/env bash
# Lint, types and every test that this machine can run, in an environment of its own. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh

ruff check .
ruff format --check .
mypy &
types=$!
status=0
OMP_NUM_THREADS=1 python -m pytest "$@" || status=$?
wait "$types" || { echo "mypy found errors: they stand above the tests" >&2; exit 1; }
exit "$status"
