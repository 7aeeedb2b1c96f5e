"""The on-device agent: one file that a board runs with nothing but its own Python (3.6 or newer).

It answers JSON lines on stdin with JSON on stdout, in frames, because whatever a login starts may write there as well
(see :func:`frames`). Files are stored under their SHA-256, so that a second run
sends only what changed; a file being received has another name until its checksum was seen to be right. Long work
(building, verifying, profiling) runs as a detached job in a session of its own, which a lost connection does not
end; a job is named by the checksum of its specification, so that a client that comes back finds it again, running or
done. How an engine is built and how a network is measured is not written here: those files of dyndeploy are sent like
any other, and named by their checksums in the specification of the job that runs them. numpy, onnxruntime, tensorrt and
pycuda are imported by a job only when it needs them.

    python3 agent.py serve [--work FOLDER]    what a client talks to
    python3 agent.py probe                    print what this machine is, for a person
    python3 agent.py build|run|verify|profile what a person does with a bundle there (by_hand.py, which lies beside it)

Not part of dyndeploy's import tree: nothing here may import dyndeploy.
"""

import argparse
import base64
import errno
import fcntl
import functools
import hashlib
import json
import math
import os
import platform
import pwd
import re
import shutil
import signal
import socket
import stat
import statistics
import struct
import subprocess
import sys
import threading
import time
import traceback
import types
import zlib
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

PROTOCOL = 2
GREETING = "dyndeploy-agent"
DEFAULT_WORK = os.path.join("~", ".cache", "dyndeploy", "agent")
LARGEST_CHUNK = 4 << 20
KEEP_FREE_BYTES = 64 << 20  # A board whose disk is full to the last byte does not even let one log in.
LOG_TAIL = 4000
TAIL_BYTES = 1 << 20
PIECE_BYTES = 4000  # A frame is shorter than PIPE_BUF: what others write at the same time stands beside it, not in it.
WAITING = "waiting until another measurement or build on this board ends"
TURN = "dyndeploy-turn"  # An abstract socket: of no user, and free when its owner is gone.

Json = Dict[str, Any]
Report = Callable[[str, float], None]


class AgentError(Exception):
    """What went wrong, for the client: ``kind`` is for programs, the message for people."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


# ---------------------------------------------------------------- files


def write_atomically(path: str, data: bytes) -> None:
    """Write a file that is either absent or whole."""
    temporary = "%s.%d.part" % (path, os.getpid())
    try:
        with open(temporary, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


def write_json(path: str, value: Any) -> None:
    """Write JSON, atomically."""
    write_atomically(path, json.dumps(value, allow_nan=False).encode("utf-8"))


def read_json(path: str) -> Any:
    """Read JSON; None where there is no file or no whole one."""
    try:
        with open(path, encoding="utf-8") as stream:
            return json.load(stream)
    except (OSError, ValueError):
        return None


def read_text(path: str) -> Optional[str]:
    """Content of a small file without blanks and NULs at its ends; None where it cannot be read."""
    try:
        with open(path, "rb") as stream:
            return stream.read(1 << 16).decode("utf-8", "replace").strip("\0 \t\r\n") or None
    except OSError:
        return None


def read_number(path: str) -> Optional[int]:
    """A whole number in a file, or None."""
    text = read_text(path)
    try:
        return int(text) if text else None
    except ValueError:
        return None


def sha256_of(path: str) -> str:
    """SHA-256 of a file in hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def file_tail(path: str, seen: Optional[List[int]]) -> Json:
    """What was added to a file that another program writes.

    Args:
        path: Of the file; ``~`` is this user's home.
        seen: What the last call gave, or None.

    Returns:
        ``data``, bytes, at most :data:`TAIL_BYTES`; ``seen`` for the next call; ``anew``: whether it is not the file of
        the last call, or was cut; ``cut``: whether ``data`` begins somewhere in the file.

    Raises:
        AgentError: There is no such file, or it cannot be read.
    """
    try:
        # A named pipe would be waited for.
        handle = os.open(os.path.expanduser(path), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(handle, "rb") as stream:
            found = os.fstat(handle)
            if not stat.S_ISREG(found.st_mode):
                raise AgentError("missing", "%s is no regular file" % path)
            same = seen is not None and seen[0] == found.st_ino and seen[1] <= found.st_size
            start = seen[1] if seen is not None and same else max(0, found.st_size - TAIL_BYTES)
            stream.seek(start)
            data = stream.read(TAIL_BYTES)
    except OSError as error:
        raise AgentError("missing", "%s cannot be read: %s" % (path, error.strerror or error)) from error
    return {"seen": [found.st_ino, start + len(data)], "data": data, "anew": not same, "cut": not same and start > 0}


def tail_of(path: str, size: int = LOG_TAIL) -> str:
    """Last characters of a text file."""
    try:
        with open(path, "rb") as stream:
            stream.seek(max(0, os.path.getsize(path) - size))
            return stream.read().decode("utf-8", "replace")
    except OSError:
        return ""


def folder_size(path: str) -> int:
    """Bytes of all files below a folder."""
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            try:
                total += os.lstat(os.path.join(folder, name)).st_size
            except OSError:
                pass
    return total


class Store:
    """Files by their SHA-256. What is in it under its final name is whole."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        os.makedirs(folder, exist_ok=True)

    def path(self, sha256: str) -> str:
        """Where a file is, or will be."""
        if not re.match(r"[0-9a-f]{64}\Z", sha256):
            raise AgentError("protocol", "%r is no SHA-256" % sha256[:80])
        return os.path.join(self.folder, sha256)

    def have(self, sha256: str) -> Tuple[int, bool]:
        """Bytes received so far, and whether the file is whole."""
        path = self.path(sha256)
        for name, whole in ((path, True), (path + ".part", False)):
            try:
                return os.path.getsize(name), whole
            except OSError:
                continue
        return 0, False

    def put(self, sha256: str, size: int, offset: int, data: bytes) -> Tuple[int, bool]:
        """Append a piece of a file.

        A piece that does not continue what is there changes nothing: the answer says where to go on.

        Raises:
            AgentError: ``disk_full`` (what was received before is kept), or ``checksum``: all bytes are there and
                are not the file's (they are removed).
        """
        path = self.path(sha256)
        if os.path.exists(path):
            return size, True
        # Held until the stream is closed: a second connection waits instead of appending in between.
        with open(path + ".part", "ab") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            if os.path.exists(path):
                os.unlink(path + ".part")
                return size, True
            have = os.fstat(stream.fileno()).st_size
            if offset != have or have + len(data) > size:
                if have > size:
                    os.unlink(path + ".part")
                    have = 0
                return have, False
            state = os.statvfs(self.folder)
            if state.f_bavail * state.f_frsize < len(data) + KEEP_FREE_BYTES:
                raise AgentError("disk_full", "only %d MB are free there" % (state.f_bavail * state.f_frsize >> 20))
            try:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            except OSError as error:
                os.ftruncate(stream.fileno(), have)
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise AgentError("disk_full", "%s" % error.strerror)
                raise
            have += len(data)
            if have < size:
                return have, False
            if sha256_of(path + ".part") != sha256:
                os.unlink(path + ".part")
                raise AgentError("checksum", "the bytes that arrived are not those of %s" % sha256[:12])
            os.replace(path + ".part", path)
        return size, True

    def checked(self, sha256: str) -> str:
        """Path of a whole file whose content still is what its name says.

        Raises:
            AgentError: ``missing``; a damaged file is removed, so that the client sends it again.
        """
        path = self.path(sha256)
        if not os.path.isfile(path):
            raise AgentError("missing", "the file %s was never received" % sha256[:12])
        if sha256_of(path) != sha256:
            os.unlink(path)
            raise AgentError("missing", "the file %s was damaged on the disk and was removed" % sha256[:12])
        return path


# ---------------------------------------------------------------- what this machine is

# NVIDIA's JetPack archive (developer.nvidia.com/embedded/jetpack-archive) and the pages of each Jetson Linux release;
# for those that the archive does not list, such as security updates, the table of github.com/rbonghi/jetson_stats.
JETPACKS = {
    "32.4.2": "4.4 DP", "32.4.3": "4.4", "32.4.4": "4.4.1", "32.5.0": "4.5", "32.5.1": "4.5.1", "32.5.2": "4.5.1",
    "32.6.1": "4.6", "32.7.1": "4.6.1", "32.7.2": "4.6.2", "32.7.3": "4.6.3", "32.7.4": "4.6.4", "32.7.5": "4.6.5",
    "32.7.6": "4.6.6", "34.1.0": "5.0 DP", "34.1.1": "5.0.1 DP", "35.1.0": "5.0.2", "35.2.1": "5.1",
    "35.3.1": "5.1.1", "35.4.1": "5.1.2", "35.5.0": "5.1.3", "35.6.0": "5.1.4", "35.6.1": "5.1.5", "35.6.2": "5.1.5",
    "35.6.3": "5.1.5", "35.6.4": "5.1.6", "36.2.0": "6.0 DP", "36.3.0": "6.0", "36.4.0": "6.1", "36.4.2": "6.1",
    "36.4.3": "6.2", "36.4.4": "6.2.1", "36.4.7": "6.2.1", "36.5.0": "6.2.2", "36.5.2": "6.2.3", "38.2.0": "7.0",
    "38.2.1": "7.0", "38.2.2": "7.0", "38.4.0": "7.1", "39.2.0": "7.2", "39.2.1": "7.2.1",
}  # fmt: skip

# How a board calls itself in /proc/device-tree/model -> the target of that name, most specific first.
BOARDS = (
    ("orin nano", "orin_nano"),
    ("orin nx", "orin_nx"),
    ("agx orin", "agx_orin"),
    ("xavier nx", "xavier_nx"),
    ("agx xavier", "agx_xavier"),
    ("jetson-agx", "agx_xavier"),
    ("jetson-xavier", "agx_xavier"),
    ("tx2", "tx2"),
    ("quill", "tx2"),
    ("jetson nano", "nano"),
)

# Rails whose reading is the whole module's, by the vendor's developer guides.
TOTAL_RAILS = ("VDD_IN", "POM_5V_IN")
# Boards without one: the rails that together are the module's. Rails fed by one of these are not counted again.
SUMMED_RAILS = (
    ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),  # AGX Orin
    ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),  # AGX Xavier
)

MODULES_SCRIPT = """
import importlib, json, sys
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = {"version": str(getattr(importlib.import_module(name), "__version__", "") or "unknown")}
    except ImportError as error:
        found[name] = {"error": str(error)[-300:]}
    except Exception as error:
        found[name] = {"error": "%s: %s" % (type(error).__name__, str(error)[-300:])}
    if name == "pycuda" and "version" in found[name]:
        import pycuda
        found[name]["version"] = getattr(pycuda, "VERSION_TEXT", "unknown")
print("MODULES " + json.dumps(found))
"""


def run_tool(command: List[str], timeout: float = 20.0) -> Optional[str]:
    """Output of a small tool, both streams; None where it is absent or fails."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else None


def parse_l4t(text: str) -> Optional[str]:
    """``# R32 (release), REVISION: 7.1, ...`` of /etc/nv_tegra_release -> ``32.7.1``."""
    found = re.search(r"#\s*R(\d+)\s*\(\w+\)\s*,\s*REVISION:\s*(\d+(?:\.\d+)*)", text)
    return "%s.%s" % found.groups() if found else None


def jetpack_of(l4t: Optional[str], package: Optional[str]) -> Optional[str]:
    """JetPack of a release of Jetson Linux; None where nothing tells.

    Args:
        l4t: The release, e.g. ``36.4.3``; one of two numbers counts as its first revision.
        package: Version of the package nvidia-jetpack, e.g. ``6.2.1+b38``, for releases that the table lacks.
    """
    known = JETPACKS.get(l4t or "") or JETPACKS.get("%s.0" % l4t)
    found = re.match(r"\d+\.\d+(?:\.\d+)?", package or "")
    return known or (found.group(0) if found else None)


def package_version(name: str) -> Optional[str]:
    """Version of an installed Debian package; None where there is none."""
    return (run_tool(["dpkg-query", "-W", "-f=${Version}", name]) or "").strip() or None


def power_modes(text: str) -> List[Json]:
    """The modes that a board has, from /etc/nvpmodel.conf: ``id`` and ``name``."""
    found = re.findall(r"^\s*<\s*POWER_MODEL\s+ID=(\d{1,3})\s+NAME=([^\s>]{1,64})", text, re.MULTILINE)
    return [{"id": int(number), "name": name} for number, name in found]


def parse_nvpmodel(text: str) -> Optional[Json]:
    """Output of ``nvpmodel -q`` -> mode's name and number."""
    found = re.search(r"NV Power Mode\s*:\s*(\S[^\r\n]*)", text)
    if not found:
        return None
    number = re.search(r"^\s*(\d+)\s*$", text[found.end() :], re.MULTILINE)
    return {"name": found.group(1).strip(), "id": int(number.group(1)) if number else None}


def whole_power(rails: Dict[str, Any]) -> Optional[Tuple[Any, str]]:
    """Power of a board out of that of its rails, and which rails that is; None where they do not tell."""
    for name in TOTAL_RAILS:
        if name in rails:
            return rails[name], name
    for group in SUMMED_RAILS:
        if all(name in rails for name in group):
            return sum(rails[name] for name in group), " + ".join(group)
    return None


def is_temperature(sensor: str, degrees: float) -> bool:
    """Whether a sensor's number is a temperature: the PMIC's, without a driver, is always 100, one that is off -256."""
    return not sensor.upper().startswith("PMIC") and degrees > -100


def parse_tegrastats(line: str) -> Json:
    """One line of tegrastats; what is not in it is absent from the result.

    Returns:
        ``rails_mw`` by name (the momentary reading), ``total_mw`` and ``total_rails`` (which rails it is),
        ``temperatures_c`` by sensor, ``gpu_load`` in percent, ``gpu_mhz``, ``emc_mhz``, ``cpu_mhz`` (the fastest
        core) and ``ram_mb``.
    """
    sample = {}  # type: Json
    rails = {}
    # A number after a name is a rail's only in the form now/average; memory and CPU lists look otherwise.
    for name, now in re.findall(r"\b([A-Z][A-Z0-9_]*) (\d{1,9})(?:mW)?/\d{1,9}(?:mW)?(?= |$)", line):
        if name not in ("RAM", "SWAP", "IRAM"):
            rails[name] = int(now)
    if rails:
        sample["rails_mw"] = rails
        whole = whole_power(rails)
        if whole is not None:
            sample["total_mw"], sample["total_rails"] = whole
    temperatures = {}
    for name, degrees in re.findall(r"\b([A-Za-z][A-Za-z0-9_-]*)@(-?\d{1,4}(?:\.\d{1,6})?)C\b", line):
        if is_temperature(name, float(degrees)):
            temperatures[name] = float(degrees)
    if temperatures:
        sample["temperatures_c"] = temperatures
    found = re.search(r"\bGR3D_FREQ (\d{1,3})%(?:@\[?(\d{1,5}))?", line)
    if found:
        sample["gpu_load"] = int(found.group(1))
        if found.group(2):
            sample["gpu_mhz"] = int(found.group(2))
    found = re.search(r"\bEMC_FREQ (?:\d{1,3}%)?@(\d{1,5})", line)
    if found:
        sample["emc_mhz"] = int(found.group(1))
    found = re.search(r"\bCPU \[([^\]]*)\]", line)
    if found:
        clocks = [int(clock) for clock in re.findall(r"%@(\d{1,5})", found.group(1))]
        if clocks:
            sample["cpu_mhz"] = max(clocks)
    found = re.search(r"\bRAM (\d{1,7})/(\d{1,7})MB", line)
    if found:
        sample["ram_mb"] = int(found.group(1))
    return sample


GPU_FACTS = ("name", "driver_version", "memory.total", "clocks.max.sm", "compute_cap")  # Old drivers lack the last.
CARD_RAIL = "the card (power.draw of nvidia-smi)"


def nvidia_smi(fields: Tuple[str, ...], *more: str) -> List[str]:
    """The command that prints these fields of every GPU as bare values, separated by commas."""
    path = tool("nvidia-smi") or "nvidia-smi"
    return [path, "--query-gpu=" + ",".join(fields), "--format=csv,noheader,nounits"] + list(more)


def smi_values(line: str, fields: Tuple[str, ...]) -> Dict[str, str]:
    """Values of a line of nvidia-smi by field, without those that the GPU or its driver does not have."""
    values = [value.strip() for value in line.split(",")]
    if len(values) != len(fields):
        return {}
    return {name: value for name, value in zip(fields, values) if value and not value.startswith("[")}


def number_in(text: Optional[str]) -> Optional[float]:
    """A positive number, or None."""
    return float(text) if text and re.match(r"\d{1,7}(\.\d{1,6})?\Z", text) else None


def find_gpus() -> List[Json]:
    """The cards that nvidia-smi lists, in its order: name, compute capability, driver, memory and highest clock."""
    for fields in (GPU_FACTS, GPU_FACTS[:-1]):
        found = [smi_values(line, fields) for line in (run_tool(nvidia_smi(fields)) or "").splitlines()]
        gpus = [values for values in found if "name" in values]
        if gpus:
            return [
                {
                    "name": values["name"],
                    "compute_capability": values.get("compute_cap"),
                    "driver": values.get("driver_version"),
                    "memory_mb": number_in(values.get("memory.total")),
                    "max_mhz": number_in(values.get("clocks.max.sm")),
                }
                for values in gpus
            ]
    return []


CARD_SENSORS = ("power.draw", "temperature.gpu", "utilization.gpu", "clocks.sm", "clocks.mem")


def parse_nvidia_smi(line: str) -> Json:
    """One line of nvidia-smi about the sensors of a card, as :func:`parse_tegrastats` of a board's."""
    texts = smi_values(line, CARD_SENSORS)
    values = {name: number_in(texts.get(name)) for name in CARD_SENSORS}
    sample = {}  # type: Json
    if values["power.draw"] is not None:
        sample["total_mw"], sample["total_rails"] = round(values["power.draw"] * 1000), CARD_RAIL
    if values["temperature.gpu"] is not None:
        sample["temperatures_c"] = {"GPU": values["temperature.gpu"]}
    for name, key in (("utilization.gpu", "gpu_load"), ("clocks.sm", "gpu_mhz"), ("clocks.mem", "emc_mhz")):
        value = values[name]
        if value is not None:
            sample[key] = int(value)
    return sample


def summarise_samples(samples: List[Json]) -> Json:
    """What a profile keeps of the board's sensors: extremes and means of the samples."""
    result = {"count": len(samples)}  # type: Json
    powers = [s["total_mw"] for s in samples if "total_mw" in s]
    if powers:
        result["power_mw"] = {"mean": statistics.mean(powers), "max": max(powers)}
        result["power_rails"] = next(s["total_rails"] for s in samples if "total_rails" in s)
    sensors = sorted({name for s in samples for name in s.get("temperatures_c", {})})
    if sensors:
        result["temperatures_c"] = {
            name: max(s["temperatures_c"][name] for s in samples if name in s.get("temperatures_c", {}))
            for name in sensors
        }
    for key in ("gpu_mhz", "emc_mhz", "cpu_mhz"):
        # An idle GPU clocks down by itself: only samples under load tell what the measurement ran at.
        values = [s[key] for s in samples if key in s and (key != "gpu_mhz" or s.get("gpu_load", 0) > 0)]
        if values:
            result[key] = {"min": min(values), "max": max(values)}
    return result


def _frequencies(folder: str, prefix: str = "") -> Optional[Json]:
    low, high = (read_number(os.path.join(folder, prefix + name)) for name in ("min_freq", "max_freq"))
    if low is None or high is None:
        return None
    current = read_number(os.path.join(folder, prefix + "cur_freq"))
    return {"min": low, "max": high, "current": current, "fixed": low == high}


def _clocks(root: str) -> Json:
    clocks = {"gpu": None, "cpu": None}  # type: Json
    devices = os.path.join(root, "sys/class/devfreq")
    for name in sorted(os.listdir(devices)) if os.path.isdir(devices) else []:
        if re.search(r"\.(gpu|gp10b|gv11b|ga10b|gpc0?)$|^17000000\.gpu", name):
            clocks["gpu"] = _frequencies(os.path.join(devices, name))
            break
    cores = os.path.join(root, "sys/devices/system/cpu")
    for number in range(256):
        folder = os.path.join(cores, "cpu%d" % number, "cpufreq")
        if not os.path.isdir(os.path.join(cores, "cpu%d" % number)):
            break
        entry = _frequencies(folder, "scaling_")
        if entry is None:
            continue
        if clocks["cpu"] is None:
            clocks["cpu"] = dict(entry, governor=read_text(os.path.join(folder, "scaling_governor")))
        else:
            clocks["cpu"]["fixed"] = clocks["cpu"]["fixed"] and entry["fixed"]
    return clocks


def _memory(root: str) -> Json:
    text = read_text(os.path.join(root, "proc/meminfo")) or ""
    found = {name: int(value) >> 10 for name, value in re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE)}
    return {
        "total_mb": found.get("MemTotal"),
        "available_mb": found.get("MemAvailable"),
        "swap_mb": found.get("SwapTotal"),
    }


