# shellcheck shell=bash
# Sourced. Defines adopt_pip_settings PYTHON: uv reads its own names only, while a machine's owner configures pip.

adopt_pip_settings() {
  local python=$1 certificates index extra links
  pip_setting() { "$python" -m pip config get "global.$1" 2>/dev/null || true; }
  certificates=${PIP_CERT:-$(pip_setting cert)}
  index=${PIP_INDEX_URL:-$(pip_setting index-url)}
  extra=${PIP_EXTRA_INDEX_URL:-$(pip_setting extra-index-url)}
  links=${PIP_FIND_LINKS:-$(pip_setting find-links)}
  if [[ -n $certificates && -z ${SSL_CERT_FILE:-} ]]; then export SSL_CERT_FILE=$certificates; fi
  if [[ -n $index && -z ${UV_DEFAULT_INDEX:-} ]]; then export UV_DEFAULT_INDEX=$index; fi
  if [[ -n $links && -z ${UV_FIND_LINKS:-} ]]; then export UV_FIND_LINKS=$links; fi
  if [[ -n $extra && -z ${UV_INDEX:-} ]]; then
    # pip takes the best version of all its indexes; uv does so only when told.
    export UV_INDEX=$extra UV_INDEX_STRATEGY=${UV_INDEX_STRATEGY:-unsafe-best-match}
  fi
  export UV_HTTP_TIMEOUT=${UV_HTTP_TIMEOUT:-180}
}
