"""``dyndeploy watch``: what a running session does."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dyndeploy.cli._arguments import print_json_line, printable
from dyndeploy.cli._options import AsJson
from dyndeploy.cli._verbosity import note, verbosity
from dyndeploy.errors import InputError, UsageError

if TYPE_CHECKING:
    from dyndeploy.bundle import Bundle
    from dyndeploy.watching import Calibration, Follower, Reading, Status
    from dyndeploy.watching.prometheus import Exported

_STDOUT = "-"


def watch(
    source: Annotated[
        str,
        typer.Argument(
            help="File of 'dyndeploy-run --stats', or unix:PATH; a server's http://HOST:8002/metrics; NAME:PATH, a "
            "file on a board of 'dyndeploy device'."
        ),
    ],
    bundle: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The bundle that runs: compare with its calibration.")
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Compare with an earlier file of --stats, or of 'watch --json', instead."),
    ] = None,
    model: Annotated[str | None, typer.Option(metavar="NAME", help="One of a server's models. (default: all)")] = None,
    window: Annotated[int, typer.Option(min=100, metavar="N", help="Images that a verdict on drift rests on.")] = 1000,
    every: Annotated[
        float, typer.Option(min=0.05, metavar="S", help="Seconds between two looks at a server or a board.")
    ] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Say how things are, and end.")] = False,
    count: Annotated[int | None, typer.Option(min=1, metavar="N", help="End after so many readings.")] = None,
    prometheus: Annotated[
        str | None,
        typer.Option(
            metavar="PORT|-", help="Serve Prometheus' text at this port of 127.0.0.1; -: write it once to stdout."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Watch a running session: images, latency, exits, rates, power and temperature, and drift from the calibration."""
    from dyndeploy.bundle import Bundle
    from dyndeploy.watching import follow, open_source
    from dyndeploy.watching.prometheus import Exported

    if bundle is not None and baseline is not None:
        raise UsageError("--bundle and --baseline both say what to compare with: give one.")
    if prometheus == _STDOUT and as_json:
        raise UsageError("--json and '--prometheus -' both write to stdout: give one.")
    opened = open_source(source, every)
    expected: Callable[[Reading], Calibration] | None = None
    if bundle is not None:
        expected = _of_bundle(Bundle.open(bundle))
    elif baseline is not None:
        expected = _of_file(baseline)
    exported = Exported()
    once = once or prometheus == _STDOUT
    session = _Session(expected, model, window, exported, once=once)
    with contextlib.ExitStack() as stack:
        if prometheus is not None and prometheus != _STDOUT:
            stack.enter_context(_serving(prometheus, exported))
        if once:
            for item in opened.poll():
                session.take(item, None)
            exported.up = opened.well
            opened.close()
            session.last(as_json=as_json, prometheus=prometheus == _STDOUT, source=opened.label)
            return
        show = stack.enter_context(_shown(session, as_json=as_json))
        # Ctrl-C is how this ends.
        stack.enter_context(contextlib.suppress(KeyboardInterrupt))
        readings = 0
        for items in follow(opened):
            exported.up = opened.well
            for item in items:
                status = session.take(item, show)
                readings += status is not None
                if count is not None and readings >= count:
                    return


def _of_bundle(bundle: Bundle) -> Callable[[Reading], Calibration]:
    from dyndeploy.watching import Calibration

    known: dict[str, Calibration] = {}

    def of(reading: Reading) -> Calibration:
        if reading.precision not in known:
            known[reading.precision] = Calibration.of_bundle(bundle, reading.precision)
        return known[reading.precision]

    return of


def _of_file(path: Path) -> Callable[[Reading], Calibration]:
    from dyndeploy.watching import Calibration

    earlier = Calibration.of_file(path)
    return lambda reading: earlier


