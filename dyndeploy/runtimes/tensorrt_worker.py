"""Builds one engine in a process of its own: ``python -m dyndeploy.runtimes.tensorrt_worker FOLDER``.

NVIDIA's parser ends the process where it cannot go on, and its libraries are found by ``LD_LIBRARY_PATH``, which counts
from the start of a process only. FOLDER holds ``request.json`` and ``model.onnx``; the answer is ``answer.json``, with
the engine in ``engine`` and the timing cache in ``timing.cache``. ``messages.txt`` has every message up to the end,
however that came. See :mod:`dyndeploy.runtimes.tensorrt_ahead`.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import sys
from pathlib import Path
from typing import Any

from dyndeploy.ops import OPERATORS
from dyndeploy.runtimes import tensorrt_device
from dyndeploy.runtimes.tensorrt_stand_ins import register_stand_ins

REQUEST, MODEL, ANSWER, ENGINE, TIMINGS, MESSAGES = (
    "request.json",
    "model.onnx",
    "answer.json",
    "engine",
    "timing.cache",
    "messages.txt",
)


def make_logger(trt: Any, path: Path) -> Any:
    """A logger that keeps every message, and writes each to a file at once.

    Args:
        trt: The package.
        path: The file: a line per message, severity first; a message's own lines follow indented.
    """

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.messages: list[tuple[str, str]] = []
            self._file = path.open("w", encoding="utf-8", errors="replace")

        def log(self, severity: Any, message: str) -> None:
            level = str(severity).rsplit(".", 1)[-1]
            self.messages.append((level, message))
            self._file.write("\n  ".join(f"{level}: {message}".splitlines()) + "\n")
            self._file.flush()

    return Logger()


def answer(folder: Path) -> dict[str, Any]:
    """Carry the request out; returns the answer."""
    request = json.loads((folder / REQUEST).read_text(encoding="utf-8"))
    trt = importlib.import_module(request["module"])
    logger, problems = make_logger(trt, folder / MESSAGES), list[str]()
    plan = request["plan"]
    if request["library"] is None:
        # Keeps the creators alive.
        logger.creators = register_stand_ins(trt, [OPERATORS[name] for name, _ in plan["plugins"]], problems)
    else:
        ctypes.CDLL(request["library"], mode=ctypes.RTLD_GLOBAL)
    timings = folder / TIMINGS
    earlier = timings.read_bytes() if timings.exists() else b""
    try:
        engine, later = tensorrt_device.build(trt, logger, (folder / MODEL).read_bytes(), plan, earlier)
    except tensorrt_device.RefusedError as error:
        errors = [message for level, message in logger.messages if level in ("ERROR", "INTERNAL_ERROR")]
        return {"refused": str(error), "problems": problems, "errors": errors}
    (folder / ENGINE).write_bytes(engine)
    timings.write_bytes(later)
    return {"messages": [message for _, message in logger.messages]}


def main(folder: Path) -> None:
    """See the module."""
    given = answer(folder)
    (folder / ANSWER).write_text(json.dumps(given), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
