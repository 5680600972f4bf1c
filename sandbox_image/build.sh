#!/usr/bin/env bash
# Builds the image that model-written code runs in; skipped when an image of the same inputs exists.
#
# Usage: build.sh [full|slim] [--extra FILE] [--tag NAME]... [--no-cache] [--force]
#   full         with libraries for analysis (requirements-full.in); tagged rlm-sandbox:full and rlm-sandbox:latest
#   slim         the standard library only; tagged rlm-sandbox:slim
#   --extra      requirements of your own, installed for model-written code beside the variant's libraries
#   --tag        tag the image so instead
#   --no-cache   do not reuse layers of earlier builds        --force      build even if nothing has changed
# Environment: BASE (base image, see base.sh), UV and PYTHON (programs, else from PATH), DOCKER_HOST as for docker.
#
# Works from a clone and from an installed package: it writes to a temporary folder only. Libraries are resolved, checked
# against the locks' hashes and unpacked here, on the host, so that the build itself needs no network.
set -euo pipefail
umask 022

# What is built from the same inputs has the same bytes: no clock, no hash seed, no user's locale goes into it.
export SOURCE_DATE_EPOCH=1700000000 LC_ALL=C
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=sandbox_image/pip_settings.sh
source "$here/pip_settings.sh"

say() { printf 'image: %s\n' "$*"; }
fail() { printf 'image: %s\n' "$*" >&2; exit 1; }

parse_arguments() {
  variant=full extra='' tags=() no_cache=() force=no
  while (($#)); do
    case $1 in
      full | slim) variant=$1 ;;
      --extra) extra=${2:?"--extra needs a requirements file"}; shift ;;
      --tag) tags+=("${2:?"--tag needs a name"}"); shift ;;
      --no-cache) no_cache=(--no-cache); force=yes ;;
      --force) force=yes ;;
      -h | --help) sed -n '2,/^set -/{/^#/s/^# \{0,1\}//p;}' "${BASH_SOURCE[0]}"; exit 0 ;;
      *) fail "unknown argument: $1 (see --help)" ;;
    esac
    shift
  done
  if [[ -n $extra ]]; then
    [[ -r $extra ]] || fail "--extra $extra cannot be read"
    extra=$(realpath "$extra")
  fi
  if ((${#tags[@]} == 0)); then
    tags=("rlm-sandbox:$variant")
    if [[ $variant == full ]]; then tags+=(rlm-sandbox:latest); fi
  fi
}

find_programs() {
  python=${PYTHON:-python3}
  uv=${UV:-$(command -v uv || true)}
  command -v docker >/dev/null || fail "the docker command is not installed. From a clone, make engine tells what to do"
  docker version --format '{{.Server.Version}}' >/dev/null 2>&1 ||
    fail "no Docker engine answers ($(docker version --format x 2>&1 | tail -n 1)). From a clone, make engine tells what to do"
  [[ -n $uv ]] || fail "needs uv: pip install uv, or say where it is: UV=/path/to/uv"
}

# In an installed package the protocol code is there; in a clone it is generated, and may be older than the protos.
update_protocol_code() {
  if [[ -f $here/../protos/generate.py ]]; then "$python" "$here/../protos/generate.py" || exit 1; fi
  [[ -f $here/generated/guest_messages.py ]] || fail "$here/generated/guest_messages.py is missing: install the package again"
}

# The name of an image's content: everything that goes into it, with file names, and nothing else.
digest_inputs() {
  {
    printf '%s\n' "$variant" "$architecture" "$base_id"
    cd "$here"
    sha256sum Dockerfile build.sh compile.sh
    if [[ $variant == full ]]; then sha256sum requirements-full.txt; fi
    if [[ -n $extra ]]; then sha256sum <"$extra"; fi
    find guest generated/guest_messages.py -name '*.py' -print0 | sort -z | xargs -0 sha256sum
  } | sha256sum | cut -d' ' -f1
}

# unpack FOLDER REQUIREMENTS [OPTION]...: what the requirements ask for, as wheels for the engine's platform.
unpack() {
  local folder=$1 requirements=$2 machine
  shift 2
  case $architecture in
    amd64) machine=x86_64 ;;
    arm64) machine=aarch64 ;;
    *) fail "no image for $architecture engines: only amd64 and arm64 have wheels for every library" ;;
  esac
  "$uv" pip install --quiet --no-config --python "$python" --target "$folder" --python-version 3.11 \
    --python-platform "$machine-manylinux_2_28" --only-binary :all: --no-compile --link-mode copy \
    "$@" --requirements "$requirements" || fail "the libraries of $requirements could not be installed (reasons above)"
}

