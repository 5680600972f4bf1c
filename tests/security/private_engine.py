"""A Docker engine of a test's own, beside the machine's: one that can be killed without harm to anybody else's."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_UP_S = 60.0
_DOWN_S = 30.0


class PrivateEngine:
    """dockerd and containerd, each a child of this process, with roots, sockets and logs below one directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.host = f"unix://{root}/docker.sock"
        self._engine: subprocess.Popen[bytes] | None = None
        self._containerd: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        runsc = shutil.which("runsc")
        arguments = ["--network=none", "--host-uds=open"]
        runtimes = {"runsc": {"path": runsc, "runtimeArgs": arguments}} if runsc else {}
        (root / "daemon.json").write_text(json.dumps({"runtimes": runtimes}))
        (root / "containerd.toml").write_text('version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n')

    @property
    def runtimes(self) -> tuple[str, ...]:
        return ("runc", "runsc") if shutil.which("runsc") else ("runc",)

    def start(self) -> None:
        root = self.root
        if self._containerd is None or self._containerd.poll() is not None:
            command = ["containerd", f"--config={root}/containerd.toml", f"--address={root}/containerd.sock"]
            self._containerd = self._run(
                [*command, f"--root={root}/containerd", f"--state={root}/run"], "containerd.log"
            )
        (root / "docker.pid").unlink(missing_ok=True)
        # In a network of its own: an engine without a bridge removes the one that is there by the usual name, docker0.
        command = [
            "unshare",
            "--net",
            "dockerd",
            f"--config-file={root}/daemon.json",
            f"--host={self.host}",
            "--bridge=none",
        ]
        command += [f"--containerd={root}/containerd.sock", f"--data-root={root}/data", f"--exec-root={root}/exec"]
        command += [f"--pidfile={root}/docker.pid", "--iptables=false", "--ip6tables=false"]
        self._engine = self._run(command, "log")
        until = time.monotonic() + _UP_S
        while self.docker("version", "--format", "{{.Server.Version}}").returncode != 0:
            if time.monotonic() > until or self._engine.poll() is not None:
                raise RuntimeError(f"the private engine did not come up: {root}/log")
            time.sleep(0.1)

    def kill(self, *, with_containerd: bool, down_s: float = 0.0) -> None:
        """Kills it, and starts it again after a time; one at a time. Its containers have nobody meanwhile."""
        with self._lock:
            for process in (self._engine, self._containerd if with_containerd else None):
                if process is not None:
                    process.kill()
                    process.wait()
            time.sleep(down_s)
            self.start()

    def _run(self, command: list[str], log: str) -> subprocess.Popen[bytes]:
        with (self.root / log).open("ab") as file:
            return subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)

    def docker(self, *arguments: str, stdin: int | None = None) -> subprocess.CompletedProcess[str]:
        command = ["docker", f"--host={self.host}", *arguments]
        return subprocess.run(command, stdin=stdin, capture_output=True, text=True, check=False)

    def bring(self, image: str) -> None:
        """An image of the machine's own engine."""
        with subprocess.Popen(["docker", "save", image], stdout=subprocess.PIPE) as saving:
            assert saving.stdout is not None
            self.docker("load", stdin=saving.stdout.fileno())
        if self.docker("image", "inspect", image).returncode != 0:
            raise RuntimeError(f"the image {image} could not be brought to the private engine")

    def stop(self) -> None:
        for process in (self._engine, self._containerd):
            if process is not None and process.poll() is None:
                process.terminate()
                try:
                    process.wait(_DOWN_S)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


@contextmanager
def private_engine(image: str) -> Iterator[PrivateEngine]:
    """Needs root and dockerd. Nothing of it is left after the block."""
    root = Path(f"/var/tmp/rlm-engine-{secrets.token_hex(3)}")
    root.mkdir(mode=0o700)
    engine = PrivateEngine(root)
    try:
        engine.start()
        engine.bring(image)
        yield engine
    finally:
        engine.stop()
        # Shims outlive their containerd. The folder's name is drawn anew each time: nobody else's process names it.
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal() and _names(entry, root):
                with suppress(ProcessLookupError):
                    os.kill(int(entry.name), signal.SIGKILL)
        for mount in reversed(_mounts_below(root)):
            subprocess.run(["umount", "--lazy", mount], check=False)
        shutil.rmtree(root, ignore_errors=True)


def can_be_had() -> bool:
    return (
        os.geteuid() == 0
        and shutil.which("unshare") is not None
        and shutil.which("dockerd") is not None
        and shutil.which("containerd") is not None
    )


def _names(entry: Path, root: Path) -> bool:
    try:
        return f"{root}/" in (entry / "cmdline").read_text("utf-8", "replace")
    except OSError:
        return False  # it has ended


def _mounts_below(root: Path) -> list[str]:
    mounted = (line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines())
    return [path for path in mounted if path.startswith(f"{root}/")]
