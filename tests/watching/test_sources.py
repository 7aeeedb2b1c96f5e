"""Sources come and go: what is lost is said once, and reading goes on."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from dyndeploy.errors import UsageError
from dyndeploy.remote import DeviceEntry, save_device
from dyndeploy.remote.agent import TAIL_BYTES, file_tail
from dyndeploy.watching.reading import Reading
from dyndeploy.watching.sources import FileSource, Item, SocketSource, open_source
from tests.watching.helpers import line


def images(items: list[Item]) -> list[int | str]:
    """Images of the readings, and the notices."""
    return [item.counters.images if isinstance(item, Reading) else item for item in items]


def test_a_file_is_followed_through_all_that_happens_to_it(tmp_path: Path) -> None:
    path = tmp_path / "stats.jsonl"
    now = [0.0]
    source = FileSource(str(path), lambda seen: file_tail(str(path), seen), 0.1, lambda: now[0])
    (missing,) = images(source.poll())
    assert missing == f"{path} cannot be read: No such file or directory: waiting for it."
    assert source.poll() == []  # said once
    path.write_text(line(1) + "\n" + line(2) + "\n" + line(3)[:50])
    assert images(source.poll()) == [f"{path} is there again.", 1, 2]
    with path.open("a") as stream:  # the rest of the line, one that is torn, one of another release
        stream.write(line(3)[50:] + "\n" + line(4)[:90] + "\n" + line(5, schema_version=9) + "\n" + line(6) + "\n")
    third, torn, other, sixth = images(source.poll())
    assert (third, sixth) == (3, 6)
    assert "a line was passed over. The line is no JSON" in str(torn)
    assert "schema version 9; this release reads 1" in str(other)
    path.rename(tmp_path / "stats.jsonl.1")  # as logrotate does
    assert "waiting for it" in str(images(source.poll())[0])
    path.write_text(line(7) + "\n")
    assert images(source.poll()) == [f"{path} is there again.", f"{path} was begun anew.", 7]
    path.write_text("")  # cut in place
    assert images(source.poll()) == [f"{path} was begun anew."]
    with path.open("a") as stream:
        stream.write(line(8) + "\n")
    assert images(source.poll()) == [8]
    now[0] = 5.0
    assert source.poll() == []
    now[0] = 6.0
    assert images(source.poll()) == [f"{path}: no new line; the program was killed, or hangs. Waiting."]
    assert source.poll() == [] and not source.well
    with path.open("a") as stream:
        stream.write(line(9, ended=True) + "\n")
    assert images(source.poll()) == [f"{path} is there again.", 9] and source.well
    now[0] = 600.0
    assert source.poll() == []  # it has ended, and said so


def test_of_a_long_file_the_end_is_read(tmp_path: Path) -> None:
    path = tmp_path / "stats.jsonl"
    text = line(1) + "\n"
    count = 2 * TAIL_BYTES // len(text)
    path.write_text(text * count + line(2) + "\n")
    found = images(open_source(str(path)).poll())
    assert count // 3 < len(found) < count and found[-1] == 2
    assert all(isinstance(each, int) for each in found)  # half a line at the beginning is none


def test_a_socket_is_followed_to_the_next_session(tmp_path: Path) -> None:
    path = tmp_path / "s"
    source = open_source(f"unix:{path}")
    assert "nobody answers" in str(source.poll()[0]) and source.poll() == []
    for session in range(2):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
            path.unlink(missing_ok=True)
            server.bind(str(path))
            server.listen()
            accepted: list[socket.socket] = []
            thread = threading.Thread(
                target=lambda server=server, accepted=accepted: (
                    accepted.append(server.accept()[0]),
                    accepted[0].sendall(line(1).encode() + b"\n" + line(2).encode()[:9]),
                )
            )
            thread.start()
            first = images(source.poll())
            thread.join()
            assert first[0] == f"unix:{path} is there again."
            found = first[1:]
            accepted[0].sendall(line(2).encode()[9:] + b"\n")
            while found != [1, 2]:
                found += images(source.poll())
                assert len(found) <= 2, session
            accepted[0].close()
        while not (ended := images(source.poll())):
            pass
        assert ended == [f"unix:{path}: the session has ended. Waiting for the next one."]
    source.close()
    assert isinstance(source, SocketSource)


class Page(BaseHTTPRequestHandler):
    code, text = 200, ""

    def do_GET(self) -> None:
        self.send_response(self.code)
        self.end_headers()
        self.wfile.write(self.text.encode())

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[HTTPServer]:
    with HTTPServer(("127.0.0.1", 0), Page) as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def test_a_server_s_metrics_are_followed(server: HTTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(f"http://127.0.0.1:{server.server_port}/metrics")
    monkeypatch.setattr(Page, "text", "nv_inference_count 3\n")
    assert "has no metrics of dyndeploy" in str(source.poll()[0]) and source.poll() == []
    monkeypatch.setattr(Page, "text", 'dyndeploy_images_total{model="a",version="1"} 5\n')
    assert images(source.poll()) == [f"{source.label} is there again.", 5]
    monkeypatch.setattr(Page, "code", 503)
    assert "answers 503" in str(source.poll()[0]) and source.poll() == []
    monkeypatch.setattr(Page, "code", 200)
    monkeypatch.setattr(Page, "text", "dyndeploy_images_total{")
    assert "no text of Prometheus" in str(source.poll()[0])


def test_a_server_that_is_not_there_is_waited_for() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # and does not listen
        source = open_source(f"http://127.0.0.1:{held.getsockname()[1]}/metrics")
        assert "cannot be reached (" in str(source.poll()[0]) and source.poll() == []


def test_a_file_on_a_board_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYNDEPLOY_DEVICES", str(tmp_path / "devices.json"))
    save_device(DeviceEntry("board", "local:", work=str(tmp_path / "agent")))
    path = tmp_path / "stats.jsonl"
    source = open_source(f"board:{path}")
    assert "this machine" in str(source.poll()[0]) and source.poll() == []
    path.write_text(line(1) + "\n" + line(2)[:40])
    assert images(source.poll()) == [f"board:{path} is there again.", 1]
    with path.open("a") as stream:
        stream.write(line(2)[40:] + "\n")
    source.close()  # a connection that ends is opened again, and goes on where it was
    assert images(source.poll()) == [2]
    source.close()


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("unix:", "needs the path of a socket"),
        ("ftp://host/metrics", "no address of metrics"),
        ("http:///metrics", "no address of metrics"),
        ("nowhere:/tmp/stats.jsonl", "'nowhere' is no device (known: none). Add it with"),
        (".", "is no file"),
        ("", "is no file"),
    ],
)
def test_what_can_be_no_source_is_refused(
    named: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DYNDEPLOY_DEVICES", str(tmp_path / "devices.json"))
    with pytest.raises(UsageError) as caught:
        open_source(named)
    assert said in str(caught.value)
