#!/usr/bin/env bash
# Builds the image of the service, from a clone; skipped when an image of the same inputs exists.
#
# Usage: build_orchestrator.sh [--tag NAME]... [--no-cache] [--force]        (normally through: make image-orchestrator)
# Environment as for build.sh, from which most of this comes. The image is tagged rlm-orchestrator:latest.
set -euo pipefail

# shellcheck source=sandbox_image/build.sh
source "$(dirname "${BASH_SOURCE[0]}")/build.sh"
root=$(cd "$here/.." && pwd)

digest_orchestrator() {
  {
    printf '%s\n' "$architecture" "$base_id"
    cd "$root"
    # Everything of the package: whatever is in it ends up in the wheel.
    find pyproject.toml README.md LICENSE protos orchestrator sandbox_image -type f -not -path '*/__pycache__/*' -print0 |
      sort -z | xargs -0 sha256sum
  } | sha256sum | cut -d' ' -f1
}

assemble_orchestrator() {
  local context=$1 scratch=$2
  mkdir -p "$context/site" "$context/app"
  cp "$here/orchestrator.Dockerfile" "$context/Dockerfile"
  cp "$here/compile.sh" "$context/"
  adopt_pip_settings "$python"
  unpack "$context/site" "$here/requirements-orchestrator.txt" --require-hashes
  (cd "$root" && "$python" -m hatchling build --target wheel --directory "$scratch/wheel") >"$scratch/log" 2>&1 ||
    { cat "$scratch/log" >&2; fail "the package could not be built; the reasons are above"; }
  "$uv" pip install --quiet --no-config --python "$python" --target "$context/app" --no-deps --no-compile \
    --link-mode copy "$scratch"/wheel/*.whl
  find "$context" -name '__pycache__' -prune -exec rm -rf {} +
  rm -rf "$context"/{app,site}/{bin,.lock,.gitignore}
  chmod -R u=rwX,go=rX "$context"
  find "$context" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
}

main_orchestrator() {
  parse_arguments "$@"
  [[ $variant == full && -z $extra ]] || fail "the orchestrator's image has no variants and no --extra"
  if [[ ${tags[0]} == rlm-sandbox:full ]]; then tags=(rlm-orchestrator:latest); fi
  variant=orchestrator
  find_programs
  [[ -f $root/pyproject.toml ]] || fail "the orchestrator's image is built from a clone: $root is none"
  update_protocol_code
  take_turns
  base=$(bash "$here/base.sh")
  base_id=$(docker image inspect --format '{{.Id}}' "$base")
  architecture=$(docker version --format '{{.Server.Arch}}')
  inputs=$(digest_orchestrator)
  build_unless_there assemble_orchestrator rlm-orchestrator
}

main_orchestrator "$@"
