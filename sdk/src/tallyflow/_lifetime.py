"""What happens to emitters when the program ends, and when the process forks.

At the end of the program events are flushed twice: once the main thread has ended, while new threads
may still be made (a program that ends right after its first event has no connection yet), and from
`atexit`, after the other threads have ended too. Both together take at most `exit_seconds_max`.
`os._exit` and a kill give no chance to flush.

A forked child begins with an empty buffer and connections of its own: what was emitted before the
fork is the parent's to deliver. The parent's producer stays referenced in the child, untouched:
closing it there would unregister the parent's sockets.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from typing import Protocol
from weakref import WeakSet

from tallyflow._delivery import Delivery

_started: set[Delivery] = set()
_parents: list[Delivery] = []
_emitters: WeakSet[Renewable] = WeakSet()
_lock = threading.Lock()
_watcher: threading.Thread | None = None
_ending_since: float | None = None


class Renewable(Protocol):
    """What starts anew in a forked child."""

    def _renew(self) -> Delivery: ...


def register(emitter: Renewable) -> None:
    """See to it that a forked child gets a buffer of its own. Does not keep the emitter alive."""
    _emitters.add(emitter)


def begin(delivery: Delivery) -> None:
    """Flush this buffer at the end of the program; to be called once its thread runs."""
    global _watcher
    with _lock:
        _started.add(delivery)
        if _watcher is None:
            # Not a daemon: the interpreter waits for it before it shuts down.
            _watcher = threading.Thread(target=_watch, name="tallyflow-exit", daemon=False)
            _watcher.start()


def end(delivery: Delivery) -> None:
    """It was closed."""
    with _lock:
        _started.discard(delivery)


def _watch() -> None:
    threading.main_thread().join()
    for delivery in _remaining():
        delivery.flush(_seconds_left(delivery))


def _at_exit() -> None:
    for delivery in _remaining():
        delivery.close(_seconds_left(delivery))


def _remaining() -> list[Delivery]:
    global _ending_since
    with _lock:
        if _ending_since is None:
            _ending_since = time.monotonic()
        return list(_started)


def _seconds_left(delivery: Delivery) -> float:
    assert _ending_since is not None, "the program is ending"
    return max(0.0, _ending_since + delivery.options.exit_seconds_max - time.monotonic())


def _after_fork_in_child() -> None:
    global _lock, _watcher
    _lock = threading.Lock()  # another thread of the parent may have held it
    _watcher = None
    _started.clear()
    for emitter in list(_emitters):
        _parents.append(emitter._renew())


atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