def _cuda(root: str) -> Json:
    home = os.path.join(root, "usr/local/cuda")
    version = None
    text = read_text(os.path.join(home, "version.txt"))
    if text:
        found = re.search(r"CUDA Version (\d+\.\d+(?:\.\d+)?)", text)
        version = found.group(1) if found else None
    facts = read_json(os.path.join(home, "version.json"))
    if version is None and isinstance(facts, dict) and isinstance(facts.get("cuda"), dict):
        version = facts["cuda"].get("version")
    nvcc = os.path.join(home, "bin/nvcc")
    found_nvcc = nvcc if os.access(nvcc, os.X_OK) else shutil.which("nvcc")
    if version is None and found_nvcc:
        found = re.search(r"release (\d+\.\d+)", run_tool([found_nvcc, "--version"]) or "")
        version = found.group(1) if found else None
    return {"version": version, "nvcc": found_nvcc}


def _processor(root: str) -> Optional[str]:
    text = read_text(os.path.join(root, "proc/cpuinfo")) or ""
    found = re.search(r"^(?:model name|Model|Hardware)\s*:\s*(.+)$", text, re.MULTILINE)
    return found.group(1).strip() if found else None


def tool(name: str) -> Optional[str]:
    """Path of a program, also where a login without a profile does not look."""
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/bin:/usr/bin:/sbin:/bin:/home/nvidia")


def probe(work: str, root: str = "/") -> Json:
    """What this machine is, as plain JSON types; what cannot be read is None.

    Args:
        work: The agent's folder, for its free space.
        root: Folder to read system files from; another one than ``/`` is for tests.
    """
    model = read_text(os.path.join(root, "proc/device-tree/model"))
    l4t = parse_l4t(read_text(os.path.join(root, "etc/nv_tegra_release")) or "")
    if l4t is None and model is not None:
        found = re.match(r"\d+\.\d+(?:\.\d+)?", package_version("nvidia-l4t-core") or "")
        l4t = found.group(0) if found else None
    jetpack = jetpack_of(l4t, None) or (jetpack_of(l4t, package_version("nvidia-jetpack")) if l4t else None)
    target = next((name for words, name in BOARDS if model and words in model.lower()), None)
    nvpmodel = tool("nvpmodel")
    mode = None
    if nvpmodel:
        # Some releases let only root ask; -n never waits for a password.
        text = run_tool([nvpmodel, "-q"]) or run_tool(["sudo", "-n", nvpmodel, "-q"])
        mode = parse_nvpmodel(text or "")
    output = run_tool([sys.executable, "-c", MODULES_SCRIPT, "numpy", "tensorrt", "pycuda", "onnxruntime"], 120.0)
    found = re.search(r"^MODULES (.*)$", output or "", re.MULTILINE)
    modules = json.loads(found.group(1)) if found else {}
    cmake = tool("cmake")
    cmake_version = re.search(r"version (\S+)", (run_tool([cmake, "--version"]) if cmake else None) or "")
    state = os.statvfs(work)
    return {
        "model": model,
        "target": target,
        "l4t": l4t,
        "jetpack": jetpack,
        "cpu": _processor(root),
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "os": "%s %s" % (platform.system(), platform.release()),
        "python": platform.python_version(),
        "interpreter": sys.executable,
        "modules": modules,
        "gpus": [] if model else find_gpus(),
        "cuda": _cuda(root),
        "cmake": cmake_version.group(1) if cmake_version else None,
        "compiler": tool("g++") or tool("c++"),
        "power_mode": mode,
        "power_modes": power_modes(read_text(os.path.join(root, "etc/nvpmodel.conf")) or ""),
        "clocks": _clocks(root),
        "memory": _memory(root),
        "disk_free_mb": state.f_bavail * state.f_frsize >> 20,
        "tegrastats": tool("tegrastats"),
        "work": work,
        "work_mb": folder_size(work) >> 20,
        "date": time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()),
        "load_average": list(os.getloadavg()),
    }


