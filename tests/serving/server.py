"""NVIDIA's tritonserver from the package nvidia-pytriton, in the venv that DYNDEPLOY_TRITON names (.ci/triton)."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType

import psutil
import pytest

VARIABLE = "DYNDEPLOY_TRITON"
REQUIRE = "DYNDEPLOY_REQUIRE_TRITON"
START_SECONDS = 300.0


def triton_venv() -> Path:
    """The venv; skips the test where there is none, fails it where DYNDEPLOY_REQUIRE_TRITON forbids that."""
    named = os.environ.get(VARIABLE)
    if named and (Path(named) / "bin" / "python").exists():
        return Path(named)
    if os.environ.get(REQUIRE):
        pytest.fail(f"{VARIABLE} names no venv with nvidia-pytriton, and {REQUIRE} forbids to skip")
    pytest.skip(f"no Triton: {VARIABLE} names no venv with nvidia-pytriton (.ci/triton makes it)")


def site_packages(venv: Path) -> Path:
    """Where the venv's packages are."""
    return next((venv / "lib").glob("python3*")) / "site-packages"


def free_ports(count: int) -> list[int]:
    """Ports of the loopback that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


class TritonServer:
    """A server on free ports of the loopback; a context manager.

    Args:
        venv: Of :func:`triton_venv`.
        repository: What it serves.
        scratch: Folder for its backends and log.
        *options: Further options of tritonserver.
        control: ``explicit``, ``poll`` or ``none``.
    """

    def __init__(self, venv: Path, repository: Path, scratch: Path, *options: str, control: str = "explicit") -> None:
        package = site_packages(venv) / "pytriton" / "tritonserver"
        stub = package / "python_backend_stubs" / f"{sys.version_info.major}.{sys.version_info.minor}"
        backends = scratch / "backends"
        if not backends.exists():
            shutil.copytree(package / "backends", backends)
            shutil.copy(stub / "triton_python_backend_stub", backends / "python")
        self.log = scratch / "server.log"
        self.ports = free_ports(3)
        http, grpc, metrics = self.ports
        self.http, self.grpc, self.metrics_url = (
            f"127.0.0.1:{http}",
            f"127.0.0.1:{grpc}",
            f"127.0.0.1:{metrics}/metrics",
        )
        self._command = [
            str(package / "bin" / "tritonserver"),
            f"--model-repository={repository}", f"--backend-directory={backends}",
            f"--http-port={http}", f"--grpc-port={grpc}", f"--metrics-port={metrics}",
            "--http-address=127.0.0.1", "--grpc-address=127.0.0.1", "--metrics-address=127.0.0.1",
            "--exit-on-error=false", "--exit-timeout-secs=10", f"--model-control-mode={control}", *options,
        ]  # fmt: skip
        # The stub takes its packages from the Python that it finds first.
        self._environment = {
            **{name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")},
            "PATH": f"{venv / 'bin'}:{os.environ['PATH']}",
            "LD_LIBRARY_PATH": str(site_packages(venv) / "nvidia_pytriton.libs"),
        }
        self.process: subprocess.Popen[bytes] | None = None
        self.start_seconds = 0.0

    def __enter__(self) -> TritonServer:
        self.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.stop()

    def start(self) -> float:
        """Start and wait until it answers; returns the seconds that took."""
        since = time.monotonic()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command, env=self._environment, stdout=log, stderr=log, start_new_session=True
            )
        while not self.ready():
            assert self.process.poll() is None, self.log.read_text(errors="replace")[-4000:]
            assert time.monotonic() - since < START_SECONDS, self.log.read_text(errors="replace")[-4000:]
            time.sleep(0.05)
        self.start_seconds = time.monotonic() - since
        return self.start_seconds

    def ready(self) -> bool:
        """Whether the server and all its models are ready."""
        try:
            with urllib.request.urlopen(f"http://{self.http}/v2/health/ready", timeout=60) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            return False

    def metrics(self) -> dict[str, float]:
        """Every counter by name and labels."""
        with urllib.request.urlopen(f"http://{self.metrics_url}", timeout=60) as answer:
            lines = answer.read().decode().splitlines()
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}

    def kill(self) -> list[psutil.Process]:
        """End the server alone, as the system does where memory is short; returns the processes of its models."""
        assert self.process is not None
        models = psutil.Process(self.process.pid).children(recursive=True)
        self.process.kill()
        self.process.wait()
        return models

    def stop(self) -> None:
        """End it, and the processes of its models."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(30)
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        if self.process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)
        self.process.wait()
