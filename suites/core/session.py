"""The fork servers of one invocation, and what their workers print."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from suites import Suite
from suites.core.cases import Selection
from suites.core.processes import Server


class Session:
    """Starts the servers, one per replicate, and ends them with all workers.

    Args:
        replicates: how many; by default as many as the selection's timed suites need.
    """

    def __init__(self, suites: Mapping[str, Suite], selection: Selection, replicates: int | None = None):
        timed = any(suite.timed for suite in suites.values())
        own = sorted({name for suite in suites.values() for name in suite.preload})
        preload = ["torch", "suites.core.bench", "suites.core.roofs", *own]
        #: Where to keep what workers print, if it is to be kept.
        self.log: Path | None = None
        self._printed = tempfile.TemporaryFile()  # noqa: SIM115 (closed in __exit__)
        count = replicates or (selection.processes if timed else 1)
        self.servers = [Server(preload, self._printed) for _ in range(count)]

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
