"""The runner's side of servers and workers."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from reports import Json

ROOT = Path(__file__).resolve().parents[2]
#: Seconds a server may take to import torch.
START_TIMEOUT = 300.0


class WorkerLost(Exception):
    """A worker ended, or had to be ended, before it answered.

    Args:
        status: `crashed`, `timeout` or `oom`.
    """

    def __init__(self, status: str, reason: str):
        super().__init__(reason)
        self.status = status
        self.reason = reason


class ServerLost(Exception):
    """A fork server did not start or ended; the text says what to look at."""


class Worker:
    """One worker process: answers one request at a time."""

    def __init__(self, server: Server, pid: int, link: socket.socket):
        self.pid = pid
        self._server = server
        self._link = link
        self._file = link.makefile("rb")
        self._ended = False

    def ask(self, request: Json, timeout: float, say: Callable[[str], None] | None = None) -> Json:
        """Sends a request and returns the answer.

        Args:
            timeout: seconds of silence after which the worker is given up.
            say: called with each line that the worker has to say on the way.

        Raises:
            WorkerLost: if the worker dies, or does not answer within `timeout` seconds and is killed for it.
        """
        if self._ended:
            raise WorkerLost("crashed", "the worker has ended")
        self._link.settimeout(timeout)
        try:
            self._link.sendall(json.dumps(request).encode() + b"\n")
            while (line := self._file.readline()).startswith(b'{"say"'):
                if say is not None:
                    say(json.loads(line)["say"])
        except TimeoutError:
            self.close()
            raise WorkerLost("timeout", f"no answer within {timeout:g} s") from None
        except OSError:
            line = b""
        if not line.endswith(b"\n"):
            raise self._lost()
        answer: Json = json.loads(line)
        return answer

    def _lost(self) -> WorkerLost:
        code = self.close()
        if code >= 0:
            return WorkerLost("crashed", f"the worker exited with code {code}")
        name = signal.Signals(-code).name
        if -code == signal.SIGKILL:
            return WorkerLost("oom", "killed by SIGKILL, as the kernel does when memory runs out")
        return WorkerLost("crashed", f"killed by {name}")

    def close(self) -> int:
        """Ends the process, with all that it started, and returns its exit code (negative: the signal)."""
        if self._ended:
            return 0
        self._ended = True
        # Closing our end is the polite way; an op that hangs does not see it.
        self._file.close()
        self._link.close()
        return self._server.reap(self.pid)


class Server:
    """A fork server, see `suites.core.server`. Workers forked from it die with it, and it dies with the runner.

    Args:
        preload: modules to import besides torch.
        log: file that takes what workers print.
        tree: the folder whose `ops` and `csrc` it measures; what measures is always this checkout's.
    """

    def __init__(self, preload: Sequence[str], log: IO[bytes], tree: Path = ROOT):
        self.tree = tree
        self._link, theirs = socket.socketpair()
        # One OpenBLAS thread: NumPy would start a pool on import, and a server with threads must not fork.
        # One compile thread: inductor would start a pool of processes beside every worker.
        # The profiler's library, which reads its level as it is loaded, would log each of its starts.
        settled = {
            "OPENBLAS_NUM_THREADS": "1",
            "TORCHINDUCTOR_COMPILE_THREADS": "1",
            "PYTHONWARNINGS": "ignore",
            "KINETO_LOG_LEVEL": "6",
        }
        environment = {**os.environ, **settled, "PYTHONUNBUFFERED": "1"}
        # The working directory comes first on the path of `python -m`, so that `ops` is the tree's.
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        command = [
            sys.executable,
            "-m",
            "suites.core.server",
            str(theirs.fileno()),
            str(os.getpid()),
            "torch",
            *preload,
        ]
        self._process = subprocess.Popen(
            command,
            pass_fds=[theirs.fileno()],
            cwd=tree,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        theirs.close()
        self._log = log
        self._threads: int | None = None

    @property
    def threads(self) -> int:
        """Threads the server had when it was ready to fork; waits until it is."""
        if self._threads is None:
            self._threads = int(self._receive()["threads"])
        return self._threads

    def fork(self, memory_limit: int = 0) -> Worker:
        """Starts a worker whose writable memory is bounded to `memory_limit` bytes (0: unbounded)."""
        _ = self.threads
        ours, theirs = socket.socketpair()
        with theirs:
            request = json.dumps({"do": "fork", "memory_limit": memory_limit}).encode()
            socket.send_fds(self._link, [request], [theirs.fileno()])
            answer = self._receive()
        return Worker(self, answer["pid"], ours)

    def reap(self, pid: int) -> int:
        """Kills the worker's process group and returns the worker's exit code."""
        for kill in (os.killpg, os.kill):
            try:
                kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self._link.sendall(json.dumps({"do": "wait", "pid": pid}).encode())
        return int(self._receive()["exit"])

    def close(self) -> None:
        """Ends the server and its workers."""
        self._link.close()
        self._process.kill()
        self._process.wait()

    def _receive(self) -> dict[str, Any]:
        self._link.settimeout(START_TIMEOUT)
        try:
            data = self._link.recv(1 << 16)
        except OSError:
            data = b""
        if not data:
            raise ServerLost(f"the worker server ended; {getattr(self._log, 'name', 'its log')} says why")
        answer: dict[str, Any] = json.loads(data)
        return answer
