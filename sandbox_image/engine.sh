#!/usr/bin/env bash
# Makes sure that a Docker engine answers: installs and starts one as root on Debian or Ubuntu, else says what to do.
# Usage: sandbox_image/engine.sh        (normally through: make engine)
# Environment: DOCKER_HOST as for docker; DOCKERD_ARGS: more arguments for an engine started here; STATE_DIR: for its log.
set -euo pipefail

state_dir=${STATE_DIR:-.build}
readonly WAIT_S=60

say() { printf 'engine: %s\n' "$*"; }
fail() { printf 'engine: %s\n' "$*" >&2; exit 1; }
answers() { command -v docker >/dev/null && docker version --format '{{.Server.Version}}' >/dev/null 2>&1; }
on_debian() { command -v apt-get >/dev/null; }

report() {
  say "Docker $(docker version --format '{{.Server.Version}}') answers"
}

explain_to_user() {
  if ! command -v docker >/dev/null; then
    fail "Docker is not installed. Debian, Ubuntu: sudo apt-get install docker.io && sudo usermod -aG docker $(id -un)," \
      "then log in again; other systems: see docs.docker.com/engine/install"
  fi
  case $(docker version 2>&1 || true) in
    *'permission denied'*)
      fail "$(id -un) may not talk to the Docker engine: sudo usermod -aG docker $(id -un), then log in again." \
        "(Members of that group are as good as root on this machine; rootless Docker works too.)" ;;
    *)
      fail "the Docker engine does not answer. Start it: sudo systemctl start docker (or Docker Desktop)." \
        "If it listens elsewhere, say where: export DOCKER_HOST=unix:///path/to/docker.sock" ;;
  esac
}

install() {
  on_debian || fail "Docker is not installed, and this is no Debian or Ubuntu: see docs.docker.com/engine/install"
  say "installing docker.io"
  apt-get update -qq
  # The package starts the engine where it can; where it cannot, that is no failure of the installation.
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends docker.io </dev/null >"$state_dir/docker-install.log" 2>&1 9>&- ||
    { cat "$state_dir/docker-install.log" >&2; fail "docker.io could not be installed; apt's reasons are above"; }
  # The command is a package of its own in newer releases.
  command -v docker >/dev/null ||
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends docker-cli </dev/null >>"$state_dir/docker-install.log" 2>&1 9>&- ||
    { cat "$state_dir/docker-install.log" >&2; fail "docker-cli could not be installed; apt's reasons are above"; }
}

# wait_for_engine [PID]: until it answers; gives up when the process PID ends, or after WAIT_S.
wait_for_engine() {
  local pid=${1:-} deadline=$((SECONDS + WAIT_S))
  until answers; do
    if [[ -n $pid ]] && ! kill -0 "$pid" 2>/dev/null; then return 1; fi
    ((SECONDS < deadline)) || return 1
    sleep 0.2
  done
}

start_by_service_manager() {
  if [[ -d /run/systemd/system ]]; then
    systemctl start docker && wait_for_engine
  elif [[ -x /etc/init.d/docker ]] && command -v service >/dev/null; then
    service docker start </dev/null >"$state_dir/service.log" 2>&1 9>&- || return 1
    # The script reports success before the engine has come up, or failed to.
    local pid
    pid=$(cat /run/docker-ssd.pid /var/run/docker.pid 2>/dev/null | head -n 1 || true)
    wait_for_engine "$pid"
  else
    return 1
  fi
}

start_dockerd() {
  local log=$state_dir/dockerd.log listen=()
  if [[ -n ${DOCKER_HOST:-} ]]; then listen=(--host "$DOCKER_HOST"); fi
  say "starting dockerd (log: $log)"
  # A process group of its own: the engine outlives this script, and a Ctrl-C meant for make.
  # shellcheck disable=SC2086 # DOCKERD_ARGS is a list of words
  setsid dockerd "${listen[@]}" ${DOCKERD_ARGS:-} "$@" </dev/null >>"$log" 2>&1 9>&- &
  wait_for_engine $!
}

start() {
  # A DOCKER_HOST names an engine that the machine's service manager does not manage.
  if [[ -z ${DOCKER_HOST:-} && -z ${DOCKERD_ARGS:-} ]] && start_by_service_manager; then return; fi
  if start_dockerd; then return; fi
  # Where the kernel forbids packet filtering, as in many containers, a bridge is impossible. Sandboxes have no network.
  say "dockerd ended; trying without a network bridge"
  start_dockerd --iptables=false --ip6tables=false --bridge=none && return
  tail -n 15 "$state_dir/dockerd.log" >&2
  fail "the engine did not come up; the end of its log is above"
}

main() {
  if answers; then report; return; fi
  if [[ -n ${DOCKER_HOST:-} && $DOCKER_HOST != unix://* ]]; then
    fail "the engine at DOCKER_HOST=$DOCKER_HOST does not answer: $(docker version --format x 2>&1 | tail -n 1)"
  fi
  if [[ $(id -u) != 0 ]]; then explain_to_user; fi
  mkdir -p "$state_dir"
  exec 9>"$state_dir/engine.lock"
  flock 9
  if answers; then report; return; fi
  if ! command -v docker >/dev/null || ! command -v dockerd >/dev/null; then install; fi
  answers || start
  report
}

main
