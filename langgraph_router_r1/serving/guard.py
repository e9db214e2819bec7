"""Run a command and end it, with all that it started, when whoever started this process is gone.

    python -m langgraph_router_r1.serving.guard COMMAND ARGUMENT...

The parent holds the other end of standard input. When it closes, even because the parent was killed, the command's
process group is told to end, and made to ten seconds later.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence

GRACE_S = 10.0


def main(command: Sequence[str]) -> None:
    """Run the command until it ends by itself or standard input closes."""
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)

    def wait_for_parent() -> None:
        sys.stdin.buffer.read()
        _end(child)

    threading.Thread(target=wait_for_parent, daemon=True).start()
    code = child.wait()
    # The leader is gone; workers it left behind hold the memory.
    _signal_group(child.pid, signal.SIGKILL)
    os._exit(code if code >= 0 else 128 - code)


def _end(child: subprocess.Popen[bytes]) -> None:
    _signal_group(child.pid, signal.SIGTERM)
    try:
        child.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        _signal_group(child.pid, signal.SIGKILL)


def _signal_group(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)


if __name__ == "__main__":
    main(sys.argv[1:])
