# The image of the service (rlm serve) and of the scripted models, made by build_orchestrator.sh from:
#   site/   the requirements     app/   this package
# Like the sandbox image, everything comes in the context: nothing here reaches a network.
ARG BASE=python:3.11-slim-bookworm
# hadolint ignore=DL3006
FROM ${BASE}

# The user is none of a sandbox's (policy.toml has their range): code that escapes from one has no claim on the state directory.
# A volume that is first mounted at one of these takes on its owner and mode, which the service insists on.
RUN set -eu; \
    python=$(command -v python3); \
    "$python" -c 'import sys; assert sys.version_info[:2] == (3, 11), f"BASE has Python {sys.version}, not 3.11"'; \
    mkdir -p /opt/rlm; \
    ln -s "$python" /opt/rlm/python; \
    echo 'rlm:x:10001:' >>/etc/group; \
    echo 'rlm:x:10001:10001::/var/lib/rlm:/bin/sh' >>/etc/passwd; \
    install -d -o 10001 -g 10001 -m 0700 /var/lib/rlm /etc/rlm; \
    rm -rf /usr/local/bin/pip* /usr/local/lib/python3.11/site-packages/* /usr/local/lib/python3.11/ensurepip \
      /usr/local/bin/idle* /usr/local/lib/python3.11/idlelib \
      /usr/bin/perl* /usr/lib/*/perl* /usr/share/perl* /usr/bin/apt* /usr/bin/dpkg* /usr/sbin/dpkg* \
      /usr/lib/apt /usr/lib/dpkg /usr/share/dpkg /etc/apt /etc/dpkg /var/lib/apt /var/lib/dpkg \
      /var/cache/* /var/log/* /root/.cache /root/.*_history; \
    find / -xdev -type f -perm /6000 -exec chmod a-s {} +; \
    packages=$("$python" -c 'import site; print(site.getsitepackages()[0])'); \
    mkdir -p "$packages" /usr/local/bin; \
    printf '/opt/rlm/app\n/opt/rlm/site\n' >"$packages/rlm.pth"; \
    printf '#!/bin/sh\nexec /opt/rlm/python -m orchestrator.cli "$@"\n' >/usr/local/bin/rlm; \
    chmod 755 /usr/local/bin/rlm

# What changes least comes first. Bytecode is compiled here, since the root may be read-only.
COPY compile.sh /opt/rlm/
RUN sh /opt/rlm/compile.sh
COPY site /opt/rlm/site
RUN sh /opt/rlm/compile.sh /opt/rlm/site
COPY app /opt/rlm/app
RUN sh /opt/rlm/compile.sh /opt/rlm/app && rm /opt/rlm/compile.sh

USER 10001:10001
WORKDIR /
ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    LANG=C.UTF-8 \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    RLM_STATE_DIR=/var/lib/rlm
STOPSIGNAL SIGTERM
# Before it serves, it attacks a sandbox of its own, which takes some seconds.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["/opt/rlm/python", "-m", "orchestrator.server.health"]
ENTRYPOINT ["/usr/local/bin/rlm"]
CMD ["serve"]
