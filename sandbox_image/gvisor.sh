#!/usr/bin/env bash
# Installs gVisor's runsc and registers it with the Docker engine of this machine, as root on Debian or Ubuntu.
# Usage: sandbox_image/gvisor.sh        (normally through: make gvisor)
set -euo pipefail

readonly CONFIG=${DOCKER_DAEMON_JSON:-/etc/docker/daemon.json}

say() { printf 'gvisor: %s\n' "$*"; }
fail() { printf 'gvisor: %s\n' "$*" >&2; exit 1; }
known() { docker info --format '{{range $name, $_ := .Runtimes}}{{$name}} {{end}}' | grep -qw runsc; }

install_runsc() {
  command -v runsc >/dev/null && return
  if [[ $(id -u) != 0 ]] || ! command -v apt-get >/dev/null; then
    fail "runsc is not installed, and only root on Debian or Ubuntu can do that here: sudo apt-get install runsc, or see gvisor.dev/docs/user_guide/install"
  fi
  say 'installing runsc'
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends runsc </dev/null >/dev/null ||
    fail 'runsc could not be installed from this system'"'"'s packages: see gvisor.dev/docs/user_guide/install'
}

# Releases before 2022-12 have another name for the right to dial a socket of the host. A platform that is not asked for
# is the release's own choice; KVM inside of a virtual machine hangs on some hosts.
arguments() {
  local flags
  flags=$(runsc help flags 2>&1 || true; runsc flags 2>&1 || true)
  if [[ $flags == *-host-uds* && $flags != *-fsgofer-host-uds* || $flags == *'DEPRECATED: use host-uds'* ]]; then
    echo '["--network=none", "--host-uds=open"]'
  else
    echo '["--network=none", "--fsgofer-host-uds"]'
  fi
}

register() {
  known && return
  [[ $(id -u) == 0 ]] || fail "the engine does not know runsc: add it to the runtimes in $CONFIG with the arguments $(arguments), then reload the engine"
  say "registering runsc in $CONFIG"
  mkdir -p "$(dirname "$CONFIG")"
  "${PYTHON:-python3}" - "$CONFIG" "$(command -v runsc)" "$(arguments)" <<'PYTHON'
import json, os, sys
path, program, arguments = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
try:
    with open(path, encoding="utf-8") as file:
        config = json.load(file)
except FileNotFoundError:
    config = {}
config.setdefault("runtimes", {})["runsc"] = {"path": program, "runtimeArgs": arguments}
with open(path + ".new", "w", encoding="utf-8") as file:
    json.dump(config, file, indent=2)
    file.write("\n")
os.replace(path + ".new", path)
PYTHON
  # The engine reads its runtimes anew at this signal: running containers are left alone.
  local engine='' file
  for file in /run/docker.pid /var/run/docker.pid; do
    [[ -z $engine && -r $file ]] && engine=$(<"$file")
  done
  [[ -n $engine ]] || engine=$(pgrep -xo dockerd || true)
  [[ -n $engine ]] || fail "no engine runs on this machine; it will know runsc when it starts"
  kill -HUP "$engine"
  local deadline=$((SECONDS + 10))
  until known; do
    ((SECONDS < deadline)) || fail "the engine did not take runsc from $CONFIG: see its log"
    sleep 0.2
  done
}

install_runsc
register
say "the engine knows runsc ($(runsc --version | head -n 1)); use it with RLM_RUNTIME=runsc, and see: RLM_RUNTIME=runsc rlm doctor --probe"