class Monitor:
    """Reads a sensor's program while something runs: tegrastats, or for a GPU without one nvidia-smi.

    Args:
        milliseconds: Between two readings.
        gpu: Whether a GPU computes; only then nvidia-smi's power is that of the computation.

    Attributes:
        source: The program's name; None where there is none, and nothing is read.
        samples: What it said, each with its ``seconds`` since the start.
    """

    def __init__(self, milliseconds: int = 500, gpu: bool = False) -> None:
        self.samples = []  # type: List[Json]
        self.source = None  # type: Optional[str]
        self.started = time.monotonic()
        self._process = None  # type: Optional[subprocess.Popen[bytes]]
        board, card = tool("tegrastats"), tool("nvidia-smi")
        if board is not None:
            command, self._parse = [board, "--interval", str(milliseconds)], parse_tegrastats
        elif card is not None and gpu:
            command = nvidia_smi(CARD_SENSORS, "--id=0", "--loop-ms=%d" % milliseconds)
            self._parse = parse_nvidia_smi
        else:
            return
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        except OSError:
            return
        self.source = os.path.basename(command[0])
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self._process is not None and self._process.stdout is not None
        for line in self._process.stdout:
            sample = self._parse(line.decode("utf-8", "replace"))
            if sample and len(self.samples) < 10000:
                sample["seconds"] = round(time.monotonic() - self.started, 3)
                self.samples.append(sample)

    def power(self, begin: float, end: float) -> List[float]:
        """Readings of the whole module's power in mW between two moments of ``time.monotonic``."""
        window = (begin - self.started, end - self.started)
        return [s["total_mw"] for s in list(self.samples) if "total_mw" in s and window[0] < s["seconds"] <= window[1]]

    def stop(self) -> Json:
        """End the reading; returns the summary and the samples."""
        if self._process is not None:
            self._process.terminate()
            self._thread.join(5)
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        return {"summary": summarise_samples(self.samples), "samples": self.samples}


# ---------------------------------------------------------------- jobs: the client's side


def job_key(kind: str, spec: Json) -> str:
    """Name of a job: equal work has equal names."""
    text = json.dumps([PROTOCOL, kind, spec], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:32]


def _lock_soon(stream: Any, seconds: float = 10.0) -> None:
    """Lock a file; a job that has just written its result may need a moment until it is gone."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError:
            if time.monotonic() > deadline:
                raise AgentError("busy", "an earlier run of this step has not ended yet")
            time.sleep(0.05)


class Jobs:
    """Detached jobs, one folder each: spec.json, state.json, log.txt, out/, then result.json or failure.json."""

    def __init__(self, work: str) -> None:
        self.work = work
        self.folder = os.path.join(work, "jobs")
        os.makedirs(self.folder, exist_ok=True)

    def path(self, key: str, *parts: str) -> str:
        """A path inside a job's folder."""
        if not re.match(r"[0-9a-f]{32}\Z", key):
            raise AgentError("protocol", "%r is no job" % key[:80])
        return os.path.join(self.folder, key, *parts)

    def status(self, key: str) -> str:
        """``unknown``, ``running``, ``done``, ``failed`` or ``died`` (it was killed, or the machine restarted)."""
        if not os.path.isfile(self.path(key, "spec.json")):
            return "unknown"
        if os.path.isfile(self.path(key, "result.json")):
            return "done"
        if os.path.isfile(self.path(key, "failure.json")):
            return "failed"
        with open(self.path(key, "lock"), "ab") as lock:
            try:
                # Shared: two clients that look at the same time must not take each other for the job.
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return "running"
        # It may have ended between the first look and the lock.
        for name, status in (("result.json", "done"), ("failure.json", "failed")):
            if os.path.isfile(self.path(key, name)):
                return status
        return "died"

    def start(self, kind: str, spec: Json, agent: str) -> Json:
        """Start a job, or find it running or done; a failed or killed one is started again."""
        if kind not in JOBS:
            raise AgentError("protocol", "there is no job %r" % kind[:80])
        key = job_key(kind, spec)
        os.makedirs(self.path(key, "out"), exist_ok=True)
        with open(self.path(key, "start"), "ab") as gate:
            fcntl.flock(gate, fcntl.LOCK_EX)
            status = self.status(key)
            if status in ("running", "done"):
                return {"key": key, "status": status, "found": True}
            for name in ("failure.json", "state.json", "log.txt"):
                if os.path.exists(self.path(key, name)):
                    os.unlink(self.path(key, name))
            shutil.rmtree(self.path(key, "out"), ignore_errors=True)
            os.makedirs(self.path(key, "out"))
            write_json(self.path(key, "spec.json"), {"kind": kind, "spec": spec})
            lock = open(self.path(key, "lock"), "ab")
            log = open(self.path(key, "log.txt"), "ab")
            try:
                # The lock belongs to the open file: the job inherits it and holds it for as long as it lives.
                _lock_soon(lock)
                process = subprocess.Popen(
                    [sys.executable, agent, "job", self.work, key, str(lock.fileno())],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=self.path(key, "out"),
                    pass_fds=(lock.fileno(),),
                    start_new_session=True,
                )
                write_json(self.path(key, "pid.json"), process.pid)
                # Reaped here while this process lives; afterwards by init.
                threading.Thread(target=process.wait, daemon=True).start()
            finally:
                lock.close()
                log.close()
        return {"key": key, "status": "running", "found": False}

    def poll(self, key: str, seconds: float, seen: Any) -> Json:
        """State of a job; waits until it differs from ``seen``, ends, or ``seconds`` have passed."""
        deadline = time.monotonic() + min(max(seconds, 0.0), 60.0)
        while True:
            status, state = self.status(key), read_json(self.path(key, "state.json"))
            if status != "running" or state != seen or time.monotonic() >= deadline:
                break
            time.sleep(0.2)
        answer = {"key": key, "status": status, "state": state}  # type: Json
        if status == "done":
            answer["result"] = read_json(self.path(key, "result.json"))
        elif status == "failed":
            answer["failure"] = read_json(self.path(key, "failure.json"))
        if status in ("failed", "died"):
            answer["log"] = tail_of(self.path(key, "log.txt"))
        return answer

    def cancel(self, key: str) -> Json:
        """End a running job and everything that it started."""
        pid = read_json(self.path(key, "pid.json"))
        if self.status(key) == "running" and isinstance(pid, int):
            try:
                os.killpg(pid, signal.SIGTERM)
            except OSError:
                pass
        return {"key": key, "status": self.status(key)}

    def forget(self, key: str) -> Json:
        """Remove the folder of a job that is not running."""
        if self.status(key) != "running":
            shutil.rmtree(self.path(key), ignore_errors=True)
        return {"key": key, "status": self.status(key)}

    def running(self) -> List[str]:
        """Keys of running jobs."""
        names = [name for name in sorted(os.listdir(self.folder)) if re.match(r"[0-9a-f]{32}\Z", name)]
        return [name for name in names if self.status(name) == "running"]


# ---------------------------------------------------------------- jobs: the job's side


class Job:
    """What a job works with: its folder, the store, the outputs of other jobs, and a way to say how far it is."""

    def __init__(self, work: str, key: str) -> None:
        self.jobs = Jobs(work)
        self.store = Store(os.path.join(work, "store"))
        self.key = key
        self.out = self.jobs.path(key, "out")
        self.started = time.monotonic()

    def report(self, message: str, fraction: float) -> None:
        """Tell whoever looks what is being done and the fraction done."""
        state = {
            "message": message,
            "fraction": round(fraction, 4),
            "seconds": round(time.monotonic() - self.started, 1),
        }
        write_json(self.jobs.path(self.key, "state.json"), state)

    def output_of(self, key: str, name: str) -> str:
        """A file that an earlier job made.

        Raises:
            AgentError: ``missing``: the job is not done, or its file is gone or changed.
        """
        result = read_json(self.jobs.path(key, "result.json"))
        path = self.jobs.path(key, "out", name)
        if not isinstance(result, dict) or result.get("files", {}).get(name) != _sha256_or_none(path):
            shutil.rmtree(self.jobs.path(key), ignore_errors=True)
            raise AgentError("missing", "%s of an earlier step is not there any more" % name)
        return path

    def module(self, spec: Json, name: str) -> Any:
        """A file of dyndeploy that was sent, as a module; raises ``AgentError`` (``missing``) if it is not there."""
        path = self.store.checked(spec["modules"][name])
        module = types.ModuleType(name)
        with open(path, "rb") as stream:
            exec(compile(stream.read(), name + ".py", "exec"), module.__dict__)
        return module


def run_logged(command: List[str], folder: str, env: Dict[str, str], on_line: Callable[[str], None], log: Any) -> None:
    """Run a program with its output in a log.

    Raises:
        AgentError: ``tool``: it cannot be started or fails; with the end of its output.
    """
    log.write("+ %s\n" % " ".join(command))
    log.flush()
    lines = []  # type: List[str]
    try:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            universal_newlines=True,
            errors="replace",
        )
    except OSError as error:
        raise AgentError("tool", "cannot run %s: %s" % (command[0], error.strerror))
    assert process.stdout is not None
    for line in process.stdout:
        log.write(line)
        log.flush()
        lines = lines[-200:] + [line]
        on_line(line)
    if process.wait() != 0:
        wrong = [line for line in lines if re.search(r"\berror\b", line, re.IGNORECASE)] or lines
        raise AgentError("tool", "%s failed: %s" % (os.path.basename(command[0]), "".join(wrong[:12]).strip()))


def _sha256_or_none(path: str) -> Optional[str]:
    try:
        return sha256_of(path)
    except OSError:
        return None


def tensorrt_headers() -> Optional[str]:
    """Folder of TensorRT's headers, where the plugins' CMake project looks for them; None where there are none."""
    folders = ["/usr/include", "/usr/local/include", "/usr/include/%s-linux-gnu" % platform.machine()]
    root = os.environ.get("TENSORRT_ROOT")
    if root:
        folders = [os.path.join(root, "include")]
    return next((folder for folder in folders if os.path.isfile(os.path.join(folder, "NvInferRuntime.h"))), None)


