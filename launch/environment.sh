# Sourced by the scripts here and by tests/run.sh: makes .venv beside this folder where it is missing or out of date,
# and puts it first on the PATH.

export PYTHONDONTWRITEBYTECODE=  # else every process compiles again what it imports
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
stamp=$root/.venv/installed
if ! cat "$root/pyproject.toml" "$root/constraints.txt" | cmp -s - "$stamp"; then
  host=${PYTHON:-python3}
  if ! "$host" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
    echo "distgan needs Python 3.10 or newer; $host is $("$host" --version 2>&1). Set PYTHON to a newer one." >&2
    exit 5
  fi
  echo "installing into $root/.venv (a few minutes, once)"
  [ -x "$root/.venv/bin/python" ] || "$host" -m venv "$root/.venv"
  # what is imported is compiled then; most of it never is
  "$root/.venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile \
    -e "$root[dev]" -c "$root/constraints.txt"
  cat "$root/pyproject.toml" "$root/constraints.txt" >"$stamp"
fi
export PATH=$root/.venv/bin:$PATH PYTHON=$root/.venv/bin/python
