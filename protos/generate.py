"""Generates Python code and type stubs from the protos beside this file, into the tree that holds it.

Two folders come out of it, both ignored by git:

* ``orchestrator/protocol/``: every proto, importable as ``orchestrator.protocol.rlm.v1.run_pb2`` and so on;
* ``sandbox_image/generated/``: the guest's messages only, without protobuf, importable as ``guest_messages`` by a
  program that has that folder on its path, as the guest has.

Needs ``grpcio-tools``, ``mypy-protobuf`` and ``googleapis-common-protos``. Nothing is written when nothing
would change, so that file times, and everything that is cached by them, stay as they are.
"""

from __future__ import annotations

import filecmp
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PROTOS = Path(__file__).resolve().parent
ROOT = PROTOS.parent
HOST_PACKAGE = "orchestrator.protocol"
HEADER = '"""Generated from protos/ by protos/generate.py: do not edit."""\n'


class GenerationFailed(Exception):
    """The generators are missing, or rejected a proto."""


def main() -> int:
    """Generates both folders below the root of the tree; returns the exit status."""
    try:
        generate(ROOT)
    except GenerationFailed as error:
        print(f"protos/generate.py: {error}", file=sys.stderr)
        return 1
    return 0


def generate(root: Path) -> None:
    """Brings both folders below ``root`` up to date with the protos.

    Raises:
        GenerationFailed: a generator is not installed, protoc rejected a proto (its words are on stderr), or the
            guest's proto uses what its messages do not have.
    """
    protos = sorted(path.relative_to(PROTOS).as_posix() for path in PROTOS.glob("rlm/**/*.proto"))
    guest_protos = [proto for proto in protos if proto.startswith("rlm/guest/")]
    with tempfile.TemporaryDirectory(prefix="rlm-protos-") as scratch:
        host, guest = Path(scratch, "host"), Path(scratch, "guest")
        _write_python(protos, host)
        _move_imports(host, HOST_PACKAGE)
        _add_package_markers(host)
        _write_guest_messages(guest_protos, guest)
        _mirror(host, root / Path(*HOST_PACKAGE.split(".")))
        _mirror(guest, root / "sandbox_image" / "generated")


def _write_python(protos: list[str], out: Path) -> None:
    out.mkdir(parents=True)
    # The plugins live beside the interpreter, which need not be on PATH (isolated build, inactive venv).
    search_path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    options = []
    for plugin in ("protoc-gen-mypy", "protoc-gen-mypy_grpc"):
        found = shutil.which(plugin, path=search_path)
        if found is None:
            raise GenerationFailed(f"{plugin} is not installed. Install mypy-protobuf, or run: make setup")
        options.append(f"--plugin={plugin}={found}")
    options += [f"--python_out={out}", f"--mypy_out=quiet:{out}"]
    options += [f"--grpc_python_out={out}", f"--mypy_grpc_out=quiet:{out}"]
    _protoc(protos, options)


def _write_guest_messages(protos: list[str], out: Path) -> None:
    out.mkdir(parents=True)
    try:
        from google.protobuf.descriptor_pb2 import FileDescriptorSet
        from guest_codec import UnsupportedProto, module_of
    except ModuleNotFoundError as error:
        raise GenerationFailed(f"{error.name} is not installed. Install protobuf, or run: make setup") from None
    with tempfile.NamedTemporaryFile() as descriptors:
        _protoc(protos, [f"--descriptor_set_out={descriptors.name}"])
        files = FileDescriptorSet.FromString(Path(descriptors.name).read_bytes())
    try:
        source = module_of(files)
    except UnsupportedProto as error:
        raise GenerationFailed(str(error)) from None
    (out / "guest_messages.py").write_text(source, encoding="utf-8")


def _protoc(protos: list[str], options: list[str]) -> None:
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTOS}", f"-I{_googleapis()}", *options, *protos]
    finished = subprocess.run(command, check=False)
    if finished.returncode != 0:
        raise GenerationFailed(f"protoc ended with status {finished.returncode}; its reasons are above")


def _googleapis() -> Path:
    """The folder below which ``google/rpc/*.proto`` are: those do not come with grpcio-tools."""
    try:
        spec = importlib.util.find_spec("google.rpc")
    except ModuleNotFoundError:
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise GenerationFailed("google.rpc is not installed. Install googleapis-common-protos, or run: make setup")
    return Path(next(iter(spec.submodule_search_locations))).parents[1]


def _move_imports(package_dir: Path, package: str) -> None:
    """protoc knows no Python package prefix: its absolute ``rlm`` imports are moved below ``package``."""
    for path in [*package_dir.rglob("*.py"), *package_dir.rglob("*.pyi")]:
        text = path.read_text(encoding="utf-8")
        path.write_text(re.sub(r"^from rlm\b", f"from {package}.rlm", text, flags=re.MULTILINE), encoding="utf-8")


def _add_package_markers(package_dir: Path) -> None:
    for folder in [package_dir, *(path for path in package_dir.rglob("*") if path.is_dir())]:
        (folder / "__init__.py").write_text(HEADER, encoding="utf-8")


def _mirror(source: Path, target: Path) -> None:
    """Makes ``target`` hold the files of ``source``, each replaced in one step: they may be in use."""
    target.mkdir(parents=True, exist_ok=True)
    wanted = {path.relative_to(source) for path in source.rglob("*") if path.is_file()}
    for path in [path for path in target.rglob("*") if path.is_file()]:
        if "__pycache__" not in path.parts and path.relative_to(target) not in wanted:
            path.unlink()
    for name in sorted(wanted):
        destination = target / name
        if destination.is_file() and filecmp.cmp(source / name, destination, shallow=False):
            continue
        destination.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=destination.parent, delete=False) as partial:
            partial.write((source / name).read_bytes())
        os.chmod(partial.name, 0o644)
        os.replace(partial.name, destination)


if __name__ == "__main__":
    sys.exit(main())
