"""A board of the arm64 architecture without a board: Debian bullseye under qemu's user emulation.

As root, from the repository, with debootstrap, qemu-user-static, binfmt-support and openssh-client installed::

    python benchmarks/arm64/userland.py --root /var/tmp/arm64

Makes the userland (GCC 10, CMake 3.18, glibc 2.31, Python 3.9: the oldest that Debian still serves), builds the
runtime and the CPU operators there with its own compiler, runs a bundle there, the bundle's README line by line, and
the agent over SSH. Prints a row for each step: ok, skipped with the reason, or failed with it. README.md beside this
file says what came of it. A second run with the same folder goes on with what is there; ``--again STEP`` does one step
anew.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from dyndeploy import ExportSettings, export_model  # noqa: E402
from dyndeploy.bundle.device_readme import BUILD_PACKAGES, CAMERA_PACKAGES  # noqa: E402
from dyndeploy.data import sample_photographs  # noqa: E402
from tests.export.conftest import lively_network  # noqa: E402
from tests.plugins.test_device_readme import ELSEWHERE, blocks  # noqa: E402

RELEASE = "bullseye"
MIRROR = "http://deb.debian.org/debian"
ONNXRUNTIME = "1.19.2"
"""The newest for Python 3.9."""
BINFMT = Path("/proc/sys/fs/binfmt_misc")
PYTHON_PACKAGES = "root/.local/lib/python3.9/site-packages"
STRICT = ("-DDYNDEPLOY_WERROR=ON", "-DDYNDEPLOY_TENSORRT_INCLUDE=OFF")
SSHD = """Port {port}
ListenAddress 127.0.0.1
HostKey /root/host
PidFile none
AuthorizedKeysFile /root/authorized
UsePAM no
StrictModes no
PasswordAuthentication no
PermitRootLogin prohibit-password
"""


class StepError(Exception):
    """A step failed; the reason is the text."""


class SkippedError(Exception):
    """A step cannot be done here; the reason is the text."""


def call(*command: str | Path, timeout: float = 7200, **environment: str) -> str:
    """Run a command; its standard output."""
    done = subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
        env={**os.environ, **environment},
    )
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-4:]
        raise StepError(f"{' '.join(map(str, command))[:100]}: code {done.returncode}: {' / '.join(last)}")
    return done.stdout


@dataclass
class Userland:
    """The folder that holds it."""

    root: Path

    def run(self, text: str, folder: str = "/root", timeout: float = 7200) -> str:
        """Run lines of a shell inside; standard output."""
        words = f"cd {folder}\n{text}"
        environment = [
            "HOME=/root",
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "LANG=C.UTF-8",
        ]
        return call(
            "chroot", self.root, "/usr/bin/env", "-i", *environment, "/bin/sh", "-e", "-c", words, timeout=timeout
        )

    def made(self, name: str) -> Path:
        """The mark that a step was done."""
        return self.root.parent / f"{self.root.name}.{name}"


def foreign(land: Userland) -> str:
    """First stage: packages are unpacked."""
    if os.geteuid() != 0:
        raise SkippedError("needs root")
    for tool in ("debootstrap", "qemu-aarch64-static", "update-binfmts"):
        if shutil.which(tool) is None:
            raise SkippedError(f"{tool} is missing: apt-get install debootstrap qemu-user-static binfmt-support")
    if not (BINFMT / "status").exists():
        call("mount", "-t", "binfmt_misc", "binfmt_misc", BINFMT)
    call("update-binfmts", "--enable", "qemu-aarch64")
    call("debootstrap", "--foreign", "--arch=arm64", "--variant=minbase", RELEASE, land.root, MIRROR)
    return RELEASE


def second_stage(land: Userland) -> str:
    """Second stage: packages are configured, by programs of the userland."""
    call("chroot", land.root, "/debootstrap/debootstrap", "--second-stage")
    return land.run("uname -m").strip()


def packages(land: Userland) -> str:
    """The packages that the bundle's README names, and a server for SSH."""
    shutil.copy("/etc/resolv.conf", land.root / "etc/resolv.conf")
    names = " ".join([*BUILD_PACKAGES, *CAMERA_PACKAGES, "openssh-server"])
    land.run(
        f"export DEBIAN_FRONTEND=noninteractive\napt-get update -qq\napt-get install -y --no-install-recommends {names}"
    )
    return (
        land.run("g++ -dumpfullversion; cmake --version | head -n 1; python3 --version")
        .replace("\n", ", ")
        .rstrip(", ")
    )


