"""Videos and cameras, frame by frame, through OpenCV."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from dyndeploy.data import ByteArray
from dyndeploy.errors import InputError, OutputError, UsageError
from dyndeploy.files import atomic_file, unreadable
from dyndeploy.tasks.detection import resize
from dyndeploy.tasks.packages import required

VIDEOS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")
"""Endings of the files that count as videos, in lower case."""

WRITTEN = {".mp4": "mp4v", ".mov": "mp4v", ".mkv": "mp4v", ".avi": "MJPG"}
"""Endings of the videos that are written, and FourCC of the codec: those that OpenCV's packages bring along."""

_FPS = 25.0
"""Frames per second of what does not say it."""

_LOST = 0.02
"""So many of a file's frames may be missing at its end: what files say of their number is often an estimate."""


def is_video(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a video, by its ending."""
    return Path(path).suffix.lower() in VIDEOS


class Video:
    """A video file or a camera, opened; a context manager whose items are frames: 8-bit RGB, (height, width, 3).

    Args:
        source: Path of a file, or the number of a camera, from 0.

    Attributes:
        name: What to call it.
        fps: Frames per second that it says; 25 where it says nothing.
        frames: How many it says there are; None of a camera, and where it says nothing.
        read: Number of frames that were read so far.

    Raises:
        InputError: It cannot be opened.
        UsageError: OpenCV is not installed.
    """

    def __init__(self, source: str | os.PathLike[str] | int) -> None:
        self._cv2 = _opencv()
        camera = isinstance(source, int)
        self.name = f"camera {source}" if isinstance(source, int) else os.fspath(source)
        if not isinstance(source, int) and (reason := unreadable(source)) is not None:
            raise InputError(
                f"Cannot read the video {self.name}: {reason}." if reason else f"There is no video {self.name}."
            )
        self._capture: Any = self._cv2.VideoCapture(source if isinstance(source, int) else self.name)
        if not self._capture.isOpened():
            self.close()
            raise InputError(
                f"Cannot open {self.name}. Is it connected, and may this user read it?"
                if camera
                else f"{self.name} is not a video that OpenCV can read. The file may be damaged."
            )
        fps, frames = (self._capture.get(key) for key in (self._cv2.CAP_PROP_FPS, self._cv2.CAP_PROP_FRAME_COUNT))
        self.fps = float(fps) if 0 < fps < 1000 else _FPS
        self.frames = int(frames) if not camera and 0 < frames < 1e9 else None
        self.read = 0

    def __enter__(self) -> Video:
        """Return itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Let go of the file or the camera."""
        self._capture.release()

    def __iter__(self) -> Iterator[ByteArray]:
        """Yield the frames that are left.

        Raises:
            InputError: A file ends long before it should, a camera no longer answers, or there is no frame at all.
        """
        while True:
            there, frame = self._capture.read()
            if not there:
                break
            self.read += 1
            yield np.ascontiguousarray(self._cv2.cvtColor(frame, self._cv2.COLOR_BGR2RGB))
        if not self.read:
            raise InputError(f"{self.name} gives no frame. The file may be damaged, or the camera in use.")
        if self.frames is None and self.name.startswith("camera "):
            raise InputError(f"{self.name} stopped after {self.read} frames.")
        if self.frames is not None and self.read < (1 - _LOST) * self.frames - 1:
            raise InputError(
                f"{self.name} breaks off after {self.read} of {self.frames} frames. The file may be damaged."
            )


class VideoFile:
    """A video that is being written, from :func:`written_video`.

    Args:
        file: What OpenCV writes.
        path: What to call it.
        fps: Frames per second.
    """

    def __init__(self, file: Path, path: Path, fps: float) -> None:
        self._cv2 = _opencv()
        self._file, self._path, self._fps = file, path, fps
        self._writer: Any = None
        self._size = (0, 0)
        self.frames = 0

    def add(self, frame: ByteArray) -> None:
        """Append a frame, 8-bit RGB (height, width, 3); one of another size than the first is resized to it.

        Raises:
            OutputError: OpenCV cannot write such a video.
        """
        if self._writer is None:
            height, width = frame.shape[:2]
            self._size = height, width
            code = self._cv2.VideoWriter_fourcc(*WRITTEN[self._path.suffix.lower()])
            self._writer = self._cv2.VideoWriter(str(self._file), code, self._fps, (width, height))
            if not self._writer.isOpened():
                raise OutputError(f"OpenCV cannot write {self._path}. Choose one of {', '.join(WRITTEN)}.")
        self._writer.write(self._cv2.cvtColor(resize(frame, self._size), self._cv2.COLOR_RGB2BGR))
        self.frames += 1

    def close(self) -> None:
        """Write what is left."""
        if self._writer is not None:
            self._writer.release()


@contextlib.contextmanager
def written_video(path: str | os.PathLike[str], fps: float) -> Iterator[VideoFile]:
    """Yield a video to add frames to; it appears at ``path`` when the block ends without error.

    Args:
        path: Ends as one of :data:`WRITTEN`.
        fps: Frames per second.

    Raises:
        UsageError: Another ending, or OpenCV is not installed.
        OutputError: The file cannot be written, or no frame was added.
    """
    check_written(path)
    target = Path(path)
    # OpenCV chooses the format by the ending, which temporary files lack: it writes through a link that has it.
    with atomic_file(target) as temporary, tempfile.TemporaryDirectory() as links:
        link = Path(links, f"video{target.suffix.lower()}")
        link.symlink_to(temporary.resolve())
        video = VideoFile(link, target, fps)
        try:
            yield video
        finally:
            video.close()
        if not video.frames:
            raise OutputError(f"There is no frame to write to {target}.")


def check_written(path: str | os.PathLike[str]) -> None:
    """Raise ``UsageError`` unless videos of this ending are written."""
    if Path(path).suffix.lower() not in WRITTEN:
        raise UsageError(f"{path} is no video that can be written: end it with one of {', '.join(WRITTEN)}.")


def _opencv() -> Any:
    cv2 = required("cv2", "Videos and cameras need OpenCV")
    # What it says of a source that it cannot open is said here.
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    return cv2