def build_plugins(source: str, names: List[str], build: str, spec: Json, report: Report, log: Any) -> str:
    """Build a plugin library; returns its path below ``build``.

    Args:
        source: Folder of the sources.
        names: What lies in it, by relative path.
        build: An empty folder.
        spec: As for :func:`job_plugins`, without its ``sources``.
        report: Is told how far it is.
        log: Takes the tools' output.

    Raises:
        AgentError: ``unsupported`` or ``tool``: a tool is missing or fails.
    """
    cuda = _cuda("/")
    env = dict(os.environ)
    if cuda["nvcc"]:
        env["PATH"] = os.path.dirname(cuda["nvcc"]) + os.pathsep + env.get("PATH", "")
        env.setdefault("CUDACXX", cuda["nvcc"])

    def run(command: List[str], folder: str, env: Dict[str, str], on_line: Callable[[str], None]) -> None:
        run_logged(command, folder, env, on_line, log)

    library, skipped = str(spec["library"]), []  # type: str, List[str]

    def watch(line: str) -> None:
        if re.search(r"not (?:built|linked)|[Ss]kipped|not found", line):
            skipped.append(line.strip())

    def show(line: str) -> None:
        found = re.match(r"\[\s*(\d{1,3})%\]", line)
        if found:
            report(line.strip()[:120], 0.1 + 0.9 * min(int(found.group(1)), 100) / 100)

    cmake, project = tool("cmake"), str(spec.get("project", ""))
    if cmake and os.path.join(project, "CMakeLists.txt") in names:
        report("configuring the plugins", 0.0)
        definitions = ["-D%s=%s" % item for item in sorted(spec.get("definitions", {}).items())]
        # CMake 3.10 has neither -S nor -B, nor --parallel.
        run([cmake, *definitions, os.path.join(source, project)], build, env, watch)
        report("building the plugins", 0.1)
        # One compiler of CUDA code takes up to a gigabyte; a Nano has four in all.
        memory = _memory("/")["available_mb"] or 1024
        workers = max(1, min(len(os.sched_getaffinity(0)), memory // 1024))
        run([cmake, "--build", ".", "--", "-j%d" % workers], build, env, show)
    elif cuda["nvcc"]:
        report("building the plugins with nvcc", 0.0)
        units = [name for name in names if name.endswith((".cu", ".cpp")) and "/host/" not in name]
        folders = sorted({os.path.dirname(os.path.join(source, name)) for name in names})
        code = str(spec["architecture"])
        command = [cuda["nvcc"], "-std=c++14", "-O3", "-shared", "-Xcompiler", "-fPIC,-fvisibility=hidden"]
        command += ["-gencode", "arch=compute_%s,code=sm_%s" % (code, code)]
        command += ["-I%s" % folder for folder in [source, *folders]]
        command += [os.path.join(source, name) for name in units]
        run([*command, "-lnvinfer", "-o", os.path.join(build, library)], build, env, lambda line: None)
    else:
        raise AgentError("unsupported", "neither cmake nor nvcc was found: install one (apt-get install cmake)")
    made = [os.path.join(folder, library) for folder, _, files in os.walk(build) if library in files]
    if not made:
        raise AgentError("tool", "the build made no %s: %s" % (library, "; ".join(skipped[-5:]) or "see the log"))
    return made[0]


def job_plugins(job: Job, spec: Json) -> Json:
    """Build a plugin library from sources that were sent.

    ``spec``: ``sources`` (SHA-256 by relative path), ``library`` (file name to look for), ``definitions`` (for
    CMake), ``project`` (folder of the CMakeLists.txt), ``architecture`` (e.g. ``"53"``, for a build without CMake).
    """
    library = str(spec["library"])
    source, build = os.path.join(job.out, "source"), os.path.join(job.out, "build")
    os.makedirs(build)
    names = sorted(spec["sources"])
    for name in names:
        path = os.path.normpath(os.path.join(source, name))
        if not path.startswith(source + os.sep):
            raise AgentError("protocol", "%r leads out of the source folder" % name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        shutil.copyfile(job.store.checked(spec["sources"][name]), path)
    made = build_plugins(source, names, build, spec, job.report, sys.stderr)
    os.replace(made, os.path.join(job.out, library))
    for folder in (source, build):
        shutil.rmtree(folder, ignore_errors=True)
    return _files(job, library)


def _files(job: Job, *names: str) -> Json:
    return {"files": {name: sha256_of(os.path.join(job.out, name)) for name in names}}


def job_engine(job: Job, spec: Json) -> Json:
    """Turn a graph into what the runtime loads fastest: a TensorRT plan, or ONNX Runtime's optimised graph.

    ``spec``: ``runtime``, ``model`` (SHA-256), ``threads``, ``versions`` (of the software: another one makes another
    engine), and for TensorRT ``plan`` (a build plan, carried out as it stands), ``plugins`` (key of the job that built
    the plugin library, or None), ``library`` (its file name) and ``modules`` (SHA-256 of ``tensorrt_device`` and
    ``tensorrt_inspector``).
    """
    model = job.store.checked(spec["model"])
    job.report("building the engine", 0.0)
    build = {"onnxruntime": _build_onnxruntime, "tensorrt": _build_tensorrt}.get(spec["runtime"])
    if build is None:
        raise AgentError("unsupported", "this agent has no runtime %r" % spec["runtime"])
    extra = build(job, spec, model)
    return dict(_files(job, "engine"), seconds=round(time.monotonic() - job.started, 2), **extra)


def _keep_order(runtime: Any, options: Any) -> None:
    # With masks from outside, maskers feed outputs only, which ONNX Runtime would otherwise leave for the end.
    options.execution_order = runtime.ExecutionOrder.PRIORITY_BASED


def _build_onnxruntime(job: Job, spec: Json, model: str) -> Json:
    runtime = import_or_refuse("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = spec["threads"]
    _keep_order(runtime, options)
    path = os.path.join(job.out, "engine")
    options.optimized_model_filepath = path + ".part"
    # The highest level, which changes layouts, comes when the file is loaded.
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    try:
        runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise AgentError("build", "ONNX Runtime %s: %s" % (runtime.__version__, error))
    plain = runtime.SessionOptions()
    plain.log_severity_level = 4
    plain.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        runtime.InferenceSession(path + ".part", plain, providers=["CPUExecutionProvider"])
        os.replace(path + ".part", path)
    except Exception as error:
        # In branches it may give several outputs the same name, so that it cannot read its own file.
        sys.stderr.write("the optimised graph cannot be read, the graph itself is kept: %s\n" % error)
        os.unlink(path + ".part")
        shutil.copyfile(model, path)
    return {}


def import_or_refuse(name: str) -> Any:
    """Import a package that a board may lack."""
    try:
        return __import__(name)
    except ImportError as error:
        raise AgentError("unsupported", "the Python package %s cannot be imported: %s" % (name, error))


def _tensorrt(library: Optional[str]) -> Tuple[Any, Any, List[str]]:
    """TensorRT, a logger, and the messages that it gathers; the plugin library is loaded first."""
    trt = import_or_refuse("tensorrt")
    messages = []  # type: List[str]
    base = trt.ILogger

    class Log(base):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            base.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            if int(severity) <= int(base.Severity.WARNING):
                sys.stderr.write("TensorRT: %s\n" % text)
                sys.stderr.flush()
                messages.append(text)
                del messages[:-20]

    log = Log()
    trt.init_libnvinfer_plugins(log, "")
    if library is not None:
        import ctypes

        try:
            # The library registers its creators when it is loaded; it must stay loaded as long as the process.
            ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            raise AgentError("plugins", "the plugin library cannot be loaded: %s" % error)
    return trt, log, messages


def _cache(job: Job, kind: str, made_with: Any) -> str:
    """Path of what earlier builds with the same software have timed on this board."""
    digest = hashlib.sha256(json.dumps(made_with, sort_keys=True).encode()).hexdigest()[:16]
    return os.path.join(job.jobs.work, "%s-%s.cache" % (kind, digest))


def _kept(path: str) -> bytes:
    if not os.path.isfile(path):
        return b""
    with open(path, "rb") as stream:
        return stream.read()


def _build_tensorrt(job: Job, spec: Json, model: str) -> Json:
    device, inspector = job.module(spec, "tensorrt_device"), job.module(spec, "tensorrt_inspector")
    library = None if spec.get("plugins") is None else job.output_of(spec["plugins"], spec["library"])
    trt, log, messages = _tensorrt(library)
    # Timings depend on the board and the software alone; static and dynamic network share most of them.
    known = _cache(job, "timing", spec["versions"])
    content = _kept(known)
    # The plugins' own, for a TensorRT without tactics; another library may have other tiles.
    tactics = _cache(job, "tactics", [spec["versions"], spec.get("plugins")])
    if library is not None:
        device.read_tactics(library, _kept(tactics))
    with open(model, "rb") as stream:
        graph = stream.read()
    job.report("TensorRT is building (minutes on a small board)", 0.1)
    try:
        engine, timings = device.build(trt, log, graph, spec["plan"], content)
    except device.RefusedError as error:
        raise AgentError("build", "%s: %s" % (error, "; ".join(messages)[-2000:] or "TensorRT says no more"))
    write_atomically(known, timings)
    timed = b"" if library is None else device.timed_tactics(library)
    if timed:
        write_atomically(tactics, timed)
    job.report("reading the engine's layers", 0.9)
    layers, wrong, note = inspector.read_back(trt, log, engine, spec["plan"])
    if wrong:
        raise AgentError("build", inspector.refusal(wrong))
    write_atomically(os.path.join(job.out, "engine"), engine)
    facts = inspector.plugin_facts(layers or [], spec["plan"], library)
    return {"tensorrt": trt.__version__, "note": note, "plugins": facts}


# ---------------------------------------------------------------- sessions


class OnnxRuntimeSession:
    """A graph in ONNX Runtime's CPU provider."""

    provider = "CPUExecutionProvider"

    def __init__(self, path: str, threads: int, profile: bool = False) -> None:
        self.runtime = import_or_refuse("onnxruntime")
        self.threads, self.note = threads, ""
        options = self.runtime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.force_spinning_stop", "1")
        _keep_order(self.runtime, options)
        options.graph_optimization_level = self.runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
        if profile:
            options.enable_profiling = True
            options.profile_file_prefix = os.path.join(os.getcwd(), "nodes-%d" % id(self))
        self.session = self.runtime.InferenceSession(path, options, providers=[self.provider])
        self.inputs = [value.name for value in self.session.get_inputs()]
        self.outputs = [value.name for value in self.session.get_outputs()]

    def run(self, feeds: Json) -> Json:
        """All outputs."""
        return dict(zip(self.outputs, self.session.run(self.outputs, {name: feeds[name] for name in self.inputs})))

    def clock(self, loop: Any) -> Any:
        """What times the runs of :meth:`prepare`."""
        return loop.Clock(self.threads == 1)

    def prepare(self, feeds: Json, outputs: List[str]) -> Callable[[], Any]:
        """A function that runs once; the inputs are in place."""
        binding = self.session.io_binding()
        for name in self.inputs:
            binding.bind_cpu_input(name, feeds[name])
        # The masks are computed all the same: the operators take them.
        for name in outputs:
            binding.bind_output(name)
        kept = [feeds[name] for name in self.inputs]

        def call() -> None:
            assert kept is not None
            self.session.run_with_iobinding(binding)

        return call

    def layer_times(self, feeds_list: List[Json], runs: int) -> List[List[Tuple[str, float]]]:
        """Fastest time of every node in ms, per entry of ``feeds_list``; the session must profile."""
        for feeds in feeds_list:
            for _ in range(runs + 1):
                self.run(feeds)
        path = self.session.end_profiling()
        events = read_json(path) or []
        os.unlink(path)
        spans = sorted((e["ts"], e["ts"] + e["dur"]) for e in events if e.get("name") == "model_run")
        nodes = [e for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")]
        nodes.sort(key=lambda e: (e["ts"], -e["dur"]))
        recorded, position = [], 0
        for start, end in spans:
            times, count, covered = {}, {}, start  # type: Dict[Tuple[str, int], float], Dict[str, int], int
            while position < len(nodes) and nodes[position]["ts"] <= end:
                event = nodes[position]
                position += 1
                stop = event["ts"] + event["dur"]
                # Inside a control-flow node, whose time contains it already.
                if event["ts"] < start or (stop <= covered and event["ts"] < covered):
                    continue
                covered = stop
                name = event["name"][: -len("_kernel_time")]
                count[name] = count.get(name, -1) + 1
                times[(name, count[name])] = event["dur"] / 1000.0
            recorded.append(times)
        result = []
        for index in range(len(feeds_list)):
            # The first run of each input is a warm-up.
            chosen = recorded[index * (runs + 1) + 1 : (index + 1) * (runs + 1)]
            fastest = {}  # type: Dict[Tuple[str, int], float]
            for times in chosen:
                for key, ms in times.items():
                    fastest[key] = min(ms, fastest.get(key, ms))
            result.append([(key[0], ms) for key, ms in fastest.items()])
        return result


class HostChain:
    """Stages in ONNX Runtime on one image: every stage reads what the ones before it left in host memory.

    ``stages``: per stage ``exit``, ``inputs`` and ``outputs`` (name, shape for one image, type).
    """

    def __init__(self, sessions: List[Any], stages: List[Json]) -> None:
        self.numpy = import_or_refuse("numpy")
        self.provider, self.threads, self.stages = sessions[0].provider, sessions[0].threads, stages
        self.note = "" if self.threads == 1 else "Every stage has threads of its own."
        image = stages[0]["inputs"][0]
        self._image = self.numpy.zeros(image[1], image[2])
        tensors = {image[0]: self._image}
        self._calls, self._confidences = [], []  # type: List[Callable[[], Any]], List[Any]
        self._results = []  # type: List[Json]
        for stage, session in zip(stages, sessions):
            binding = session.session.io_binding()
            for name, _, _ in stage["inputs"]:
                value = tensors[name]
                binding.bind_input(name, "cpu", 0, value.dtype.type, value.shape, value.ctypes.data)
            own = {name: self.numpy.zeros(shape, kind) for name, shape, kind in stage["outputs"]}
            for name, value in own.items():
                binding.bind_output(name, "cpu", 0, value.dtype.type, value.shape, value.ctypes.data)
            self._calls.append(functools.partial(session.session.run_with_iobinding, binding))
            self._confidences.append(own["confidence"])
            self._results.append(own)
            tensors.update(own)

    def clock(self, loop: Any) -> Any:
        """What times the runs of :meth:`leave`."""
        return loop.Clock(self.threads == 1)

    def confidences(self, image: Any, last: Optional[int] = None) -> List[float]:
        """Confidences of the stages up to ``last`` (all), run one after another."""
        self.numpy.copyto(self._image, image)
        return [self._run(index) for index in range(len(self.stages) if last is None else last + 1)]

    def _run(self, index: int) -> float:
        self._calls[index]()
        return _finite(float(self._confidences[index].reshape(-1)[0]), self.stages[index])

    def leave(self, image: Any, last: int) -> Callable[[], Any]:
        """A function that runs an image up to a stage; every confidence is read on the way, as a decision does."""
        return lambda: self.confidences(image, last)

    def decide(self, image: Any, thresholds: List[float]) -> Tuple[int, Json]:
        """Run an image until it is sure: the stage at whose exit it leaves, and what the stages gave."""
        self.numpy.copyto(self._image, image)
        left, found = leave_at(self._run, thresholds), {}  # type: int, Json
        for results in self._results[: left + 1]:
            found.update(results)
        return left, found

    def prepare(self, session: Any, image: Any, others: Json) -> Callable[[], Any]:
        """A run of another graph that takes the image as the chain does."""
        held = self.numpy.zeros_like(image)
        call = session.prepare(dict(others, **{self.stages[0]["inputs"][0][0]: held}), session.outputs)

        def run() -> None:
            self.numpy.copyto(held, image)
            call()

        return run


class DeviceChain:
    """Stages as engines on one image, whose tensors stay on the device: the host reads one number per stage."""

    def __init__(self, sessions: List[Any], stages: List[Json]) -> None:
        self.sessions, self.stages, self.provider = sessions, stages, sessions[0].provider

    @property
    def note(self) -> str:
        """Why a stage is not launched as a CUDA graph; empty where all are."""
        return next((session.note for session in self.sessions if session.note), "")

    def clock(self, loop: Any) -> Any:
        """What times the runs of :meth:`leave`."""
        return loop.DeviceClock()

    def confidences(self, image: Any, last: Optional[int] = None) -> List[float]:
        """Confidences of the stages up to ``last`` (all), run one after another."""
        return self._run({self.stages[0]["inputs"][0][0]: image}, len(self.stages) - 1 if last is None else last)[0]

    def _run(self, feeds: Json, last: int) -> Tuple[List[float], float]:
        first, found = self.sessions[0], []
        first.load(feeds)
        begin, end = first.cuda.Event(), first.cuda.Event()
        begin.record(first.stream)
        for index in range(last + 1):
            self.sessions[index].enqueue()
            found.append(_finite(self.sessions[index].read_number("confidence"), self.stages[index]))
        end.record(first.stream)
        end.synchronize()
        return found, float(end.time_since(begin))

    def leave(self, image: Any, last: int) -> Callable[[], Any]:
        """A function that runs an image up to a stage and returns milliseconds, decisions included."""
        feeds = {self.stages[0]["inputs"][0][0]: image}
        return lambda: self._run(feeds, last)[1]

    def decide(self, image: Any, thresholds: List[float]) -> Tuple[int, Json]:
        """As :meth:`HostChain.decide`; what the last stage that ran gave is brought to the host."""
        self.sessions[0].load({self.stages[0]["inputs"][0][0]: image})

        def run(index: int) -> float:
            self.sessions[index].enqueue()
            return _finite(self.sessions[index].read_number("confidence"), self.stages[index])

        left, found = leave_at(run, thresholds), {}  # type: int, Json
        for session in self.sessions[: left + 1]:
            found.update(session.fetch())
        return left, found

    def prepare(self, session: Any, image: Any, others: Json) -> Callable[[], Any]:
        """A run of another engine on the image, which lies on the device."""
        return session.prepare(dict(others, **{self.stages[0]["inputs"][0][0]: image}), [])  # type: ignore[no-any-return]


def leave_at(run: Callable[[int], float], thresholds: List[float]) -> int:
    """Run stages, which give their confidence, until one reaches its threshold; the last one always does."""
    for index, threshold in enumerate(thresholds):
        if run(index) >= threshold:
            return index
    run(len(thresholds))
    return len(thresholds)


def _finite(confidence: float, stage: Json) -> float:
    # NaN reaches no threshold: the next exit would answer in silence.
    if not math.isfinite(confidence):
        raise AgentError("not_finite", "the confidence of exit %d is NaN or infinite" % stage["exit"])
    return confidence


class StageRunner:
    """The stages of a network one after another, as one session: for comparing, not for timing."""

    def __init__(self, sessions: List[Any], exits: List[int]) -> None:
        self.sessions, self.exits = sessions, exits

    def run(self, feeds: Json) -> Json:
        """Masks, and the logits and confidences of every exit, as ``logits/exit1`` and ``confidence/exit1``."""
        tensors, results = dict(feeds), {}
        for number, session in zip(self.exits, self.sessions):
            got = dict(session.run(tensors))
            for name in ("logits", "confidence"):
                results["%s/exit%d" % (name, number)] = got.pop(name)
            tensors = dict(tensors, **got)
            results.update(got)
        return results


class TensorRtSession:
    """A TensorRT engine, with pycuda for memory, streams and events.

    Inputs and outputs have one place each on the device. Where the build plan says so, a run is captured in a CUDA
    graph after its first execution and launched as a whole from then on; ``note`` says why where it is not.

    What a session ``before`` this one makes, and this one reads under the same name, it reads where it lies. Sessions
    of the same file share the engine that one of them put into ``loaded``, and with it the weights.
    """

    provider = "tensorrt"

    def __init__(
        self,
        path: str,
        library: Optional[str],
        device: Any,
        cuda_graph: bool,
        before: Optional[List[Any]] = None,
        loaded: Optional[Json] = None,
    ) -> None:
        self.device = device
        self.trt, self._log, messages = _tensorrt(library)
        import_or_refuse("pycuda")
        self.cuda = __import__("pycuda.driver", fromlist=["driver"])
        # Creates the process's context; pycuda ends it at exit.
        __import__("pycuda.autoinit")
        self.numpy = import_or_refuse("numpy")
        self.engine = None if loaded is None else loaded.get(path)
        if self.engine is None:
            with open(path, "rb") as stream:
                self.engine = self.trt.Runtime(self._log).deserialize_cuda_engine(stream.read())
        if self.engine is None:
            raise AgentError("build", "TensorRT cannot load the engine that it built: %s" % "; ".join(messages)[-2000:])
        if loaded is not None:
            loaded[path] = self.engine
        self.context = self.engine.create_execution_context()
        self.stream = before[0].stream if before else self.cuda.Stream()
        self.tensors = [
            (name, is_input, shape, self.numpy.dtype(device.dtype_name(self.trt, kind)))
            for name, is_input, shape, kind in device.engine_tensors(self.trt, self.engine)
        ]
        made = {name: memory for session in before or [] for name, memory in session.results.items()}
        self.own_inputs = [name for name, is_input, _, _ in self.tensors if is_input and name not in made]
        self._memory = {
            name: made[name]
            if is_input and name in made
            else self.cuda.mem_alloc(max(1, int(self.numpy.prod(shape)) * kind.itemsize))
            for name, is_input, shape, kind in self.tensors
        }
        self.results = {name: self._memory[name] for name, is_input, _, _ in self.tensors if not is_input}
        self._addresses = {name: int(memory) for name, memory in self._memory.items()}
        self._enqueue_on = device.enqueuer(self.trt, self.engine, self.context, self._addresses)
        self._loaded = None  # type: Optional[Json]
        self._graph = None  # type: Any
        self._capture_next = cuda_graph
        self.note = "the first run is not captured" if cuda_graph else "switched off"

    def load(self, feeds: Json) -> None:
        """Put inputs on the device, unless they are those that lie there already."""
        if self._loaded is feeds:
            return
        self.put({name: feeds[name] for name in self.own_inputs})
        self._loaded = feeds

    def put(self, arrays: Json) -> None:
        """Put some of the inputs on the device."""
        for name, is_input, shape, kind in self.tensors:
            if is_input and name in arrays:
                array = self.numpy.ascontiguousarray(arrays[name], dtype=kind).reshape(shape)
                self.cuda.memcpy_htod(self._memory[name], array)

    def _enqueue_once(self) -> None:
        if not self._enqueue_on(int(self.stream.handle)):
            raise AgentError("run", "TensorRT could not run the engine; see the log")

    def enqueue(self) -> None:
        """Put one run on the stream."""
        if self._graph is not None:
            self._graph.launch()
            return
        self._enqueue_once()
        if self._capture_next:
            # Only a second run can be captured: the first may allocate.
            self._capture_next = False
            self.stream.synchronize()
            try:
                self._graph = self.device.CudaGraph(self._enqueue_once, self.stream)
                self.note = ""
            except self.device.RefusedError as error:
                self.note = str(error)

    def run(self, feeds: Json) -> Json:
        """All outputs."""
        self.load(feeds)
        self.enqueue()
        return self.fetch()

    def fetch(self) -> Json:
        """All outputs of the last run, once the stream has come that far."""
        return self.read([name for name, is_input, _, _ in self.tensors if not is_input])

    def read(self, names: List[str]) -> Json:
        """Some outputs of the last run, once the stream has come that far."""
        self.stream.synchronize()
        results = {}
        for name, is_input, shape, kind in self.tensors:
            if not is_input and name in names:
                results[name] = self.numpy.empty(shape, kind)
                self.cuda.memcpy_dtoh(results[name], self._memory[name])
        return results

    def read_number(self, name: str) -> float:
        """The first number of an output, once the stream has come that far."""
        self.stream.synchronize()
        shape, kind = next(tensor[2:] for tensor in self.tensors if tensor[0] == name)
        value = self.numpy.empty(shape, kind)
        self.cuda.memcpy_dtoh(value, self._memory[name])
        return float(value.reshape(-1)[0])

    def clock(self, loop: Any) -> Any:
        """What times the runs of :meth:`prepare`."""
        return loop.DeviceClock()

    def prepare(self, feeds: Json, outputs: List[str]) -> Callable[[], Any]:
        """A function that runs once and returns milliseconds between two events around the run."""
        begin, end = self.cuda.Event(), self.cuda.Event()

        def call() -> float:
            self.load(feeds)
            begin.record(self.stream)
            self.enqueue()
            end.record(self.stream)
            end.synchronize()
            return float(end.time_since(begin))

        return call

    def layer_times(self, feeds_list: List[Json], runs: int) -> List[List[Tuple[str, float]]]:
        """Fastest time of every layer in ms, per entry of ``feeds_list``."""
        result = []
        for feeds in feeds_list:
            self.load(feeds)
            result.append(self.layers(runs))
        return result

    def layers(self, runs: int) -> List[Tuple[str, float]]:
        """Fastest time of every layer in ms on what lies on the device."""
        try:
            times = self.device.layer_times(self.trt, self.engine, self._addresses, self.stream, runs)
        except self.device.RefusedError as error:
            raise AgentError("run", "%s; see the log" % error)
        return times  # type: ignore[no-any-return]


class PartsChain:
    """The engines and host programs of a network in turn, as one session.

    What one engine makes for another stays on the device; the host reads what its programs need.

    Args:
        steps: Session or host program of each part, in order.
        parts: Of each its ``inputs`` and ``outputs`` (names), and ``program`` where the host computes it.
        outputs: What the network gives.
    """

    provider = TensorRtSession.provider

    def __init__(self, steps: List[Any], parts: List[Json], outputs: List[str]) -> None:
        self._steps, self._parts, self._outputs = steps, parts, outputs
        self._engines = [step for step, part in zip(steps, parts) if "program" not in part]
        programs = [part for part in parts if "program" in part]
        self._of_host = {name for part in programs for name in part["outputs"]}
        self._for_host = {name for part in programs for name in part["inputs"]}
        self._loaded = None  # type: Optional[Json]

    @property
    def note(self) -> str:
        """Why an engine is not launched as a CUDA graph; empty where all are."""
        return next((engine.note for engine in self._engines if engine.note), "")

    def load(self, feeds: Json) -> None:
        """Put the network's inputs on the device, unless they are those that lie there already."""
        if self._loaded is feeds:
            return
        for engine in self._engines:
            engine.put({name: feeds[name] for name in engine.own_inputs if name in feeds})
        self._loaded = feeds

    def run_parts(self, feeds: Json) -> Tuple[Json, List[float]]:
        """Run on inputs that lie on the device: what the host has afterwards, and the milliseconds of each part.

        A part lasts from the moment at which the one before it is done until the host has what it needs of it.
        """
        values, taken = dict(feeds), []
        for step, part in zip(self._steps, self._parts):
            start = time.perf_counter()
            if "program" in part:
                values.update(step.run({name: values[name] for name in part["inputs"]}))
            else:
                step.put({name: values[name] for name in step.own_inputs if name in self._of_host})
                step.enqueue()
                values.update(step.read([name for name in part["outputs"] if name in self._for_host]))
            taken.append((time.perf_counter() - start) * 1000)
        return values, taken

    def run(self, feeds: Json) -> Json:
        """All outputs of the network, masks included."""
        self.load(feeds)
        values = self.run_parts(feeds)[0]
        for engine in self._engines:
            values.update(engine.read([name for name in self._outputs if name not in values]))
        return {name: values[name] for name in self._outputs}

    def clock(self, loop: Any) -> Any:
        """What times the runs of :meth:`prepare`."""
        return loop.DeviceClock()

    def prepare(self, feeds: Json, outputs: List[str]) -> "PartsRun":
        """A run on inputs that lie on the device, until the last part is done."""
        return PartsRun(self, feeds)

    def layer_times(self, feeds_list: List[Json], runs: int) -> List[List[Any]]:
        """As of a session, part by part: layers of an engine, or the fastest run of a host program in ms."""
        result = []
        for feeds in feeds_list:
            self.load(feeds)
            # Every engine finds what it reads where a whole run has left it.
            values, result_of = self.run_parts(feeds)[0], []  # type: Json, List[Any]
            for step, part in zip(self._steps, self._parts):
                if "program" not in part:
                    result_of.append(step.layers(runs))
                    continue
                given, times = {name: values[name] for name in part["inputs"]}, []
                for _ in range(runs):
                    start = time.perf_counter()
                    step.run(given)
                    times.append((time.perf_counter() - start) * 1000)
                result_of.append(min(times))
            result.append(result_of)
        return result


class PartsRun:
    """A run of a chain on one input; returns milliseconds by the wall clock and remembers those of its parts."""

    def __init__(self, chain: PartsChain, feeds: Json) -> None:
        self._chain, self._feeds = chain, feeds
        self.taken = []  # type: List[Tuple[float, List[float]]]

    def __call__(self) -> float:
        self._chain.load(self._feeds)
        start = time.perf_counter()
        parts = self._chain.run_parts(self._feeds)[1]
        ms = (time.perf_counter() - start) * 1000
        self.taken.append((ms, parts))
        return ms


def parts_ms(runs: List[PartsRun], visits: List[Any]) -> List[float]:
    """Median milliseconds of every part, over the runs that the loop counted."""
    counted = {ms for visit in visits for ms in visit.ms}
    taken = [parts for run in runs for ms, parts in run.taken if ms in counted]
    return [statistics.median(times) for times in zip(*taken)]


def open_sessions(job: Job, spec: Json, names: List[str], profile: bool = False, linked: bool = False) -> Json:
    """Sessions by name ("static", "dynamic", "forced") of engines that earlier jobs built.

    Linked ones are the stages of a network: on a device, each reads what the ones before it made where it lies.
    """
    paths = _engine_paths(job, spec, names)
    if spec["runtime"] == "onnxruntime":
        return {name: OnnxRuntimeSession(path, spec["threads"], profile) for name, path in paths.items()}
    library = None if spec.get("plugins") is None else job.output_of(spec["plugins"], spec["library"])
    device = job.module(spec, "tensorrt_device")
    opened = {}  # type: Dict[str, TensorRtSession]
    for name in [name for name in names if name in paths]:
        before = list(opened.values()) if linked else None
        opened[name] = TensorRtSession(paths[name], library, device, spec["cuda_graph"], before)
    return opened


def _engine_paths(job: Job, spec: Json, names: List[str]) -> Dict[str, str]:
    paths, gone = {}, None  # type: Dict[str, str], Optional[AgentError]
    for name in names:
        if name in spec["engines"]:
            try:
                paths[name] = job.output_of(spec["engines"][name], "engine")
            except AgentError as error:
                gone = error
    if gone is not None:
        # After a look at all of them: whoever builds again builds everything that is gone.
        raise gone
    return paths


def open_chains(job: Job, spec: Json, names: List[str]) -> Dict[str, PartsChain]:
    """Chains of engines and host programs: ``spec["chains"]`` has the parts of each, by name.

    A part has ``inputs`` and ``outputs`` (names), and ``engine`` (its name) or ``program`` (SHA-256 of its file).
    """
    chains = {name: spec["chains"][name] for name in names if name in spec["chains"]}
    engines = sorted({part["engine"] for parts in chains.values() for part in parts if "engine" in part})
    paths = _engine_paths(job, spec, engines)
    library = None if spec.get("plugins") is None else job.output_of(spec["plugins"], spec["library"])
    device, programs = job.module(spec, "tensorrt_device"), job.module(spec, "host_program")
    opened, loaded = {}, {}  # type: Dict[str, PartsChain], Json
    for name, parts in chains.items():
        steps, before = [], []  # type: List[Any], List[TensorRtSession]
        for part in parts:
            if "program" in part:
                try:
                    steps.append(programs.HostProgram.load(job.store.checked(part["program"])))
                except programs.ProgramError as error:
                    raise AgentError("build", str(error))
                continue
            path = paths[part["engine"]]
            steps.append(TensorRtSession(path, library, device, spec["cuda_graph"], list(before), loaded))
            before.append(steps[-1])
        made = {made for part in parts for made in part["outputs"]}
        opened[name] = PartsChain(steps, parts, [output for output in spec["results"] if output in made])
    return opened


def open_chain(job: Job, spec: Json) -> Any:
    """The stages of a network that exits early, linked: ``spec["stages"]`` names the engine of each."""
    names = [stage["engine"] for stage in spec["stages"]]
    sessions = open_sessions(job, spec, names, linked=True)
    kind = HostChain if spec["runtime"] == "onnxruntime" else DeviceChain
    return kind([sessions[name] for name in names], spec["stages"])


def open_networks(job: Job, spec: Json, names: List[str]) -> Json:
    """Sessions or chains by name ("static", "dynamic", "forced")."""
    return open_chains(job, spec, names) if "chains" in spec else open_sessions(job, spec, names)


def open_compared(job: Job, spec: Json) -> Json:
    """What is compared: "dynamic", "forced" and, where there is one, "static"; of stages, runners of all of them."""
    if "stages" not in spec:
        return open_networks(job, spec, ["dynamic", "forced", "static"])
    kinds = {"dynamic": "engine", "forced": "forced"}
    names = {kind: [stage[key] for stage in spec["stages"]] for kind, key in kinds.items()}
    sessions = open_sessions(job, spec, sorted(set(sum(names.values(), ["static"]))))
    exits = [stage["exit"] for stage in spec["stages"]]
    networks = {kind: StageRunner([sessions[name] for name in own], exits) for kind, own in names.items()}
    return dict(networks, static=sessions["static"])


# ---------------------------------------------------------------- verification


NOT_FINITE = 1e30  # The error of what is NaN or infinite: JSON knows neither.


def job_verify(job: Job, spec: Json) -> Json:
    """Compare with PyTorch's results, as ``dyndeploy verify`` does: masks first, then outputs under equal masks.

    ``spec``: ``runtime``, ``engines`` (keys by "dynamic", "forced" and, where there is one, "static"),
    ``reference`` (SHA-256 of reference.npz), ``batch``, ``inputs`` and ``outputs`` (names), ``masks``, ``tolerance``
    (``output``, ``margin`` and ``ties``: from the host's table of precisions), ``threads``. Of a network that exits
    early also ``stages`` (the ``exit`` of each, and its engines ``engine`` and ``forced``) and ``static_outputs`` (the
    output of the static twin by the one that it is compared with) and ``reference_inputs`` (what an input is called in
    reference.npz). Without masks nothing is forced. Of a network in parts ``chains`` and ``results`` as for
    :func:`open_chains`. With ``compared_there`` only masks are compared here: outputs come back for ``samples`` of the
    reference, as ``outputs``: an .npz with ``<equal, random, everything, static or free>/<name>``, in base64.
    """
    numpy = import_or_refuse("numpy")
    job.report("loading the engines", 0.0)
    with open(job.store.checked(spec["reference"]), "rb") as stream:
        archive = numpy.load(stream, allow_pickle=False)
        reference = {name: archive[name] for name in archive.files}
    sessions = open_compared(job, spec)
    inputs, batch, masks, outputs = spec["inputs"], spec["batch"], spec["masks"], spec["outputs"]
    tolerance = spec["tolerance"]
    stored = spec.get("reference_inputs") or {name: name for name in inputs}
    wanted = list(stored.values())
    for name in masks + outputs:
        wanted += [name, "forced/" + name] if masks else [name]
    lacking = sorted(set(wanted) - set(reference))
    count = 0 if lacking else len(reference[stored[inputs[0]]])
    elsewhere = spec.get("compared_there", False)
    if elsewhere:
        count = min(count, spec["samples"])
        reference = {name: value[:count] for name, value in reference.items()}
    if not count or count % batch:
        raise AgentError("reference", "reference.npz cannot be used: it lacks %s" % (", ".join(lacking) or "inputs"))

    def run(session: Any, forced: Optional[Callable[[str, Any], Any]]) -> Json:
        parts = {}  # type: Dict[str, List[Any]]
        for start in range(0, count, batch):
            rows = slice(start, start + batch)
            feeds = {name: reference[stored[name]][rows] for name in inputs}
            if forced is not None:
                feeds.update({"forced/" + name: forced(name, rows) for name in masks})
            for name, value in session.run(feeds).items():
                kind = value.dtype if elsewhere and name in outputs else numpy.float32
                parts.setdefault(name, []).append(numpy.array(value, dtype=kind))
        return {name: numpy.concatenate(values) for name, values in parts.items()}

    def error(got: Any, expected: Any) -> float:
        if not (numpy.isfinite(got).all() and numpy.isfinite(expected).all()):
            return NOT_FINITE
        return float(numpy.abs(got - expected).max() / max(float(numpy.abs(expected).max()), 1e-12))

    checks, found = [], {}  # type: List[Json], Json

    def check(kind: str, title: str, got: Json, expected: Json, twins: Json) -> None:
        """Outputs with this title, by the names of those that they are compared with."""
        for name in sorted(twins):
            if elsewhere:
                found["%s/%s" % (kind, name)] = got[twins[name]]
                continue
            value = error(got[twins[name]], expected[name])
            # A tie may fall the other way and change everything after it.
            passed = value <= tolerance["output"] or (kind == "free" and tied > 0 and value < NOT_FINITE)
            checks.append({"name": title % name, "passed": passed, "relative_error": value})

    own = {name: name for name in outputs}

    job.report("outputs under equal masks", 0.1)
    equal = run(sessions["forced"], lambda name, rows: reference[name][rows])
    bits = flipped = tied = 0
    for name in masks:
        differs = (equal[name] > 0.5) != (reference[name] > 0.5)
        bits += differs.size
        margin = numpy.abs(reference.get("margin/" + name, numpy.full(differs.shape, numpy.inf)))
        finite = margin[numpy.isfinite(margin)]
        close = margin <= tolerance["margin"] * max(float(finite.max()) if finite.size else 0.0, 1e-6)
        tied += int((differs & close).sum())
        flipped += int((differs & ~close).sum())
    if masks:
        checks.append(
            {
                "name": "masks",
                "passed": flipped == 0 and tied <= max(1.0, tolerance["ties"] * bits),
                "bits": bits,
                "flipped": flipped,
                "tied": tied,
            }
        )
        check("equal", "%s under equal masks", equal, reference, own)
        job.report("outputs under random masks", 0.4)
        random = run(sessions["forced"], lambda name, rows: reference["forced/" + name][rows])
        check("random", "%s under random masks", random, {name: reference["forced/" + name] for name in outputs}, own)
    if "static" in sessions:
        job.report("the static twin", 0.6)
        everything = run(sessions["forced"], lambda name, rows: numpy.ones_like(reference[name][rows]))
        static = run(sessions["static"], None)
        if elsewhere:
            check("everything", "", everything, {}, own)
        check("static", "static twin: %s", static, everything, spec.get("static_outputs") or own)
    job.report("as deployed", 0.8)
    free = run(sessions["dynamic"], None)
    check("free", "%s as deployed", free, reference, own)
    result = {"checks": checks, "files": {}}  # type: Json
    if elsewhere:
        result["outputs"] = packed(job, found)
    if "stages" in spec:
        names = ["confidence/exit%d" % stage["exit"] for stage in spec["stages"]]
        finite = all(numpy.isfinite(free[name]).all() for name in names)
        result["confidences"] = [free[name].reshape(-1).tolist() for name in names] if finite else None
    return result


# ---------------------------------------------------------------- profiling

STATIC_ENTRY, WHOLE_ENTRY = "static twin", "without exits"  # In the list of measured energies.
LAYER_RUNS = 5
LAYER_INPUTS = 8
TELL_SECONDS = 1.0  # Writing the state costs the disk's time, which may be the measurement's.


def job_profile(job: Job, spec: Json) -> Json:
    """Time the dynamic network next to its static twin with the loop that ``dyndeploy profile`` runs on the host.

    ``spec``: ``runtime``, ``engines`` ("static", "dynamic", "forced"), ``content`` (SHA-256 of an .npz with
    ``input/<i>/<name>`` and ``forced/<configuration>/<draw>/<mask>``), ``batches``, ``draws`` per forced configuration
    (a list), ``inputs`` and ``outputs`` (names), ``masks``, ``repeats`` (or None), ``min_seconds``, ``warmup``,
    ``threads``, ``modules`` (SHA-256 of ``loop``, and of ``tensorrt_device`` for TensorRT). Of a network in parts also
    ``chains`` and ``results`` as for :func:`open_chains`.

    The last configuration, after the forced ones, is the data's own masks.
    """
    numpy = import_or_refuse("numpy")
    loop = job.module(spec, "loop")
    job.report("loading the engines", 0.0)
    with open(job.store.checked(spec["content"]), "rb") as stream:
        archive = numpy.load(stream, allow_pickle=False)
        arrays = {name: archive[name] for name in archive.files}
    masks, outputs = spec["masks"], spec["outputs"]
    batches = [
        {name: arrays["input/%d/%s" % (index, name)] for name in spec["inputs"]} for index in range(spec["batches"])
    ]
    sessions = open_networks(job, spec, ["static", "dynamic", "forced"])
    static, dynamic, forced = sessions["static"], sessions["dynamic"], sessions["forced"]

    twins = [static.prepare(batch, outputs) for batch in batches]
    pairs, feeds_lists = [], []
    for number, draws in enumerate(spec["draws"]):
        feeds_list = []
        for draw in range(draws):
            feeds = dict(batches[draw % len(batches)])
            feeds.update({"forced/" + m: arrays["forced/%d/%d/%s" % (number, draw, m)] for m in masks})
            feeds_list.append(feeds)
        runs = [forced.prepare(feeds, outputs) for feeds in feeds_list]
        own_twins = [twins[draw % len(batches)] for draw in range(draws)]
        pairs.append(loop.Paired("forced masks %d" % (number + 1), runs, own_twins))
        feeds_lists.append(feeds_list)
    own = []
    for batch in batches:
        values = dynamic.run(batch)
        for session, results in ((dynamic, values), (static, static.run(batch))):
            broken = sorted(name for name in outputs if not numpy.isfinite(results[name]).all())
            if broken:
                which = "static twin" if session is static else "network"
                raise AgentError("not_finite", "the %s computes NaN or infinite %s" % (which, ", ".join(broken)))
        own.append({name: numpy.ascontiguousarray(values[name], dtype=numpy.float32) for name in masks})
    runs = [dynamic.prepare(batch, outputs) for batch in batches]
    pairs.append(loop.Paired("the data's own masks", runs, twins))
    feeds_lists.append(
        [
            dict({"forced/" + name: value for name, value in values.items()}, **batch)
            for batch, values in zip(batches, own)
        ]
    )

    clock = dynamic.clock(loop)
    rounds, sensors = _watched(
        lambda: loop.time_rounds(pairs, clock, spec["repeats"], spec["min_seconds"], spec["warmup"], _teller(job))
    )
    parts = None
    if "chains" in spec:
        parts = [
            {"static": parts_ms(twins, pair.twin_visits), "dynamic": parts_ms(pair.runs, pair.visits)} for pair in pairs
        ]
    entries = [(STATIC_ENTRY, twins)] + [(pair.label, pair.runs) for pair in pairs]
    energy = measure_energy(entries, spec.get("energy_seconds", 0), spec["runtime"] == "tensorrt", job.report)
    job.report("timing the layers", 0.9)
    return {
        "files": {},
        "energy": energy,
        "rounds": rounds,
        "provider": dynamic.provider,
        "note": dynamic.note,
        "pairs": [pair.to_json() for pair in pairs],
        "parts": parts,
        "layers": _layers(job, spec, sessions, feeds_lists),
        "own_masks": [
            {
                name: base64.b64encode(numpy.packbits(value.reshape(-1) > 0.5).tobytes()).decode("ascii")
                for name, value in values.items()
            }
            for values in own
        ],
        "sensors": sensors,
        "clocks_after": _clocks("/"),
    }


def _teller(job: Job) -> Report:
    """A report that writes seldom."""
    told, last = 0.0, ""

    def tell(message: str, fraction: float) -> None:
        nonlocal told, last
        step = message.partition(" ")[0]
        if step != last or time.monotonic() - told > TELL_SECONDS:
            job.report(message, fraction)
            told, last = time.monotonic(), step

    return tell


def _watched(measure: Callable[[], Any]) -> Tuple[Any, Json]:
    """What a measurement gives, and the board's sensors meanwhile."""
    monitor = Monitor(gpu=True)
    try:
        result = measure()
    finally:
        sensors = monitor.stop()
    return result, sensors


IDLE_SECONDS = 3.0
FIRST_READING_SECONDS = 5.0  # Until the sensor's program has started.
SETTLE_SECONDS = 0.5  # Regulators and the sensors' own averaging lag behind.
POWER_MS = 100
LEAST_READINGS = 3

Measured = Tuple[str, List[Callable[[], Any]]]


def measure_energy(entries: List[Measured], seconds: float, gpu: bool, report: Report) -> Optional[Json]:
    """Power while each of several things runs, one after another without a pause, and while nothing does.

    Args:
        entries: Name, and its runs on one input each.
        seconds: How long each runs.
        gpu: Whether a GPU computes.
        report: Is told how far it is.

    Returns:
        ``source`` (the program that read the sensor), ``rail``, ``idle_mw`` and ``entries``: ``name``, mean
        ``power_mw``, ``ms`` of a run by the wall clock, ``runs`` and ``readings``. None where no sensor can be read.
    """
    if seconds <= 0:
        return None
    monitor = Monitor(POWER_MS, gpu)
    if monitor.source is None:
        return None
    measured = []
    try:
        report("measuring the power of an idle board", 0.0)
        latest = time.monotonic() + FIRST_READING_SECONDS
        while not monitor.samples and time.monotonic() < latest:
            time.sleep(0.02)
        begin = time.monotonic()
        time.sleep(min(IDLE_SECONDS, seconds))
        idle = monitor.power(begin, time.monotonic())
        if len(idle) < LEAST_READINGS:
            return None
        for number, (name, runs) in enumerate(entries):
            report("measuring the power of %s" % name, number / len(entries))
            settled = time.monotonic() + min(SETTLE_SECONDS, seconds / 4)
            while time.monotonic() < settled:
                runs[0]()
            begin, count = time.monotonic(), 0
            while time.monotonic() - begin < seconds:
                for run in runs:  # Every input as often as any other.
                    run()
                count += len(runs)
            end = time.monotonic()
            readings = monitor.power(begin, end)
            if len(readings) < LEAST_READINGS:
                return None
            power, ms = statistics.mean(readings), (end - begin) * 1000 / count
            measured.append({"name": name, "power_mw": power, "ms": ms, "runs": count, "readings": len(readings)})
        rail = next(sample["total_rails"] for sample in monitor.samples if "total_rails" in sample)
        return {"source": monitor.source, "rail": rail, "idle_mw": statistics.mean(idle), "entries": measured}
    finally:
        monitor.stop()


def job_profile_exits(job: Job, spec: Json) -> Json:
    """Time images that leave at each exit next to the network without exits, with the loop of the host.

    ``spec``: ``runtime``, ``engines`` (those of the stages, "static", "every" and, where there is one, "branched"),
    ``stages`` (per stage ``exit``, ``engine``, ``inputs`` and ``outputs`` with shapes for one image and types),
    ``content`` (SHA-256 of an .npz with ``images``), ``timed`` (so many of them are timed), ``repeats`` (or None),
    ``min_seconds``, ``warmup``, ``threads``, ``modules`` as for :func:`job_profile`.
    """
    numpy = import_or_refuse("numpy")
    loop = job.module(spec, "loop")
    job.report("loading the engines", 0.0)
    with open(job.store.checked(spec["content"]), "rb") as stream:
        images = numpy.load(stream, allow_pickle=False)["images"]
    images = [numpy.ascontiguousarray(images[index : index + 1]) for index in range(len(images))]
    chain = open_chain(job, spec)
    others = open_sessions(job, spec, ["static", "every", "branched"])
    name, timed = spec["stages"][0]["inputs"][0][0], images[: spec["timed"]]
    for image in timed:
        for label in ("static", "every"):
            results = others[label].run({name: image})
            broken = sorted(key for key, value in results.items() if not numpy.isfinite(value).all())
            if broken:
                raise AgentError("not_finite", "the network without decisions computes NaN or infinite %s" % broken[0])
    # Nothing is as likely as 2: no threshold of the graph with branches is ever reached.
    never = {"thresholds": numpy.full(len(spec["stages"]) - 1, 2, numpy.float32)}
    branched = None
    if "branched" in others:
        branched = [chain.prepare(others["branched"], image, never) for image in timed]
    confidences = [chain.confidences(image) for image in images]
    (rounds, exits, staging, branches), sensors = _watched(
        lambda: loop.time_exits(
            ["exit %d" % stage["exit"] for stage in spec["stages"]],
            [[chain.leave(image, last) for image in timed] for last in range(len(spec["stages"]))],
            [chain.prepare(others["static"], image, {}) for image in timed],
            [chain.prepare(others["every"], image, {}) for image in timed],
            branched,
            chain.clock(loop),
            spec["repeats"],
            spec["min_seconds"],
            spec["warmup"],
            _teller(job),
        )
    )
    energy = measure_energy(
        [(WHOLE_ENTRY, exits[0].twin_runs)] + [(pair.label, pair.runs) for pair in exits],
        spec.get("energy_seconds", 0),
        spec["runtime"] == "tensorrt",
        job.report,
    )
    return {
        "files": {},
        "energy": energy,
        "rounds": rounds,
        "provider": chain.provider,
        "note": chain.note,
        "exits": [pair.to_json() for pair in exits],
        "staging": staging.to_json(),
        "branched": None if branches is None else branches.to_json(),
        "confidences": confidences,
        "sensors": sensors,
        "clocks_after": _clocks("/"),
    }


def job_run(job: Job, spec: Json) -> Json:
    """Run inputs with the engines that are profiled; what is asked for of it comes back.

    ``spec``: ``runtime``, ``engines`` ("dynamic", or those of the stages), ``stages`` as for :func:`job_profile_exits`
    with ``thresholds`` (least confidence of each but the last), or none; ``content`` (SHA-256 of an .npz with
    ``input/<i>/<name>``), ``batches``, ``inputs`` and ``keep`` (names), ``threads``, ``modules``. Of a network in parts
    also ``chains`` and ``results`` as for :func:`open_chains`.

    The result: ``runs``, with ``ms`` and ``exit`` (its index; None without stages) or ``error`` of each, ``provider``,
    ``note`` and ``results``: an .npz with ``<i>/<name>``, in base64.
    """
    numpy = import_or_refuse("numpy")
    job.report("loading the engines", 0.0)
    with open(job.store.checked(spec["content"]), "rb") as stream:
        archive = numpy.load(stream, allow_pickle=False)
        arrays = {name: archive[name] for name in archive.files}
    stages = spec.get("stages")
    if stages:
        chain = open_chain(job, spec)
        provider, note = chain.provider, chain.note
    else:
        session = open_networks(job, spec, ["dynamic"])["dynamic"]
        provider, note = session.provider, session.note
    results, runs = {}, []  # type: Json, List[Json]
    for index in range(spec["batches"]):
        feeds = {name: arrays["input/%d/%s" % (index, name)] for name in spec["inputs"]}
        # The very first run allocates memory: it is not timed.
        try:
            for _ in range(2 if not runs else 1):
                start = time.perf_counter()
                if stages:
                    left, found = chain.decide(feeds[spec["inputs"][0]], spec["thresholds"])
                else:
                    left, found = None, session.run(feeds)
                ms = (time.perf_counter() - start) * 1000
        except AgentError as error:
            if error.kind != "not_finite":
                raise
            runs.append({"error": str(error)})
            continue
        runs.append({"ms": ms, "exit": left})
        for name in spec["keep"]:
            results["%d/%s" % (index, name)] = numpy.array(found[name])
        job.report("running", (index + 1) / spec["batches"])
    content = packed(job, results)
    # Images are not kept: what was sent for this job alone goes with it.
    os.unlink(job.store.path(spec["content"]))
    return {"files": {}, "runs": runs, "provider": provider, "note": note, "results": content}


def packed(job: Job, arrays: Json) -> str:
    """Arrays by name as an .npz in base64."""
    path = os.path.join(job.out, "results.npz")
    with open(path, "wb") as stream:
        import_or_refuse("numpy").savez_compressed(stream, **arrays)
    with open(path, "rb") as stream:
        content = base64.b64encode(stream.read()).decode("ascii")
    os.unlink(path)
    return content


def _layers(job: Job, spec: Json, sessions: Json, feeds_lists: List[List[Json]]) -> List[Json]:
    """Layer times of both networks, per configuration and input."""
    if spec["runtime"] == "onnxruntime":
        sessions = open_sessions(job, spec, ["static", "forced"], profile=True)
    chosen = [feeds_list[:LAYER_INPUTS] for feeds_list in feeds_lists]
    flat = [feeds for group in chosen for feeds in group]
    dynamic = sessions["forced"].layer_times(flat, LAYER_RUNS)
    twins = sessions["static"].layer_times(flat, LAYER_RUNS)
    result, position = [], 0
    for group in chosen:
        rows = slice(position, position + len(group))
        position += len(group)
        result.append({"static": twins[rows], "dynamic": dynamic[rows]})
    return result


# ---------------------------------------------------------------- one job at a time


def take_turn() -> Optional[socket.socket]:
    """The right to load this machine, held until the socket is closed; None while another process has it.

    An engine is built from timings, and a compiler disturbs a measurement: so one job of all users runs at a time.
    """
    turn = socket.socket(socket.AF_UNIX)
    try:
        turn.bind(b"\0" + TURN.encode("ascii"))
        turn.listen(64)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            turn.close()
            return None
        # A system without such sockets: there nobody waits.
    return turn


def wait_for_turn(job: Job) -> socket.socket:
    """Wait until no other job runs on this machine, and say meanwhile whose does."""
    while True:
        turn = take_turn()
        if turn is not None:
            return turn
        with socket.socket(socket.AF_UNIX) as asker:
            try:
                asker.settimeout(1.0)
                asker.connect(b"\0" + TURN.encode("ascii"))
                pid, user, _ = struct.unpack("3i", asker.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
                owner = "process %d of user %s" % (pid, user_name(user))
                job.report("%s (%s)" % (WAITING, owner), 0.0)
                asker.settimeout(None)
                asker.recv(1)  # The owner never sends: this ends when it does.
            except OSError:
                time.sleep(0.1)


def user_name(number: int) -> str:
    """Name of a user; the number where there is none."""
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


JOBS = {
    "plugins": job_plugins,
    "engine": job_engine,
    "verify": job_verify,
    "profile": job_profile,
    "profile_exits": job_profile_exits,
    "run": job_run,
}


def run_job(work: str, key: str, lock: int) -> int:
    """Main of a detached job."""
    os.set_inheritable(lock, False)

    def ended(number: int, frame: Any) -> None:
        # Also ends the compiler that a build has started: a job leads its own process group.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.killpg(0, signal.SIGTERM)
        os._exit(128 + number)

    signal.signal(signal.SIGTERM, ended)
    job = Job(work, key)
    content = read_json(job.jobs.path(key, "spec.json"))
    try:
        with wait_for_turn(job):
            result = JOBS[content["kind"]](job, content["spec"])
        job.report("done", 1.0)
        write_json(job.jobs.path(key, "result.json"), result)
        return 0
    except AgentError as error:
        failure = {"kind": error.kind, "message": str(error)}
    except MemoryError:
        failure = {"kind": "memory", "message": "the machine has too little free memory"}
    except OSError as error:
        kind = "disk_full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "system"
        failure = {"kind": kind, "message": str(error)}
        traceback.print_exc()
    except Exception as error:
        failure = {"kind": "bug", "message": "%s: %s" % (type(error).__name__, error)}
        traceback.print_exc()
    write_json(job.jobs.path(key, "failure.json"), failure)
    return 1


# ---------------------------------------------------------------- serving


def frames(payload: bytes) -> Iterator[bytes]:
    """An answer as it is sent: lines that each carry a piece, its checksum, and whether it is the last one.

    The payload holds neither line ends nor "<": a line that was broken off hides no frame behind it.
    """
    for start in range(0, max(len(payload), 1), PIECE_BYTES):
        piece = payload[start : start + PIECE_BYTES]
        more = b"+" if start + PIECE_BYTES < len(payload) else b"."
        yield b"<dyndeploy %s %08x %s\n" % (more, zlib.crc32(piece) & 0xFFFFFFFF, piece)


class Agent:
    """Answers requests."""

    def __init__(self, work: str, source: bytes) -> None:
        work = os.path.expanduser(work)
        if work.startswith("~"):
            raise OSError("this user has no home folder for %s: name a folder on the board (device add --work)" % work)
        self.work = os.path.abspath(work)
        os.makedirs(self.work, mode=0o700, exist_ok=True)
        self.store = Store(os.path.join(self.work, "store"))
        self.jobs = Jobs(self.work)
        self.sha256 = hashlib.sha256(source).hexdigest()
        # Jobs outlive the connection that brought this text: they need it as a file.
        self.path = os.path.join(self.work, "agent-%s.py" % self.sha256[:16])
        if _sha256_or_none(self.path) != self.sha256:
            write_atomically(self.path, source)

    def greeting(self) -> Json:
        """First line."""
        return {
            "greeting": GREETING,
            "protocol": PROTOCOL,
            "agent": self.sha256,
            "python": platform.python_version(),
            "work": self.work,
        }

    def answer(self, request: Json) -> Any:
        """Result of one request; raises :class:`AgentError`."""
        command = request.get("command")
        if command == "probe":
            return probe(self.work)
        if command == "have":
            return {sha256: self.store.have(sha256) for sha256 in request["files"]}
        if command == "put":
            data = base64.b64decode(request["data"])
            if len(data) > LARGEST_CHUNK or zlib.crc32(data) & 0xFFFFFFFF != request["crc32"]:
                raise AgentError("protocol", "a piece of a file was damaged on its way")
            return self.store.put(request["sha256"], request["size"], request["offset"], data)
        if command == "start":
            return self.jobs.start(request["kind"], request["spec"], self.path)
        if command == "poll":
            return self.jobs.poll(request["key"], request.get("wait", 0.0), request.get("seen"))
        if command == "cancel":
            return self.jobs.cancel(request["key"])
        if command == "forget":
            return self.jobs.forget(request["key"])
        if command == "tail":
            found = file_tail(request["path"], request.get("seen"))
            return dict(found, data=base64.b64encode(found["data"]).decode("ascii"))
        if command == "running":
            return self.jobs.running()
        if command == "clean":
            return self._clean()
        raise AgentError("protocol", "there is no command %r" % str(command)[:80])

    def _clean(self) -> Json:
        running = self.jobs.running()
        if running:
            raise AgentError("busy", "%d job(s) are still running" % len(running))
        before = folder_size(self.work)
        for name in os.listdir(self.work):
            path = os.path.join(self.work, name)
            if name in ("store", "jobs"):
                shutil.rmtree(path, ignore_errors=True)
                os.makedirs(path, exist_ok=True)
            elif re.match(r"(timing|tactics)-\w+\.cache\Z|agent-\w+\.py\Z", name) and path != self.path:
                os.unlink(path)
        return {"freed_mb": (before - folder_size(self.work)) >> 20}


def lines(stream: Any) -> Iterator[bytes]:
    """Lines of a binary stream, until it ends."""
    while True:
        line = stream.readline()
        if not line:
            return
        yield line


def serve(work: str, source: bytes) -> int:
    """Answer requests from stdin until it ends."""
    answers = os.dup(1)
    # What else this process or its children print goes where errors go.
    os.dup2(2, 1)

    def send(value: Json) -> None:
        text = json.dumps(value, allow_nan=False).replace("<", "\\u003c")
        for data in frames(text.encode("ascii")):
            while data:
                data = data[os.write(answers, data) :]

    try:
        try:
            agent = Agent(work, source)
        except OSError as error:
            send({"greeting": GREETING, "protocol": PROTOCOL, "error": {"kind": "system", "message": str(error)}})
            return 1
        send(agent.greeting())
        for line in lines(sys.stdin.buffer):
            # A line without its end is half a request: the connection was lost in it.
            if not line.endswith(b"\n"):
                break
            identity = None
            try:
                request = json.loads(line.decode("utf-8"))
                identity = request["id"]
                send({"id": identity, "result": agent.answer(request)})
            except AgentError as error:
                send({"id": identity, "error": {"kind": error.kind, "message": str(error)}})
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                message = "%s: %s" % (type(error).__name__, error)
                send({"id": identity, "error": {"kind": "protocol", "message": message}})
            except OSError as error:
                if isinstance(error, BrokenPipeError):
                    raise
                kind = "disk_full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "system"
                send({"id": identity, "error": {"kind": kind, "message": str(error)}})
    except (BrokenPipeError, KeyboardInterrupt):
        pass  # Nobody listens any more. What was started goes on.
    return 0


BY_HAND = ("build", "run", "verify", "profile")


def _by_hand(arguments: List[str]) -> int:
    """What a person asks for with a bundle on the board; the file beside this one does it."""
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    try:
        program = __import__("by_hand")
    except ImportError:
        sys.stderr.write("agent.py: by_hand.py is not beside this file: copy the whole device folder of the bundle.\n")
        return 2
    return int(program.main(sys.modules[__name__], arguments))


def main(arguments: List[str], source: Optional[bytes] = None) -> int:
    """Run the agent; ``source`` is its own text where it came over the connection and is no file."""
    if source is None:
        with open(os.path.abspath(__file__), "rb") as stream:
            source = stream.read()
    if arguments and arguments[0] in BY_HAND:
        return _by_hand(arguments)
    parser = argparse.ArgumentParser(
        prog="agent.py", description="dyndeploy's on-device agent. By hand: %s; each with --help." % ", ".join(BY_HAND)
    )
    commands = parser.add_subparsers(dest="command")
    for name in ("serve", "probe"):
        commands.add_parser(name).add_argument("--work", default=DEFAULT_WORK)
    job = commands.add_parser("job")
    job.add_argument("work")
    job.add_argument("key")
    job.add_argument("lock", type=int)
    options = parser.parse_args(arguments)
    # The first card is then the one that nvidia-smi lists first.
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    if options.command == "job":
        return run_job(options.work, options.key, options.lock)
    if options.command == "probe":
        print(json.dumps(Agent(options.work, source).answer({"command": "probe"}), indent=2))
        return 0
    if options.command == "serve":
        return serve(options.work, source)
    parser.print_help()
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