def onnxruntime(land: Userland) -> str:
    """PyPI's package for aarch64, unpacked where ``pip3 install --user`` puts it."""
    wheels = land.root / "root/wheels"
    call(
        sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "--python-version", "3.9",
        "--platform", "manylinux_2_27_aarch64", f"onnxruntime=={ONNXRUNTIME}", "-d", wheels,
        PIP_CONSTRAINT="",  # of this computer's own packages
    )  # fmt: skip
    with zipfile.ZipFile(next(wheels.glob("*.whl"))) as wheel:
        wheel.extractall(land.root / PYTHON_PACKAGES)
    return land.run('python3 -c "import onnxruntime; print(onnxruntime.__version__)"').strip()


def bundles(land: Userland) -> str:
    """Bundles made here: one for a Nano, which the README is of, and one for a CPU."""
    for name, settings in (
        ("bundle", ExportSettings(target="nano", static=True, input_size=(40, 48))),
        ("cpu", ExportSettings(static=True, input_size=(40, 48))),
    ):
        folder = land.root / "root" / name
        shutil.rmtree(folder, ignore_errors=True)
        export_model(lively_network("spatial"), folder, settings)
    shutil.copy(sample_photographs()[0], land.root / "root/bundle/device/photo.jpg")
    return "nano, cpu"


def runtime(land: Userland) -> str:
    """The runtime from the bundle's sources: C++14, ``-pedantic-errors``, warnings are errors."""
    land.run(
        f"mkdir -p build\ncd build\ncmake ../bundle/device/plugins/runtime {' '.join(STRICT)}\n"
        "make -j2 dyndeploy dyndeploy-run"
    )
    return land.run("ls -l --block-size=K build/libdyndeploy.so build/dyndeploy-run | awk '{print $5}'").replace(
        "\n", " "
    )


def end_to_end(land: Userland) -> str:
    """Verify the bundle against PyTorch's results, and classify a picture as here."""
    land.run("build/dyndeploy-run bundle --verify --native off --runtime onnxruntime")
    line = json.loads(land.run("build/dyndeploy-run bundle bundle/device/photo.jpg --json --native off"))
    from dyndeploy.inference import classify

    [here] = classify(land.root / "root/bundle", [sample_photographs()[0]], native="off")
    if (line["label"], line["rates"]) != (here.label, here.rates):
        raise StepError(f"{line} there, {here} here")
    return f"verified; label {line['label']} and every rate as on this computer"


def prebuilt(land: Userland) -> str:
    """What ``.ci/wheel`` cross-builds: the program alone, and with the operators."""
    named = os.environ.get("DYNDEPLOY_PREBUILT")
    if not named:
        raise SkippedError("DYNDEPLOY_PREBUILT names no folder; wheels of .ci/wheel have one, dyndeploy/prebuilt")
    ready = land.root / "root/prebuilt"
    shutil.rmtree(ready, ignore_errors=True)
    shutil.copytree(Path(named) / "aarch64", ready)
    for path in ready.iterdir():
        path.chmod(0o755)
    native = "prebuilt/libdyndeploy_ort_cpu.so"
    for choice in ("off", native):
        land.run(f"prebuilt/dyndeploy-run cpu --verify --native {choice}")
    info = json.loads(land.run(f"prebuilt/dyndeploy-run cpu --info --native {native}"))
    return f"verified without and with {info['operators']}"


