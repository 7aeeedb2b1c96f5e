"""The README of a bundle's device/ folder: exact commands for that bundle on that board.

The first word behind ``sh`` says where a block runs (``computer`` or ``board``), the others what it needs besides what
any such machine has (``ssh``, ``stick``, ``apt``, ``tensorrt``, ``camera``, ``gstreamer``,
``network``, ``prebuilt``): programs that
walk through the page go by them.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dyndeploy.bundle.manifest import Manifest
from dyndeploy.precisions import PRECISIONS
from dyndeploy.targets import Target, load_target

BUILD_PACKAGES = ("cmake", "make", "g++", "rapidjson-dev", "libjpeg-dev", "libpng-dev", "python3-numpy")
"""Debian packages that a build by :mod:`dyndeploy.remote.by_hand` needs; Ubuntu 18.04, 20.04 and 22.04 have them."""

CAMERA_PACKAGES = ("gstreamer1.0-tools", "gstreamer1.0-plugins-base", "gstreamer1.0-plugins-good")
CAMERA_BUILD_PACKAGES = ("libgstreamer1.0-dev", "libgstreamer-plugins-base1.0-dev")

ONNXRUNTIME = "PIP_BREAK_SYSTEM_PACKAGES=1 pip3 install --user --no-deps onnxruntime"
"""How the processor's runtime comes to a board. An older pip does not know the variable, and ignores it."""

_OLDEST_ONNXRUNTIME = "1.18"
_FRAME = (480, 640)
_SHOWN = 3
_WIDTH = 120


@dataclass(frozen=True)
class Carried:
    """What stands beside the page.

    Attributes:
        runtime: Whether the sources of the runtime do.
        plugins: Whether those of the TensorRT plugins do.
        tensorrt: Whether that runtime can compute with TensorRT.
        cameras: Whether its program opens cameras and videos itself.
        prebuilt: Machines that there are prebuilt libraries for, as ``uname -m`` says them.
    """

    runtime: bool
    plugins: bool
    tensorrt: bool
    cameras: bool
    prebuilt: tuple[str, ...] = ()


def device_readme(manifest: Manifest, build: Mapping[str, Any], carried: Carried) -> str:
    """Write the page.

    Args:
        manifest: Of the bundle.
        build: How its plugins are built: ``library``, ``project`` and CMake's ``definitions``.
        carried: What the bundle carries.
    """
    page = _Page(manifest, load_target(manifest.target), build, carried)
    parts = [page.head(), page.copy(), page.packages(), page.build(), page.run(), page.python(), page.by_hand()]
    return _wrapped("\n\n".join(part.strip() for part in [*parts, page.over_ssh(), page.trtexec()] if part)) + "\n"