class _Session:
    """All models of a source."""

    def __init__(
        self,
        expected: Callable[[Reading], Calibration] | None,
        model: str | None,
        window: int,
        exported: Exported,
        *,
        once: bool,
    ) -> None:
        self.expected, self.window = expected, window
        self._model, self._exported, self._once = model, exported, once
        self.followers: dict[str, Follower] = {}
        self._notices: list[str] = []

    def take(self, item: Reading | str, show: Callable[[Status | str], None] | None) -> Status | None:
        """Take a reading or a notice, and show it where there is something that shows."""
        from dyndeploy.watching import Follower

        if isinstance(item, str):
            self._notices.append(item)
            if show is not None:
                show(item)
            return None
        if self._model is not None and self._model not in (item.name, item.model):
            return None
        if item.name not in self.followers:
            # Of a server nobody knows how long it has been running; a file tells from the beginning.
            history = self._once or item.started is not None
            # Asked once, all that is known makes the verdict.
            window = sys.maxsize if self._once else self.window
            self.followers[item.name] = Follower(self.expected, window, history=history)
            if self.expected is not None and len(self.followers) > 1:
                names = ", ".join(self.followers)
                raise UsageError(f"The server has several models ({names}): say with --model which is compared.")
        status = self.followers[item.name].add(item)
        self._exported.readings[item.name] = item
        if status.drift is not None:
            self._exported.drift[item.name] = {c.what: c.drifted for c in status.drift.comparisons}
        if show is not None:
            show(status)
        return status

    def last(self, *, as_json: bool, prometheus: bool, source: str) -> None:
        """Show the latest status of every model; raises ``InputError`` where there is none."""
        from prometheus_client import CollectorRegistry, generate_latest

        from dyndeploy.watching import Status

        if not self.followers:
            of = "" if self._model is None else f" of the model {self._model}"
            said = f": {self._notices[-1]}" if self._notices else "."
            raise InputError(f"There is nothing to read{of} at {source}{said}")
        for name, follower in self.followers.items():
            drift, status = follower.judge(), follower.latest[-1]
            # The last line of a session may come right after the one before.
            lately = next((entry for entry in reversed(follower.latest) if entry.interval.images), status)
            status = Status(status.reading, lately.interval, lately.seconds, drift, status.pending)
            if drift is not None:
                self._exported.drift[name] = {c.what: c.drifted for c in drift.comparisons}
            if as_json:
                print_json_line(status.to_json())
            elif not prometheus:
                from rich.console import Console

                from dyndeploy.cli._watch_view import status_view

                calibration = None if self.expected is None else self.expected(status.reading)
                Console(width=None if sys.stdout.isatty() else 160).print(
                    status_view([*list(follower.latest)[:-1], status], calibration, self.window, rows=sys.maxsize)
                )
        if prometheus:
            registry = CollectorRegistry()
            registry.register(self._exported)
            typer.echo(generate_latest(registry).decode(), nl=False)


@contextlib.contextmanager
def _serving(port: str, exported: Exported) -> Iterator[None]:
    """Serve metrics on the loopback address while the block runs."""
    from prometheus_client import CollectorRegistry, start_http_server

    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise UsageError(f"--prometheus takes a port from 1 to 65535, or '-', not '{port}'.")
    registry = CollectorRegistry()
    registry.register(exported)
    try:
        server, thread = start_http_server(int(port), addr="127.0.0.1", registry=registry)
    except OSError as error:
        raise UsageError(f"--prometheus: port {port} cannot be had ({error.strerror}): choose another.") from error
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.contextmanager
def _shown(session: _Session, *, as_json: bool) -> Iterator[Callable[[Status | str], None]]:
    """Yield what shows statuses and notices as they come: a view on a terminal, else lines."""
    from dyndeploy.cli._watch_view import drift_line, status_line, status_view

    if as_json:

        def show_json(item: Status | str) -> None:
            if isinstance(item, str):
                note(item)
            else:
                print_json_line(item.to_json())

        yield show_json
    elif not sys.stdout.isatty():
        verdicts: dict[str, object] = {}

        def show_line(item: Status | str) -> None:
            if isinstance(item, str):
                note(item)
                return
            typer.echo(status_line(item))
            name = item.reading.name
            if item.drift is not None and verdicts.get(name) is not item.drift:
                verdicts[name] = item.drift
                typer.echo(drift_line(item, session.window))

        yield show_line
    else:
        from rich.console import Console, Group
        from rich.live import Live
        from rich.text import Text

        console, notices = Console(), [""]
        with Live(console=console, auto_refresh=False, transient=False) as live:

            def show_view(item: Status | str) -> None:
                if isinstance(item, str):
                    notices[0] = item
                    if verbosity.quiet:
                        return
                rows = max(4, (console.height - 16) // max(1, len(session.followers)))
                views = [
                    status_view(
                        list(follower.latest),
                        None if session.expected is None else session.expected(follower.latest[-1].reading),
                        session.window,
                        rows,
                    )
                    for follower in session.followers.values()
                ]
                live.update(Group(*views, Text(printable(notices[0]))), refresh=True)

            yield show_view