def operators(land: Userland) -> str:
    """The CPU operators, and the same bundle with them."""
    sources = land.root / "root/plugins"
    shutil.rmtree(sources, ignore_errors=True)
    shutil.copytree(ROOT / "plugins", sources)
    land.run(
        "mkdir -p build-operators\ncd build-operators\ncmake ../plugins -DDYNDEPLOY_WERROR=ON "
        "-DDYNDEPLOY_CUDA_KERNELS=OFF -DDYNDEPLOY_TENSORRT_PLUGIN=OFF\nmake -j2 dyndeploy_ort_cpu"
    )
    native = "build-operators/adapters/onnxruntime/libdyndeploy_ort_cpu.so"
    land.run(f"build/dyndeploy-run bundle --verify --native {native} --runtime onnxruntime")
    info = json.loads(land.run(f"build/dyndeploy-run bundle --info --native {native}"))
    return f"verified with {info['operators']}"


def readme(land: Userland) -> str:
    """Every block of the bundle's README that this userland can run, in its order."""
    folder = "/root/bundle/device"
    ran, left = 0, {}
    for kind, needs, text in blocks(land.root / folder.lstrip("/")):
        missing = needs & (ELSEWHERE | {"computer"})
        if missing:
            left[" ".join(sorted(missing))] = left.get(" ".join(sorted(missing)), 0) + 1
            continue
        if kind == "py":
            (land.root / folder.lstrip("/") / "block.py").write_text(text)
            text = "python3 block.py"
        if text.startswith("cd "):
            continue
        try:
            land.run(text, folder)
        except StepError as error:
            raise StepError(f"after {ran} blocks: {error}") from None
        ran += 1
    return f"{ran} blocks ran; not here: " + ", ".join(f"{count} x {name}" for name, count in left.items())


def agent(land: Userland) -> str:
    """Over SSH with the userland's own server: add, probe, profile, run."""
    from dyndeploy.inference import classify

    keys = land.root.parent / f"{land.root.name}.ssh"
    shutil.rmtree(keys, ignore_errors=True)
    keys.mkdir(mode=0o700)
    for name in ("key", "host"):
        call("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", keys / name)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    inside = land.root / "root"
    shutil.copy(keys / "host", inside / "host")
    shutil.copy(keys / "key.pub", inside / "authorized")
    (inside / "sshd_config").write_text(SSHD.format(port=port))
    (keys / "known").write_text(f"[127.0.0.1]:{port} {(keys / 'host.pub').read_text()}")
    config = keys / "config"
    config.write_text(
        f"Host arm64\n  HostName 127.0.0.1\n  Port {port}\n  User root\n  IdentityFile {keys}/key\n"
        f"  IdentitiesOnly yes\n  UserKnownHostsFile {keys}/known\n"
    )
    (land.root / "run/sshd").mkdir(exist_ok=True)
    with (keys / "log").open("wb") as log:
        server = subprocess.Popen(
            ["chroot", land.root, "/usr/sbin/sshd", "-D", "-e", "-f", "/root/sshd_config"], stdout=log, stderr=log
        )
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                if server.poll() is not None or time.monotonic() > deadline:
                    raise StepError(f"sshd does not start: {(keys / 'log').read_text()[-300:]}") from None
                time.sleep(0.2)
        program = (sys.executable, "-m", "dyndeploy.cli")
        environment = {"DYNDEPLOY_DEVICES": str(keys / "devices.json"), "PYTHONPATH": str(ROOT)}
        call(*program, "device", "add", "arm64", "arm64", "--ssh-config", config, **environment)
        call(*program, "device", "probe", "arm64", **environment)
        profile = keys / "profile.json"
        said = call(
            *program, "profile", inside / "cpu", "--device", "arm64", "--rates", "0.5", "--repeats", "3",
            "--json", profile, **environment,
        )  # fmt: skip
        if "Verified on the board" not in said:
            raise StepError(f"not verified: {said[-300:]}")
        photo = sample_photographs()[0]
        line = json.loads(call(*program, "run", inside / "cpu", photo, "--device", "arm64", "--json", **environment))
        [here] = classify(inside / "cpu", [photo], native="off")
        if (line["label"], line["rates"]) != (here.label, here.rates):
            raise StepError(f"{line} there, {here} here")
        return "add, probe, profile (verified), run: label and rates as on this computer"
    finally:
        server.terminate()
        server.wait(30)