assemble_context() {
  local context=$1
  mkdir -p "$context/agent" "$context/site"
  cp "$here/Dockerfile" "$here/compile.sh" "$context/"
  adopt_pip_settings "$python"
  if [[ $variant == full ]]; then unpack "$context/site" "$here/requirements-full.txt" --require-hashes; fi
  if [[ -n $extra ]]; then
    # The constraints keep what the variant has; they name no hashes for what is new, so hashes cannot be demanded.
    unpack "$context/site" "$extra" --no-verify-hashes --constraints "$here/requirements-full.txt"
  fi
  cp "$here"/guest/*.py "$here/generated/guest_messages.py" "$context/agent/"
  find "$context" -name '__pycache__' -prune -exec rm -rf {} +
  # Test suites are a tenth of the bytes, and scripts and uv's lock are of use to an installer only.
  find "$context/site" -type d -name tests -prune -exec rm -rf {} +
  rm -rf "$context"/site/{bin,.lock,.gitignore}
  # The scripts named this host's interpreter: without them, and their digests, every host builds the same files.
  find "$context" -path '*.dist-info/RECORD' -exec sed -i -e '/^bin\//d' -e '/\/tests\//d' {} +
  chmod -R u=rwX,go=rX "$context"
  find "$context" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
}

tag_all() {
  local tag
  for tag in "${tags[@]}"; do docker tag "$1" "$tag" || return 1; done
}

# build CONTEXT TITLE
build() {
  local context=$1 title=$2
  BUILDX_BUILDER=default docker build --network none --build-arg "BASE=$base" --label "rlm.image.inputs=$inputs" \
    --label "rlm.image.variant=$variant" --label "org.opencontainers.image.title=$title" \
    "${no_cache[@]}" --tag "${tags[0]}" "$context/context" >"$context/log" 2>&1 ||
    { cat "$context/log" >&2; fail "docker build failed; its output is above"; }
  tag_all "${tags[0]}"
  # The image that had the tag before stays: an orchestrator that runs may make its next container from it.
}

# Two builds at once would do the same work twice: the second waits, and then finds the image.
take_turns() {
  if command -v flock >/dev/null; then
    exec 9>"${XDG_RUNTIME_DIR:-/tmp}/rlm-sandbox-build.$(id -u).lock"
    flock 9
  fi
}

main() {
  parse_arguments "$@"
  find_programs
  [[ -f $here/guest/main.py ]] || fail "$here/guest/main.py is missing: this is no complete clone or installation"
  update_protocol_code
  take_turns
  base=$(bash "$here/base.sh")
  base_id=$(docker image inspect --format '{{.Id}}' "$base")
  architecture=$(docker version --format '{{.Server.Arch}}')
  inputs=$(digest_inputs)
  build_unless_there assemble_context rlm-sandbox
}

# build_unless_there ASSEMBLE TITLE: ASSEMBLE is given the context's folder, and a scratch folder.
build_unless_there() {
  local existing
  # The oldest: an image that somebody has made from ours has our labels, too. The engine's own order knows only seconds.
  # What was found may be deleted by now, or soon: then it is built.
  existing=$(docker images --quiet --no-trunc --filter "label=rlm.image.inputs=$inputs" | sort -u |
    { xargs -r docker image inspect --format '{{.Created}} {{.Id}}' 2>/dev/null || true; } | sort | awk 'NR == 1 { print $2 }')
  if [[ $force == no && -n $existing ]] && tag_all "$existing" 2>/dev/null; then
    say "${tags[*]}: up to date"
    return
  fi
  say "building ${tags[*]} on $base"
  SECONDS=0
  scratch=$(mktemp -d)
  trap 'rm -rf "${scratch:-}"' EXIT
  "$1" "$scratch/context" "$scratch"
  build "$scratch" "$2"
  say "${tags[*]}: built in $SECONDS s, $(docker image inspect --format '{{.Size}}' "${tags[0]}" | awk '{printf "%d MB", $1 / 1e6}')"
}

# build_orchestrator.sh takes the functions from here.
if [[ ${BASH_SOURCE[0]} == "$0" ]]; then main "$@"; fi
