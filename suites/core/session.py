"""The fork servers of one invocation, and what their workers print."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from suites import Suite
from suites.core.processes import Server


class Session:
    """Starts a server, further ones for the replicates when they are asked for, and ends them with all workers."""

    def __init__(self, suites: Iterable[Suite]):
        own = sorted({name for suite in suites for name in suite.preload})
        self._preload = ["torch", "suites.core.bench", "suites.core.roofs", *own]
        #: Where to keep what workers print, if it is to be kept.
        self.log: Path | None = None
        self._printed = tempfile.TemporaryFile()  # noqa: SIM115 (closed in __exit__)
        self.servers = [Server(self._preload, self._printed)]

    def replicate(self, count: int) -> None:
        """Has at least `count` servers."""
        self.servers += [Server(self._preload, self._printed) for _ in range(count - len(self.servers))]

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for server in self.servers:
            server.close()
        self._printed.seek(0)
        text = self._printed.read()
        self._printed.close()
        if self.log is not None and text:
            with self.log.open("ab") as file:
                file.write(text)
