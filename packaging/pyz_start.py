"""The beginning of reconsup.pyz (its `__main__`): holds signals back, and gives the program a Python of its own.

Three things come before shiv's own start, which knows nothing of them:
- signals are blocked, as reconsup/__main__.py does: what comes while it unpacks and imports waits for the program;
- a Python for which this file was not made is told so, in one sentence;
- Python becomes itself once more, in the same process, with -I and -S: no PYTHONPATH, no site-packages of the machine
  or of the user, no start-up files. Nothing but the standard library and what is in the file can be imported.
Only modules that are part of Python itself are used before that: what PYTHONPATH holds cannot stand in for them.
"""

import _imp
import _signal
import posix
import sys

BUILT_FOR = ""  # written by pyz.py: what the names of compiled modules end with: version, processor and C library
EXIT_CONFIG = 78
HELD = (  # the same as in reconsup/__main__.py
    *(_signal.SIGTERM, _signal.SIGINT, _signal.SIGHUP, _signal.SIGQUIT),
    *(_signal.SIGUSR1, _signal.SIGUSR2, _signal.SIGTTIN, _signal.SIGTTOU),
)


def refuse_another_python():
    """What was compiled for one version cannot be imported by another."""
    found = ([*_imp.extension_suffixes(), "none"])[0]
    if found != BUILT_FOR:
        kind, here = BUILT_FOR.strip(".").partition(".")[0], found.strip(".").partition(".")[0]
        version = kind.partition("-")[2][:1] + "." + kind.partition("-")[2][1:].partition("-")[0]
        sys.stderr.write(
            "reconsup: this file needs Python " + version + " (" + kind + "), and this is " + here + ": start it with "
            "python" + version + ", or take the one file that needs no Python (`make binary`)\n"
        )
        sys.exit(EXIT_CONFIG)


def be_alone():
    """Become a Python that sees nothing but its standard library. The pid stays, and so does what waits for it."""
    if not (sys.flags.isolated and sys.flags.no_site):
        python = sys.executable or posix.readlink("/proc/self/exe")  # without PATH it does not know its own name
        posix.execv(python, [python, "-I", "-S", *sys.argv])


def main():
    """Hold signals back, look at Python, unpack, and let shiv start the program."""
    _signal.pthread_sigmask(_signal.SIG_BLOCK, HELD)
    refuse_another_python()
    be_alone()
    import pyz_unpack

    pyz_unpack.unpack(sys.argv[0])
    import _bootstrap

    del sys.path[0]  # this file: all that is in it has been imported or unpacked
    _bootstrap.bootstrap()


main()
