#!/usr/bin/env bash
# Starts the service with compose, and waits until it serves. Makes what is not there yet: .env, a self-signed
# certificate, a first token; as root on Debian or Ubuntu, compose itself (--install: only that).
# Usage: up.sh [--install | --down [--volumes]]        (normally through: make compose-up, compose-down)
set -euo pipefail
umask 077

cd "$(dirname "${BASH_SOURCE[0]}")"
readonly WAIT_S=120

say() { printf 'compose: %s\n' "$*"; }
fail() { printf 'compose: %s\n' "$*" >&2; exit 1; }

find_compose() {
  if docker compose version >/dev/null 2>&1; then
    compose=(docker compose)
  elif command -v docker-compose >/dev/null; then
    compose=(docker-compose)
  elif [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null; then
    say 'installing docker-compose'
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends docker-compose </dev/null >/dev/null ||
      fail "docker-compose could not be installed from this system's packages: see docs.docker.com/compose/install"
    compose=(docker-compose)
  else
    fail "compose is not installed. Debian, Ubuntu: sudo apt-get install docker-compose; others: docs.docker.com/compose/install"
  fi
}

ensure_settings() {
  [[ -f .env ]] && return
  local socket=/var/run/docker.sock
  sed "s/^ENGINE_GID=.*/ENGINE_GID=$(stat -Lc %g "$socket")/" .env.example >.env
  say ".env is made from .env.example: put your API key in, or choose the scripted models"
}

ensure_credentials() {
  mkdir -p credentials
  if [[ ! -f credentials/cert.pem ]]; then
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 365 -subj /CN=localhost \
      -addext 'subjectAltName=DNS:localhost,DNS:orchestrator,IP:127.0.0.1' \
      -keyout credentials/key.pem -out credentials/cert.pem 2>credentials/openssl.log ||
      { cat credentials/openssl.log >&2; fail "no certificate could be made; openssl's reasons are above"; }
    rm credentials/openssl.log
    say "credentials/cert.pem is a certificate for localhost, signed by itself"
  fi
  if [[ ! -f credentials/tokens.toml ]]; then
    local made
    made=$("${compose[@]}" run --rm --no-deps -T orchestrator token new operator --admin 2>/dev/null) || fail "no token could be made"
    head -n 1 <<<"$made" >credentials/token
    tail -n +3 <<<"$made" >credentials/tokens.toml
    say "credentials/token is the token of the principal operator, an admin"
  fi
  # Each time, so that a new certificate or token gets there: the service's user can read no file of ours.
  tar --create --file=- --directory=credentials cert.pem key.pem tokens.toml |
    "${compose[@]}" run --rm --no-deps -T credentials
}

wait_until_healthy() {
  local container state=starting
  container=$("${compose[@]}" ps -q orchestrator)
  while ((SECONDS < WAIT_S)); do
    state=$(docker inspect --format '{{.State.Status}} {{.State.Health.Status}}' "$container")
    case $state in
      'running healthy') return ;;
      exited* | restarting*) break ;;
    esac
    sleep 0.5
  done
  "${compose[@]}" logs --tail=30 orchestrator >&2
  fail "the service does not serve ($state); the end of its log is above"
}

main() {
  find_compose
  case ${1:-} in
    --install) return ;;
    --down)
      # Not the profile's services alone: whatever was started.
      COMPOSE_PROFILES=scripted,setup "${compose[@]}" down --remove-orphans "${@:2}"
      return
      ;;
    '') ;;
    *) fail "unknown argument: $1" ;;
  esac
  docker image inspect "${RLM_ORCHESTRATOR_IMAGE:-rlm-orchestrator:latest}" >/dev/null 2>&1 ||
    fail "the image is not on this engine: make image-orchestrator image"
  ensure_settings
  ensure_credentials
  SECONDS=0
  "${compose[@]}" up --detach --remove-orphans
  wait_until_healthy
  say "serving on $("${compose[@]}" port orchestrator 7443): RLM(server=\"localhost:PORT\", ca=\"credentials/cert.pem\", token=...)"
}

main "$@"
