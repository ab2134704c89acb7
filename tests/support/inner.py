"""Runs a command as PID 1 of a namespace of its own: `python inner.py FD COMMAND...`.

The command's pid as seen from here is written to FD, unless that is 0. This process ends as the command does, with its
exit code or of its signal; should it be killed first, the kernel kills the command, and with it all that lives in the
namespace.
Imports nothing of the tests: it is started hundreds of times.
"""

import ctypes
import os
import signal
import sys

CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWUSER = 0x20000, 0x20000000, 0x10000000
MS_PRIVATE, MS_REC = 0x40000, 0x4000
PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None, use_errno=True)
BUSY = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT)  # they are for the command


def call(what: str, result: int) -> None:
    """Raise what a system call said."""
    if result != 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


def unshare() -> None:
    """The next process that is forked is PID 1. Who is not root needs a user namespace for that."""
    uid, gid = os.getuid(), os.getgid()
    if LIBC.unshare(CLONE_NEWPID | CLONE_NEWNS) == 0:
        return
    call("unshare", LIBC.unshare(CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWUSER))
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def be_first(command: list[str]) -> None:
    """In the new process: see the namespace's own /proc, and become the command."""
    call("prctl", LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0))
    call("mount", LIBC.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None))
    call("mount /proc", LIBC.mount(b"proc", b"/proc", b"proc", 0, None))
    os.execvp(command[0], command)


def main() -> None:
    """Start, tell, wait, end alike."""
    told, command = int(sys.argv[1]), sys.argv[2:]
    if told:
        os.set_inheritable(told, False)
    unshare()
    pid = os.fork()
    if pid == 0:
        be_first(command)
    for number in BUSY:
        signal.signal(number, signal.SIG_IGN)
    if told:
        os.write(told, str(pid).encode())
        os.close(told)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code < 0:
        if -code in BUSY:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


if __name__ == "__main__":
    main()
