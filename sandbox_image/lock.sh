#!/usr/bin/env bash
# Writes requirements-{full,orchestrator}.txt from their .in files (the last from pyproject.toml too): exact versions,
# hashes for every platform.
# Usage: sandbox_image/lock.sh [--upgrade]        (normally through: make lock)
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")"
# shellcheck source=sandbox_image/pip_settings.sh
source pip_settings.sh
# A lock must not depend on what a machine mirrors locally: the default index alone.
PIP_FIND_LINKS='' PIP_EXTRA_INDEX_URL='' adopt_pip_settings "${PYTHON:-python3}"
unset UV_INDEX UV_FIND_LINKS UV_INDEX_STRATEGY

for name in full orchestrator; do
  package=()
  if [[ $name == orchestrator ]]; then package=(--extra telemetry ../pyproject.toml); fi
  "${UV:-uv}" pip compile --quiet --no-config --universal --python-version 3.11 --generate-hashes \
    --no-emit-index-url --custom-compile-command 'make lock' --output-file "requirements-$name.txt" \
    "$@" "${package[@]}" "requirements-$name.in"
  echo "lock: sandbox_image/requirements-$name.txt: $(grep -c '==' "requirements-$name.txt") packages"
done