STEPS: dict[str, tuple[Callable[[Userland], str], tuple[str, ...]]] = {
    "first stage": (foreign, ()),
    "second stage": (second_stage, ("first stage",)),
    "packages": (packages, ("second stage",)),
    "onnxruntime": (onnxruntime, ("packages",)),
    "bundles": (bundles, ("packages",)),
    "runtime": (runtime, ("bundles",)),
    "end to end": (end_to_end, ("runtime", "onnxruntime")),
    "prebuilt": (prebuilt, ("bundles", "onnxruntime")),
    "agent over SSH": (agent, ("bundles", "onnxruntime")),
    "README": (readme, ("bundles", "onnxruntime")),
    "operators": (operators, ("end to end",)),
}


def mounted(land: Userland) -> None:
    """What programs inside look at: processes, devices, and the system.

    Without /sys, ONNX Runtime ends itself as it is opened: it warns of processors that it cannot count before its log
    exists.
    """
    for kind, name in (
        (("-t", "proc", "proc"), "proc"),
        (("--bind", "/dev"), "dev"),
        (("-t", "sysfs", "-o", "ro", "sysfs"), "sys"),
    ):
        place = land.root / name
        if place.is_dir() and not os.path.ismount(place):
            call("mount", *kind, place)


def main() -> int:
    """Do every step that was not done yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder of the userland; about 1 GB")
    parser.add_argument("--again", choices=STEPS, action="append", default=[], help="do this step anew")
    parser.add_argument("--only", choices=STEPS, action="append", help="do no other steps")
    arguments = parser.parse_args()
    land = Userland(arguments.root.resolve())
    outcome: dict[str, str] = {}
    print(f"{'step':<16}{'outcome':<10}{'s':>6}  ", flush=True)
    try:
        for name, (work, needs) in STEPS.items():
            mark = land.made(name.replace(" ", "-"))
            start = time.monotonic()
            unmet = [need for need in needs if outcome.get(need) != "ok"]
            if arguments.only and name not in arguments.only:
                outcome[name] = "ok" if mark.exists() else "left out"
                continue
            if unmet:
                outcome[name], said = "skipped", f"needs {', '.join(unmet)}"
            elif mark.exists() and name not in arguments.again:
                outcome[name], said = "ok", f"before: {mark.read_text()}"
            else:
                if name not in ("first stage", "second stage"):
                    mounted(land)
                try:
                    outcome[name], said = "ok", work(land)
                    mark.write_text(said)
                except SkippedError as error:
                    outcome[name], said = "skipped", str(error)
                except (StepError, OSError, subprocess.TimeoutExpired, ValueError) as error:
                    outcome[name], said = "FAILED", str(error)
            print(f"{name:<16}{outcome[name]:<10}{time.monotonic() - start:>6.0f}  {said}", flush=True)
    finally:
        for name in ("proc", "dev", "sys"):
            if os.path.ismount(land.root / name):
                subprocess.run(["umount", str(land.root / name)], check=False)
    print("qemu cannot show: times, energy, GPU and TensorRT, cameras, CPUs that lack what qemu emulates")
    return 1 if "FAILED" in outcome.values() else 0


if __name__ == "__main__":
    sys.exit(main())
