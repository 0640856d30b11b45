"""Which process a collector is, so that another on the same machine can see that it has ended.

A process that was killed has stopped publishing for certain; its slots need not wait for the
lease. That is only told where it is beyond doubt: the same boot of the same machine, the same
namespaces of process ids and of time (not another container), and no process with that id that was
started at that time. Everywhere else (other machines, other systems than Linux) the lease decides.
"""

import os
from pathlib import Path

__all__ = ["has_ended", "this_process"]

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_NAMESPACES = (Path("/proc/self/ns/pid"), Path("/proc/self/ns/time"))
_START_TIME = 18  # among the fields behind the state, see proc_pid_stat(5)


def this_process() -> str:
    """Give what identifies this process, empty where that cannot be told."""
    try:
        return f"{_place()}/{os.getpid()}/{_start_time(os.getpid())}"
    except (OSError, ValueError, IndexError):
        return ""


def has_ended(process: str) -> bool:
    """Tell whether a process has certainly ended; False also when that cannot be told."""
    try:
        place, pid, started = process.split("/")
        if place != _place():
            return False
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass  # it is somebody else's, and may still be told from its start
        return _start_time(int(pid)) != int(started)
    except (OSError, ValueError, IndexError, OverflowError):
        return False


def _place() -> str:
    # A kernel before 5.6 has no namespaces of time.
    spaces = [str(link.readlink()) for link in _NAMESPACES if link.is_symlink()]
    return ":".join([_BOOT_ID.read_text().strip(), *spaces])


def _start_time(pid: int) -> int:
    """Give when a process was started, clock ticks since boot; -1 when it will never run again."""
    state, *fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    return -1 if state in (b"Z", b"X") else int(fields[_START_TIME])
