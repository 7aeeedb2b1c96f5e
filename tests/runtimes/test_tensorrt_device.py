"""What the host and a board ask of the plugin library itself."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

from dyndeploy.runtimes.tensorrt_device import read_tactics, timed_tactics

TIMES = """
#include <stdint.h>
#include <string.h>
static char known[1000];
int32_t DyndeployTimedTactics(char* text, int32_t size) {
  if (text && size > 0) strncpy(text, known, size);
  return (int32_t)strlen(known);
}
int32_t DyndeployReadTimedTactics(const char* text) {
  if (strncmp(text, "tactics", 7)) return -1;
  strcat(known, text);
  return 2;
}
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_a_library_takes_back_what_its_plugins_timed(tmp_path: Path) -> None:
    (tmp_path / "times.c").write_text(TIMES)
    (tmp_path / "none.c").write_text("int nothing;")
    library, other = str(tmp_path / "times.so"), str(tmp_path / "other.so")
    for source, made in (("times.c", library), ("none.c", other)):
        subprocess.run(["cc", "-shared", "-fPIC", str(tmp_path / source), "-o", made], check=True)
    assert timed_tactics(library) == b"", "a library is not loaded to be asked"
    loaded = [ctypes.CDLL(made) for made in (library, other)]
    assert timed_tactics(library) == b""
    assert read_tactics(library, b"") == 0 and read_tactics(library, b"tactics\0x") == 0
    assert read_tactics(library, b"of another format") == 0 and timed_tactics(library) == b""
    assert read_tactics(library, b"tactics 1\nx = 3\n") == 2
    assert timed_tactics(library) == b"tactics 1\nx = 3\n"
    # Libraries of earlier revisions have no such functions.
    assert timed_tactics(other) == b"" and read_tactics(other, b"tactics 1") == 0
    assert len(loaded) == 2
