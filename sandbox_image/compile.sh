#!/bin/sh
# Runs during the image's build: compile.sh [FOLDER]
# Bytecode for everything below FOLDER, or for the standard library; then file times that are the same in every build.
# Sandboxes cannot write bytecode themselves, and importing from source makes every start slower.
set -eu

python=/opt/rlm/python
folder=${1:-$("$python" -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')}

# The bytes must not depend on file times, hash seeds or on what else a process has compiled: each package in its own
# process. A few files are templates or for other versions of Python and do not compile: that is no failure.
find "$folder" -mindepth 1 -maxdepth 1 \( -name '*.py' -o -type d ! -name '*.dist-info' ! -name __pycache__ \) -print0 |
  PYTHONHASHSEED=0 xargs -0 -r -n 1 -P "$(nproc)" "$python" -I -S -c '
import compileall, py_compile, sys
mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
path = sys.argv[1]
if path.endswith(".py"):
    compileall.compile_file(path, quiet=2, invalidation_mode=mode)
else:
    compileall.compile_dir(path, quiet=2, maxlevels=50, invalidation_mode=mode)
'

# The engine lays its own files over these three for the time of the build.
find /etc /opt /usr /var -xdev -newermt @1700000000 ! -name hosts ! -name hostname ! -name resolv.conf \
  -exec touch -h -d @1700000000 {} +
