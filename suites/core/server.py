"""The fork server: imports torch once, then forks a fresh process for every worker.

It starts no thread and touches no device, so that forking is safe and every worker begins alike. The runner starts one
per replicate: processes forked from one server share its address layout, those of two servers do not.
Run as `python -m suites.core.server FD [MODULE ...]`, where FD is a socket to the runner.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import resource
import signal
import socket
import sys

PR_SET_PDEATHSIG = 1


def die_with(parent: int) -> None:
    """Has the kernel kill this process when `parent`, its parent, ends in whatever way (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before we asked
        os._exit(1)


def limit_memory(limit: int) -> None:
    """Bounds the writable memory of this process, in bytes (0: no bound); allocations beyond it fail."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if limit:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def fork_worker(server_link: socket.socket, worker_fd: int, request: dict[str, int]) -> int:
    """Forks a worker that talks through `worker_fd`; returns its process id."""
    parent = os.getpid()
    pid = os.fork()
    if pid:
        os.close(worker_fd)
        return pid
    status = 1
    try:
        die_with(parent)
        server_link.close()
        os.setpgid(0, 0)  # what an op starts can be killed with it, and Ctrl-C reaches the runner alone
        limit_memory(request["memory_limit"])
        from suites.core.worker import serve

        serve(socket.socket(fileno=worker_fd))
        status = 0
    except BaseException as error:
        print(f"worker {os.getpid()}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    finally:
        os._exit(status)


def main() -> None:
    link = socket.socket(fileno=int(sys.argv[1]))
    die_with(int(sys.argv[2]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in sys.argv[3:]:
        with contextlib.suppress(ImportError):  # an optional package: who needs it says that it is missing
            importlib.import_module(name)
    gc.freeze()  # a collection in a worker leaves alone, and so shares, what was imported here
    threads = len(os.listdir("/proc/self/task")) if sys.platform == "linux" else 1
    link.sendall(json.dumps({"threads": threads}).encode())
    while True:
        data, fds, _, _ = socket.recv_fds(link, 1 << 16, 1)
        if not data:
            return
        request = json.loads(data)
        if request["do"] == "fork":
            reply = {"pid": fork_worker(link, fds[0], request)}
        else:
            reply = {"exit": os.waitstatus_to_exitcode(os.waitpid(request["pid"], 0)[1])}
        link.sendall(json.dumps(reply).encode())


if __name__ == "__main__":
    main()
