#!/usr/bin/env bash
# Prints the base image to build the sandbox image on, after making sure that the engine has it. In this order:
#   1. $BASE, if set;  2. the official Python image, if the engine has it;  3. a base built here before;
#   4. the official Python image, pulled;  5. a base built here from Debian's packages, when no registry can be reached.
# Both have CPython 3.11, so that one lock of requirements serves both. All messages go to standard error.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
readonly OFFICIAL=python:3.11-slim-bookworm
readonly SUITE=bookworm
# Raise the number whenever the recipe below changes: bases built by older recipes are then no longer used.
readonly BUILT=rlm-sandbox-base:$SUITE-2
readonly PULL_TIMEOUT_S=${RLM_PULL_TIMEOUT_S:-90}
readonly SHELL_PACKAGES=dash,bash,coreutils,findutils,grep,sed,mawk,tar,gzip
# libstdc++6 and zlib1g: every manylinux wheel may count on them. dash is /bin/sh; the rest is what code expects of a shell.
readonly PACKAGES=python3,tzdata,base-files,base-passwd,libc-bin,libstdc++6,zlib1g,$SHELL_PACKAGES

say() { printf 'base: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }
engine_has() { docker image inspect "$1" >/dev/null 2>&1; }

ensure_mmdebstrap() {
  command -v mmdebstrap >/dev/null && return
  if [[ $(id -u) != 0 ]]; then
    fail "no registry can be reached and mmdebstrap is not installed. Do one of these, then try again:" \
      "(a) docker pull $OFFICIAL, or load it from a file: docker load -i FILE;" \
      "(b) name an image with CPython 3.11 that the engine has: BASE=image make image;" \
      "(c) sudo apt-get install mmdebstrap debian-archive-keyring"
  fi
  command -v apt-get >/dev/null ||
    fail "no registry can be reached, and this is no Debian or Ubuntu. Load $OFFICIAL from a file: docker load -i FILE"
  say "installing mmdebstrap"
  { apt-get update -qq &&
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends mmdebstrap debian-archive-keyring; } >"$scratch/apt.log" 2>&1 ||
    { cat "$scratch/apt.log" >&2; fail "mmdebstrap could not be installed; apt's reasons are above"; }
}

# The packages are only extracted: their maintainer scripts would need perl, dpkg and apt inside, and nothing here needs them.
build_from_packages() {
  local scratch=$1 architecture hooks=/usr/share/mmdebstrap/hooks/merged-usr
  architecture=$(docker version --format '{{.Server.Arch}}')
  SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-1700000000} mmdebstrap --quiet --variant=extract --include="$PACKAGES" \
    --architectures="$architecture" --hook-dir="$hooks" --extract-hook="sh '$here/base_trim.sh' \"\$1\"" \
    "$SUITE" "$scratch/base.tar" ${RLM_DEBIAN_MIRROR:+"$RLM_DEBIAN_MIRROR"} >"$scratch/log" 2>&1 ||
    { cat "$scratch/log" >&2; fail "mmdebstrap could not build a base from Debian $SUITE; its reasons are above"; }
  docker import --message "Debian $SUITE packages, extracted" "$scratch/base.tar" "$BUILT" >/dev/null
}

main() {
  if [[ -n ${BASE:-} ]]; then
    engine_has "$BASE" || docker pull "$BASE" >&2 || fail "BASE=$BASE is neither here nor can it be pulled"
    echo "$BASE"
    return
  fi
  local known
  for known in "$OFFICIAL" "$BUILT"; do
    if engine_has "$known"; then echo "$known"; return; fi
  done
  scratch=$(mktemp -d)
  trap 'rm -rf "$scratch"' EXIT
  chmod 755 "$scratch"
  local status=0
  say "pulling $OFFICIAL (tries for at most $PULL_TIMEOUT_S s)"
  SECONDS=0
  timeout "$PULL_TIMEOUT_S" docker pull --quiet "$OFFICIAL" >/dev/null 2>"$scratch/pull.log" || status=$?
  if ((status == 0)); then echo "$OFFICIAL"; return; fi
  if ((status == 124)); then
    say "given up after $PULL_TIMEOUT_S s"
  else
    say "the pull failed after $SECONDS s: $(tail -n 1 "$scratch/pull.log" | cut -c 1-200)"
  fi
  ensure_mmdebstrap
  say "building a base from Debian $SUITE packages instead (about 20 s)"
  SECONDS=0
  build_from_packages "$scratch"
  say "$BUILT built in $SECONDS s"
  echo "$BUILT"
}

main
