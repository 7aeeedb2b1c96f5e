"""Sets up the real TensorRT 8.5.3.1 and a Python 3.9 that runs it, without a GPU: ``python setup_tensorrt.py FOLDER``.

TensorRT's wheel comes from the Python package index, Python 3.9 and its libffi from Debian bullseye; nothing is
installed into the system. The plugins that come with TensorRT need cuBLAS and cuDNN, which weigh over a gigabyte and
are never called without a GPU: libraries of the same name and symbols, whose functions end the process, stand in.
They are only for the contract test; never run an engine with them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

VERSION = "8.5.3.1"
PYTHON_PACKAGES = ("python3.9-minimal", "libpython3.9-minimal", "libpython3.9-stdlib", "libffi7")
STAND_INS = ("libcublas.so.11", "libcublasLt.so.11", "libcudnn.so.8")
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
MARKER = "environment.json"
"""Written last: a folder with it is complete."""


def default_folder() -> Path:
    """``DYNDEPLOY_TENSORRT_CONTRACT``, else a folder in the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(os.environ.get("DYNDEPLOY_TENSORRT_CONTRACT") or f"{cache}/dyndeploy/tensorrt-{VERSION}")


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """The command's stdout; its stderr in the error when it fails."""
    result = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{result.stdout}{result.stderr}")
    return result.stdout


def fetch_tensorrt(folder: Path) -> Path:
    """Unpack the wheel for Python 3.9 into ``folder`` / wheel."""
    download = folder / "download"
    platform = "manylinux_2_17_x86_64"
    run(
        sys.executable, "-m", "pip", "download", f"tensorrt=={VERSION}", "--no-deps", "--only-binary=:all:",
        "--python-version", "39", "--platform", platform, "--dest", download,
    )  # fmt: skip
    (wheel,) = download.glob(f"tensorrt-{VERSION}-*.whl")
    target = folder / "wheel"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    wheel.unlink()
    return target


def fetch_python(folder: Path) -> Path:
    """Unpack Debian bullseye's Python 3.9 into ``folder`` / python, with package lists of its own."""
    apt = folder / "apt"
    for part in ("lists/partial", "cache/archives/partial", "deb"):
        (apt / part).mkdir(parents=True, exist_ok=True)
    sources = apt / "sources.list"
    sources.write_text(f"deb [signed-by={KEYRING}] http://deb.debian.org/debian bullseye main\n")
    options = [
        f"-oDir::Etc::SourceList={sources}",
        "-oDir::Etc::SourceParts=-",
        f"-oDir::State::Lists={apt / 'lists'}",
        f"-oDir::Cache={apt / 'cache'}",
        "-oAPT::Get::List-Cleanup=0",
    ]
    run("apt-get", *options, "update")
    run("apt-get", *options, "download", *PYTHON_PACKAGES, cwd=apt / "deb")
    target = folder / "python"
    for package in (apt / "deb").glob("*.deb"):
        run("dpkg", "-x", package, target)
    shutil.rmtree(apt)
    return target


def make_stand_ins(tensorrt: Path, folder: Path) -> None:
    """Build the libraries that ``libnvinfer_plugin`` needs, with the versioned symbols that it asks for."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted: dict[str, list[str]] = {name: [] for name in STAND_INS}
    for line in run("nm", "-D", "--undefined-only", tensorrt / "libnvinfer_plugin.so.8").splitlines():
        name, _, version = line.split()[-1].partition("@")
        if version in wanted:
            wanted[version].append(name)
    for library, names in wanted.items():
        source, script = folder / "stand_in.c", folder / "stand_in.map"
        functions = "".join(f"void {name}(void) {{ abort(); }}\n" for name in names)
        source.write_text(f"#include <stdlib.h>\n{functions}")
        script.write_text(f"{library} {{ global: {' '.join(f'{name};' for name in names)} local: *; }};\n")
        run(
            "cc", "-shared", "-fPIC", f"-Wl,-soname,{library}", f"-Wl,--version-script={script}",
            source, "-o", folder / library,
        )  # fmt: skip
        source.unlink()
        script.unlink()


def set_up(folder: Path) -> dict[str, str]:
    """The environment in ``folder``, made when it is not there.

    Returns:
        ``python``: the interpreter; ``tensorrt``: the folder of TensorRT's libraries; and the environment variables
        that both need.
    """
    if (folder / MARKER).exists():
        return read(folder)
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    wheel = fetch_tensorrt(folder)
    python = fetch_python(folder)
    make_stand_ins(wheel / "tensorrt", folder / "stand_ins")
    libraries = (wheel / "tensorrt", folder / "stand_ins", python / "usr/lib/x86_64-linux-gnu")
    environment = {
        "python": str(python / "usr/bin/python3.9"),
        "tensorrt": str(wheel / "tensorrt"),
        "LD_LIBRARY_PATH": ":".join(map(str, libraries)),
        "PYTHONHOME": str(python / "usr"),
        "PYTHONPATH": str(wheel),
    }
    found = subprocess.run(
        [environment["python"], "-c", "import tensorrt; print(tensorrt.__version__)"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    if found.stdout.strip() != VERSION:
        raise SystemExit(f"TensorRT {VERSION} does not load:\n{found.stdout}{found.stderr}")
    (folder / "download").rmdir()
    unfinished = folder / f"{MARKER}.part"
    unfinished.write_text(json.dumps(environment, indent=2))
    unfinished.replace(folder / MARKER)
    return environment


def read(folder: Path) -> dict[str, str]:
    """The environment that ``set_up`` has made; raises ``FileNotFoundError`` when there is none."""
    environment: dict[str, str] = json.loads((folder / MARKER).read_text())
    return environment


if __name__ == "__main__":
    print(json.dumps(set_up(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else default_folder()), indent=2))
