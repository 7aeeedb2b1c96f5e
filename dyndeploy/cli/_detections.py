"""What ``dyndeploy run`` does with a detector: images, videos and cameras become tables, JSON lines and pictures."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from dyndeploy.cli._arguments import print_json_line, printable
from dyndeploy.cli._progress import progress_bar
from dyndeploy.cli._verbosity import tell
from dyndeploy.errors import DyndeployError, OutputError, UsageError, unknown_name
from dyndeploy.files import atomic_file

if TYPE_CHECKING:
    from dyndeploy.inference import BundleSession, DetectionResult, Failure
    from dyndeploy.tasks.detection import Detections

SHOWN_SCORE = 0.3
"""Least score of detections in tables and pictures, where nobody asks for another: people look at the sure ones."""

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
"""Endings of the pictures that are written."""

_NAME_WIDTH = 24


@dataclass(frozen=True)
class Source:
    """Something to detect objects in.

    Attributes:
        what: Path of an image or a video, or the number of a camera.
        video: Whether it has frames.
        target: Where it is drawn; None for nowhere.
    """

    what: Path | int
    video: bool
    target: Path | None = None


@dataclass(frozen=True)
class Wanted:
    """Which detections are told.

    Attributes:
        score: Least score; None for all of them in JSON, and :data:`SHOWN_SCORE` where people look.
        labels: Of some classes; None for all.
    """

    score: float | None
    labels: frozenset[int] | None

    def told(self, detections: Detections) -> Detections:
        """Those for programs."""
        return detections.select(self.score or 0.0, self.labels)

    def shown(self, detections: Detections) -> Detections:
        """Those for people."""
        return detections.select(SHOWN_SCORE if self.score is None else self.score, self.labels)


def wanted(score: float | None, classes: str | None, names: Sequence[str]) -> Wanted:
    """Read ``--score`` and ``--classes``; raises ``UsageError`` for a class that the bundle does not have."""
    if classes is None:
        return Wanted(score, None)
    if not names:
        raise UsageError("The bundle holds no names of classes: leave --classes out, or export it with --class-names.")
    asked = [name.strip() for name in classes.split(",") if name.strip()]
    for name in asked:
        if name not in names:
            raise unknown_name("class", name, names)
    if not asked:
        raise UsageError(f"--classes takes names separated by commas, e.g. {','.join(names[:2])}.")
    return Wanted(score, frozenset(names.index(name) for name in asked))


def listed(images: Sequence[Path], camera: int | None, save: str | None) -> list[Source]:
    """List what is to be run, with where each is drawn.

    Raises:
        InputError: A folder without images.
        UsageError: What cannot be written, or would be written over an input.
    """
    from dyndeploy.data import image_paths
    from dyndeploy.tasks.video import is_video

    found: list[tuple[Path | int, bool, Path]] = []
    for path in images:
        if path.is_dir():
            found += [(image, False, image.relative_to(path)) for image in image_paths(path)]
        else:
            found.append((path, is_video(path), Path(path.name)))
    if camera is not None:
        found.append((camera, True, Path(f"camera-{camera}.mp4")))
    if save is None:
        return [Source(what, video) for what, video, _ in found]
    targets = _targets(found, save, alone=len(found) == 1 and not any(path.is_dir() for path in images))
    inputs = {what.resolve() for what, _, _ in found if isinstance(what, Path)}
    over = next((target for target in targets if target.resolve() in inputs), None)
    if over is not None:
        raise UsageError(f"--save would write over the input {over}: choose another place.")
    return [Source(what, video, target) for (what, video, _), target in zip(found, targets, strict=True)]


def _targets(found: Sequence[tuple[Path | int, bool, Path]], save: str, *, alone: bool) -> list[Path]:
    """Where each is drawn: one into a file if ``save`` has an ending, otherwise into a folder."""
    place = Path(save)
    ending = place.suffix.lower()
    if ending in _endings(video=False) + _endings(video=True) and not place.is_dir() and not save.endswith("/"):
        if not alone:
            raise UsageError(f"Several images are saved in a folder, not in one file: give '--save {place.stem}/'.")
        [(what, video, _)] = found
        if ending not in _endings(video=video):
            kind = "video" if video else "image"
            raise UsageError(f"The {kind} {what} cannot be saved as {place}: use {', '.join(_endings(video=video))}.")
        return [place]
    if alone and ending and not place.is_dir() and not save.endswith("/"):
        _, video, _ = found[0]
        raise UsageError(
            f"--save {save}: end it with one of {', '.join(_endings(video=video))}, or with / for a folder."
        )
    if place.exists() and not place.is_dir():
        raise OutputError(f"{place} is no folder. Choose another place.")
    targets: dict[tuple[Path | int, Path], Path] = {}
    taken: set[Path] = set()
    for what, video, relative in found:
        if (what, relative) in targets:
            continue
        endings = _endings(video=video)
        name = relative if relative.suffix.lower() in endings else relative.with_name(f"{relative.name}{endings[0]}")
        target, number = place / name, 1
        while target in taken:
            number += 1
            target = place / name.with_name(f"{name.stem}-{number}{name.suffix}")
        taken.add(target)
        targets[what, relative] = target
    return [targets[what, relative] for what, _, relative in found]


def _endings(*, video: bool) -> tuple[str, ...]:
    from dyndeploy.tasks.video import WRITTEN

    return tuple(WRITTEN) if video else PICTURES


def run_sources(
    session: BundleSession, sources: Sequence[Source], choice: Wanted, names: Sequence[str], *, as_json: bool
) -> int:
    """Detect, tell and draw one after the other; returns how many failed."""
    from dyndeploy.inference import detect_images

    failed = 0
    for video, group in itertools.groupby(sources, key=lambda source: source.video):
        some = list(group)
        if video:
            failed += sum(not _video_told(session, source, choice, names, as_json) for source in some)
        else:
            failed += tell_images(detect_images(session, image_files(some)), some, choice, names, as_json=as_json)
    return failed


def image_files(sources: Sequence[Source]) -> list[Path]:
    """Paths of images."""
    return [source.what for source in sources if isinstance(source.what, Path)]


def tell_images(
    results: Iterable[DetectionResult | Failure],
    sources: Sequence[Source],
    choice: Wanted,
    names: Sequence[str],
    *,
    as_json: bool,
) -> int:
    """Tell and draw the results of images as they come; returns how many failed."""
    from dyndeploy.inference import Failure

    failed = 0
    for source, result in zip(sources, results, strict=True):
        if isinstance(result, Failure):
            failed += 1
            _tell_failure(result, as_json)
            continue
        if source.target is not None:
            _save(source.target, result, choice, names)
        if as_json:
            _print_line(result, choice)
        else:
            _print_result(result, choice, names, source.target)
    return failed


def _video_told(session: BundleSession, source: Source, choice: Wanted, names: Sequence[str], as_json: bool) -> bool:
    """Run a video; False where it failed, which is told."""
    from dyndeploy.inference import Failure

    try:
        _run_video(session, source, choice, names, as_json)
    except (UsageError, OutputError):
        raise
    except DyndeployError as error:
        _tell_failure(Failure(str(source.what), error), as_json)
        return False
    return True


def _tell_failure(failure: Failure, as_json: bool) -> None:
    if as_json:
        print_json_line(failure.to_json())
    else:
        typer.echo(f"dyndeploy: {printable(failure.error)}", err=True)


def _called(names: Sequence[str], label: int) -> str:
    """Name of a class; its number where the bundle holds no names."""
    return names[label] if label < len(names) else str(label)


def _print_line(result: DetectionResult, choice: Wanted, **more: object) -> None:
    print_json_line({**result.with_detections(choice.told(result.detections)).to_json(), **more})


def _print_result(result: DetectionResult, choice: Wanted, names: Sequence[str], target: Path | None) -> None:
    """A line for the image, and one for each detection: class, score and box."""
    shown = choice.shown(result.detections)
    rate = "" if not result.rates else f", mean rate {result.mean_rate:.3f}"
    saved = "" if target is None else f", saved as {target}"
    count = f"{len(shown)} detection{'' if len(shown) == 1 else 's'}"
    size = f"{result.width} x {result.height}"
    typer.echo(printable(f"{result.image}: {size}, {count}{rate}, {result.ms:.2f} ms{saved}"))
    width = min(_NAME_WIDTH, max((len(_called(names, label)) for label in shown.labels), default=0))
    for box, score, label in zip(shown.boxes, shown.scores, shown.labels, strict=True):
        corners = "  ".join(f"{value:7.1f}" for value in box)
        typer.echo(printable(f"  {_called(names, label):{width}}  {score:.3f}  {corners}"))


def _save(target: Path, result: DetectionResult, choice: Wanted, names: Sequence[str]) -> None:
    from PIL import Image

    from dyndeploy.tasks.drawing import draw

    picture = Image.fromarray(draw(result.pixels, choice.shown(result.detections), names))
    kind = Image.registered_extensions()[target.suffix.lower()]
    with atomic_file(target) as temporary:
        picture.save(temporary, kind, **({"quality": 92} if kind in ("JPEG", "WEBP") else {}))


def _run_video(session: BundleSession, source: Source, choice: Wanted, names: Sequence[str], as_json: bool) -> None:
    """Run every frame; what was written stays if the video breaks off, or if somebody stops it."""
    from dyndeploy.inference import detect_image
    from dyndeploy.tasks.drawing import draw
    from dyndeploy.tasks.video import Video, written_video

    fault: DyndeployError | None = None
    stopped = False
    counts: Counter[int] = Counter()
    network_ms, size, start = 0.0, "", time.perf_counter()
    done = 0
    with ExitStack() as stack:
        video = stack.enter_context(Video(source.what))
        file = None if source.target is None else stack.enter_context(written_video(source.target, video.fps))
        progress = stack.enter_context(progress_bar())
        try:
            for frame in video:
                result = detect_image(session, video.name, frame)
                shown = choice.shown(result.detections)
                if file is not None:
                    file.add(draw(frame, shown, names))
                if as_json:
                    _print_line(result, choice, frame=done)
                done += 1
                counts.update(shown.labels.tolist())
                network_ms += result.ms
                size = f"{result.width} x {result.height}"
                pace = done / (time.perf_counter() - start)
                of = "" if video.frames is None else f" of {video.frames}"
                known = None if video.frames is None else min(1.0, done / video.frames)
                progress(f"{video.name}: frame {done}{of}, {pace:.1f} frames per second", known)
        except KeyboardInterrupt:
            # For a camera this is how it ends.
            stopped = True
        except DyndeployError as error:
            fault = error
        if fault is not None and not done:
            raise fault
        if stopped and not done:
            raise KeyboardInterrupt
    seconds = time.perf_counter() - start
    seen = ", ".join(f"{_called(names, label)} {count / done:.1f}" for label, count in counts.most_common())
    line = (
        f"{video.name}: {done} frames of {size} in {seconds:.1f} s, {done / seconds:.1f} frames per second with "
        f"reading{'' if file is None else ', drawing and writing'}; {network_ms / done:.2f} ms per frame in the "
        f"network, measured; detections per frame: {seen or 'none'}"
        + ("" if source.target is None else f"; saved as {source.target}")
    )
    tell(line) if as_json else typer.echo(printable(line))
    if fault is not None:
        raise fault
    if stopped and not isinstance(source.what, int):
        raise KeyboardInterrupt
