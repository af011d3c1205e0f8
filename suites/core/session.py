"""The fork servers of one invocation, and what their workers print."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from suites import Suite
from suites.core.processes import ROOT, Server


class Session:
    """Starts servers when they are asked for, and ends them with all workers."""

    def __init__(self, suites: Iterable[Suite]):
        own = sorted({name for suite in suites for name in suite.preload})
        self._preload = ["torch", "suites.core.bench", "suites.core.roofs", *own]
        #: Where to keep what workers print, if it is to be kept.
        self.log: Path | None = None
        self._printed = tempfile.TemporaryFile()  # noqa: SIM115 (closed in __exit__)
        self.servers: list[Server] = []

    def start(self, tree: Path = ROOT) -> Server:
        """A further server, which measures the operators of that folder."""
        server = Server(self._preload, self._printed, tree)
        self.servers.append(server)
        return server

    def stop(self, server: Server) -> None:
        """Ends a server with its workers."""
        self.servers.remove(server)
        server.close()

    def replicate(self, count: int) -> None:
        """Has at least `count` servers."""
        while len(self.servers) < count:
            self.start()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        text = self.end()
        if self.log is not None and text:
            with self.log.open("ab") as file:
                file.write(text)

    def end(self) -> bytes:
        """Ends all servers; returns what their workers printed."""
        for server in self.servers:
            server.close()
        self.servers.clear()
        self._printed.seek(0)
        text = self._printed.read()
        self._printed.close()
        return text
