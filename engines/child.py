"""Server processes that end with the process that started them.

The kernel kills a child whose parent died (PDEATHSIG, Linux only). It ties that to the *thread* that
made the child, so a thread that lives as long as the child makes it; `spawn` may be called from any
thread. A child has a session of its own: a terminal's Ctrl-C does not reach it.
"""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

# Run by a fresh interpreter, not by preexec_fn: code between fork and exec may deadlock in a process
# with threads. Arguments: the parent's pid, then the command.
_LAUNCHER = """
import ctypes, os, signal, sys
for number in signal.valid_signals():
    try:
        signal.signal(number, signal.SIG_DFL)
    except (OSError, ValueError):
        pass
signal.pthread_sigmask(signal.SIG_SETMASK, [])
if sys.platform == "linux" and ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0) != 0:
    sys.exit("prctl(PR_SET_PDEATHSIG) failed")
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent process is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""


def spawn(executable: str, arguments: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """Start a child; its output goes to `log`, and its working directory is the one of `log`.

    Args:
        executable: An absolute path.

    Raises:
        OSError: there is no process or no log.
    """
    command = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), executable, *arguments]
    made: queue.Queue[subprocess.Popen[bytes] | OSError] = queue.Queue()

    def guard() -> None:
        try:
            with log.open("wb") as output:
                child = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    cwd=log.parent,
                    start_new_session=True,
                )
        except OSError as error:
            made.put(error)
            return
        made.put(child)
        child.wait()

    threading.Thread(target=guard, name="child-guard", daemon=True).start()
    result = made.get()
    if isinstance(result, OSError):
        raise result
    return result
