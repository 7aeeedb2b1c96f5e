"""Videos: what is written is read again; what breaks off keeps what was there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from dyndeploy.data import ByteArray
from dyndeploy.errors import InputError, OutputError, UsageError
from dyndeploy.tasks.video import Video, is_video, written_video

pytestmark = pytest.mark.vision("cv2")


def frames(count: int, height: int = 48, width: int = 64) -> list[ByteArray]:
    """Pictures without detail, which lossy codecs keep: red grows, the lower half is blue."""
    made = []
    for index in range(count):
        frame = np.zeros((height, width, 3), np.uint8)
        frame[..., 0] = 20 + 200 * index // count
        frame[height // 2 :, :, 2] = 200
        made.append(frame)
    return made


def write(path: Path, pictures: Sequence[ByteArray], fps: float = 10.0) -> Path:
    with written_video(path, fps) as video:
        for picture in pictures:
            video.add(picture)
    return path


@pytest.mark.parametrize("ending", [".mp4", ".avi", ".mkv", ".MOV"])
def test_what_is_written_is_read_again(ending: str, tmp_path: Path) -> None:
    made = frames(12)
    path = write(tmp_path / f"clip{ending}", made, fps=12.5)
    assert is_video(path) and [entry.name for entry in tmp_path.iterdir()] == [path.name]
    with Video(path) as video:
        assert (video.fps, video.frames, video.name) == (12.5, 12, str(path))
        found = list(video)
    assert len(found) == video.read == 12
    # RGB, not OpenCV's BGR; a lossy codec moves values a little.
    for frame, picture in zip(found, made, strict=True):
        assert frame.shape == (48, 64, 3) and frame.dtype == np.uint8
        assert np.abs(frame[4:20, 4:-4].mean((0, 1)) - picture[4:20, 4:-4].mean((0, 1))).max() < 12


def test_frames_of_another_size_become_the_first_one_s(tmp_path: Path) -> None:
    path = write(tmp_path / "clip.avi", [*frames(2), *frames(2, 96, 200)])
    with Video(path) as video:
        assert [frame.shape for frame in video] == [(48, 64, 3)] * 4


def test_a_video_that_breaks_off_gives_what_is_left(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (48, 64, 3), np.uint8) for _ in range(40)]
    path = write(tmp_path / "clip.avi", noise)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    seen = 0
    with Video(path) as video, pytest.raises(InputError, match=r"clip\.avi breaks off after \d+ of 40 frames"):
        for _ in video:
            seen += 1
    assert 10 < seen < 30 and seen == video.read


def test_what_is_no_video_is_said(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(InputError, match=r"text\.mp4 is not a video"):
        Video(tmp_path / "text.mp4")
    with pytest.raises(InputError, match=r"There is no video .*gone\.mp4"):
        Video(tmp_path / "gone.mp4")
    with pytest.raises(InputError, match="Cannot open camera 77"):
        Video(77)
    assert not is_video("a.jpg") and is_video("A.MP4")


def test_an_interrupted_or_empty_video_is_not_left_half_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no frame"):
        write(tmp_path / "none.mp4", [])
    with pytest.raises(UsageError, match=r"a\.gif is no video"):
        write(tmp_path / "a.gif", frames(1))
    with pytest.raises(KeyboardInterrupt), written_video(tmp_path / "half.mp4", 10) as video:
        video.add(frames(1)[0])
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
