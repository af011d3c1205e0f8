"""The fork servers of one invocation, and what their workers print."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from suites import Suite, suites
from suites.core.processes import ROOT, Server

#: What workers would else import one by one, each of them for itself: what measures, and the parts of torch that the
#: operators come to need, sympy and triton with them. No op file: a broken one is to cost its own worker alone.
SHARED = (
    *("torch", "torch.fx.experimental.symbolic_shapes", "torch.utils.flop_counter"),
    *("suites.core.bench", "suites.core.roofs"),
)


class Session:
    """Starts servers when they are asked for, and ends them with all workers."""

    def __init__(self, chosen: Iterable[Suite]):
        own = sorted({name for suite in chosen for name in suite.preload})
        known = sorted({type(suite).__module__ for suite in suites().values()})
        self._preload = [*SHARED, *known, *own]
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