def _some(names: Sequence[str]) -> str:
    """The first names of a list, and how many more there are."""
    shown = ", ".join(f"`{name}`" for name in names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"


def _wrapped(text: str) -> str:
    """Fill the paragraphs; blocks of code stay as they are."""
    parts = re.split(r"(^```.*?^```$)", text, flags=re.DOTALL | re.MULTILINE)
    return "".join(part if part.startswith("```") else _filled(part) for part in parts)


def _filled(text: str) -> str:
    blank = re.split(r"(\n{2,})", text)
    return "".join(
        part if not part.strip() else textwrap.fill(part, _WIDTH, break_long_words=False, break_on_hyphens=False)
        for part in blank
    )


def _block(where: str, *lines: str) -> str:
    return "\n".join([f"```sh {where}", *lines, "```"])


class _Page:
    def __init__(self, manifest: Manifest, target: Target, build: Mapping[str, Any], carried: Carried) -> None:
        self.manifest, self.target, self.plugin_build, self.carried = manifest, target, build, carried
        self.images = manifest.preprocessing is not None
        self.detects = manifest.detection is not None
        self.jetson = bool(target.power_modes)
        self.parts = () if manifest.detection is None else manifest.detection.parts
        # In parts there is a twin only where it was written in parts.
        self.measurable = not self.parts or (manifest.detection is not None and bool(manifest.detection.static_parts))

    def head(self) -> str:
        manifest, title = self.manifest, self.target.title
        kind = f"mode {manifest.network.mode}, {manifest.precision}"
        brings = f" Last checked against: {self.target.software}." if self.jetson and self.target.software else ""
        release = manifest.tools.get("dyndeploy", "")
        return f"""
# {manifest.network.name} on {title}

A bundle of dyndeploy {release} ({kind}) for {title}, and all that the machine needs to run it: nothing of dyndeploy is
installed there, and its own Python (3.6 or newer) is enough.{brings}

Commands are given **in this folder**: `cd BUNDLE/device`. `..` is the bundle. What TensorRT does was tested without a
GPU only: no board has confirmed these pages yet.
"""

    def copy(self) -> str:
        return f"""
## Copy

Over SSH, from the computer that has the bundle:

{_block("computer ssh", "BOARD=me@192.168.1.20", 'ssh "$BOARD" mkdir -p bundle', 'scp -r ../* "$BOARD":bundle/')}

Then log in and go there:

{_block("board", "cd ~/bundle/device")}

Without a network, with a USB stick that is mounted at `/media/$USER/STICK` on both:

{_block("computer stick", "mkdir -p /media/$USER/STICK/bundle", "cp -r ../* /media/$USER/STICK/bundle/")}

{_block("board stick", "mkdir -p ~/bundle", "cp -r /media/$USER/STICK/bundle/* ~/bundle/", "cd ~/bundle/device")}
"""

    def packages(self) -> str:
        names = [*BUILD_PACKAGES, *CAMERA_PACKAGES, *(CAMERA_BUILD_PACKAGES if self.carried.cameras else ())]
        if self.jetson:
            brings = "TensorRT and CUDA come with JetPack's image (else: `sudo apt-get install nvidia-jetpack`)."
        else:
            brings = "The NVIDIA driver, CUDA and TensorRT have to be installed."
        return f"""
## Packages

{brings} The others, by the names of Ubuntu 18.04 (JetPack 4), 20.04 (JetPack 5) and 22.04 (JetPack 6):

{_block("board apt", "sudo apt-get update", "sudo apt-get install -y " + " ".join(names))}

RapidJSON reads JSON, libjpeg and libpng read images. GStreamer reads cameras and videos. {self._runtime_needs()}
"""

    def _runtime_needs(self) -> str:
        library = f"ONNX Runtime {_OLDEST_ONNXRUNTIME} or newer"
        pip = (
            f"{library} is in the Python package:\n\n"
            + _block("board apt", "sudo apt-get install -y python3-pip")
            + f"\n\n{_block('board network', ONNXRUNTIME)}\n\n"
            "Only its library is needed: `--no-deps` leaves your NumPy as it is. The variable stands for systems whose "
            "pip else refuses (Ubuntu 24.04, Debian 12); it goes to `~/.local` all the same. There is none for the "
            "Python 3.6 of JetPack 4: name a library that you have with `DYNDEPLOY_ONNXRUNTIME`."
        )
        if self.carried.tensorrt:
            return (
                "The runtime computes with TensorRT where it was built on a machine that has it, else on the "
                f"processor. For that, {pip}"
            )
        asked = self.manifest.precision
        computes = PRECISIONS[asked].cpu
        half = f" There the bundle computes in {computes}, not in {asked}." if computes != asked else ""
        return (
            f"The runtime of this release computes on the processor, by ONNX Runtime.{half} Engines of TensorRT run "
            f"over SSH and by `trtexec` (both below). {pip}"
        )

    def build(self) -> str:
        definitions = " ".join(f"-D{name}={value}" for name, value in self.plugin_build["definitions"].items())
        runtime = _block(
            "board",
            "mkdir -p build/runtime built",
            "(cd build/runtime && cmake ../../plugins/runtime && cmake --build . -- -j2)",
            "cp build/runtime/*.so build/runtime/dyndeploy-run built/",
        )
        library = self.plugin_build["library"]
        plugins = _block(
            "board tensorrt",
            "mkdir -p build/plugins built",
            f"(cd build/plugins && CUDACXX=/usr/local/cuda/bin/nvcc cmake ../../plugins/{self.plugin_build['project']} "
            f"{definitions} && cmake --build .)",
            f"cp build/plugins/{library} built/",
        )
        parts = ["## Build", self._prebuilt(), "Everything at once, into `built/`:", _block("board", _BUILD)]
        if not self.carried.runtime:
            parts += ["This bundle carries no sources: the installation of dyndeploy that wrote it had none."]
        else:
            parts += ["The same by hand, the runtime:", runtime]
        if self.carried.plugins:
            parts += [f"and the plugins ({library}; minutes on a small board):", plugins]
        return "\n\n".join(parts)

    def _prebuilt(self) -> str:
        if not self.carried.prebuilt:
            return (
                "The bundle holds sources only: the installation of dyndeploy that wrote it had no prebuilt libraries "
                "(wheels of `.ci/wheel` have them)."
            )
        machines = " and ".join(f"`{name}`" for name in self.carried.prebuilt)
        return (
            f"Prebuilt for {machines} (`uname -m`; glibc 2.27 or newer): library, program, and operators for the "
            "processor. They open cameras and RGB frames, but no JPEG or PNG files, whose libraries differ from system "
            "to system: for files, build.\n\n"
            + _block("board prebuilt", "mkdir -p built", 'cp "prebuilt/$(uname -m)/"* built/', "chmod +x built/*")
        )

    def run(self) -> str:
        thresholds = ""
        if self.manifest.exits is not None:
            count = len(self.manifest.exits.stages) - 1
            guess = ",".join(["0.9"] * count)
            thresholds = (
                "An image leaves where its confidence reaches the exit's threshold. `dyndeploy calibrate` stores "
                f"thresholds in the bundle; before that, give them: `--thresholds {guess}`.\n\n"
            )
        if not self.images and not self.detects:
            return f"## Run\n\nThe network takes tensors, not images: in Python below. {thresholds}".strip()
        height, width = _FRAME
        pipe = f"! video/x-raw,format=RGB,width={width},height={height} ! fdsink"
        frames = f"built/dyndeploy-run .. --frames {height}x{width}"
        if self.carried.cameras:
            camera = ["built/dyndeploy-run .. v4l2:///dev/video0"]
            camera = ["built/dyndeploy-run .. csi://0", *camera] if self.jetson else camera
        else:
            usb = "gst-launch-1.0 -q v4l2src device=/dev/video0 ! videoconvert ! videoscale"
            camera = [f"{usb} {pipe} | {frames}"]
            csi = f"gst-launch-1.0 -q nvarguscamerasrc ! nvvidconv ! videoconvert {pipe} | {frames}"
            camera = [csi, *camera] if self.jetson else camera
        source = "gst-launch-1.0 -q videotestsrc num-buffers=3 ! videoconvert"
        told = "Classes, scores and boxes" if self.detects else "Class, confidence, exit or rate"
        chain = self._chain() if self.parts else ""
        return f"""
## Run

{thresholds}{told}, and milliseconds of each image, of a file or of all in a folder.
`photo.jpg` stands for a picture of yours:

{_block("board", "built/dyndeploy-run .. photo.jpg", "built/dyndeploy-run .. photo.jpg --json --repeat 10")}

A camera, and a test picture where there is none:

{_block("board camera", *camera)}

{_block("board gstreamer", f"{source} {pipe} | {frames}")}

`built/dyndeploy-run --help` lists every option.{chain}
"""

    def _chain(self) -> str:
        lines = [
            f"{index}. `../{part.file}`: {'host program' if part.host else 'engine'}, reads "
            f"{_some([info.name for info in part.inputs])}, gives {_some([info.name for info in part.outputs])}."
            for index, part in enumerate(self.parts, start=1)
        ]
        text = (
            "\n\nOn the GPU the network runs in parts: engines, and what the processor computes between them. "
            "`bundle.json` has the name, shape and type of every tensor on the way (`detection.parts`).\n\n"
            + "\n\n".join(lines)
            + "\n\nThe runtime runs all of them in turn; `agent.py` does not in this release. Below are the lines that "
            "build and time the engines one by one."
        )
        programs = [part.file for part in self.parts if part.host]
        if not programs:
            return text
        code = (
            "from host_program import HostProgram\n\n"
            f'program = HostProgram.load("../{programs[0]}")\n'
            "print(program.inputs, program.outputs)"
        )
        return (
            f"{text} `host_program.py` computes the other parts in Python; it needs NumPy and nothing else:\n\n"
            f"```py board\n{code}\n```"
        )

    def python(self) -> str:
        call = 'session.classify("photo.jpg")' if self.images else "session.info"
        call = 'session.detect("photo.jpg").boxes' if self.detects else call
        text = f'from dyndeploy_runtime import open_bundle\n\nsession = open_bundle("..")\nprint({call})'
        needs = "`dyndeploy_runtime.py` needs NumPy and nothing else; `built/` or `DYNDEPLOY_RUNTIME` has the library."
        return f"## In Python\n\n```py board\n{text}\n```\n\n{needs}"

    def by_hand(self) -> str:
        if self.parts:
            verify = _block("board", "built/dyndeploy-run .. --verify")
            return f"""
## Verify here

What the chain finds on the bundle's reference tensors, against what PyTorch found:

{verify}
"""
        run = [f"python3 agent.py run {_BUNDLE} photo.jpg"] if self.images else []
        return f"""
## Verify and measure here

Against PyTorch's results on the bundle's reference tensors; then the time of the network next to that of its static
twin, where the bundle has one, and its energy where a power sensor can be read:

{_block("board", f"python3 agent.py verify {_BUNDLE}", *run, f"python3 agent.py profile {_BUNDLE}")}

`--json` gives the same as JSON, `--help` the options. `python3 agent.py probe` says what the machine
is.{self._clocks()}
"""

    def _clocks(self) -> str:
        if not self.jetson:
            return ""
        mode = self.target.power_modes[-1]
        return (
            f"\nSteady times need fixed clocks: `sudo nvpmodel -m {mode.id}` ({mode.name}), then `sudo jetson_clocks`."
        )

    def over_ssh(self) -> str:
        name = self.target.name
        run = ["dyndeploy run .. photo.jpg --device " + name] if self.images or self.detects else []
        lines = [f'dyndeploy device add {name} "$BOARD" --target {name}', *run]
        if self.measurable:
            lines.append(f"dyndeploy profile .. --device {name}")
        return f"""
## Over SSH

From the computer that has dyndeploy and the bundle, with nothing copied before: engines are built there and kept, and
all commands run the same engines by the same code:

{_block("computer ssh", *lines)}
"""

    def trtexec(self) -> str:
        if self.manifest.exits is not None and self.manifest.exits.dynamic_batch:
            return ""
        version = self.target.runtime_version or "10.3"
        library = f"built/{self.plugin_build['library']}"
        staged = ""
        if self.manifest.exits is not None:
            staged = (
                " There is an engine per stage. An image that leaves at an exit has run all stages up to it: its time "
                "is the sum of theirs, and the reading of one number after each."
            )
        make = f"dyndeploy engine .. --trtexec {version} --plugins {library} -o trtexec > trtexec.sh"
        return f"""
## trtexec

On the computer, files and lines for that TensorRT (`dpkg -l | grep nvinfer` on the board tells which one it has):

{_block("computer", make, "cat trtexec.sh")}

Copy `trtexec` and `trtexec.sh` into this folder on the board, and:

{_block("board tensorrt", 'PATH="$PATH:/usr/src/tensorrt/bin" sh -e trtexec.sh')}

The first line of a graph builds, the second measures.{staged}
"""


_BUNDLE = ".."
_BUILD = "python3 agent.py build"
