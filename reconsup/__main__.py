"""Where the program begins: signals are held back before anything is imported.

The imports take a third of a second, those of `run` one more. A signal in that time would be lost (the kernel drops
what PID 1 has no handler for), end the program on the spot, or become a traceback. `run` lets them come when the
supervisor has its handlers; every other command before it begins. Only what Python itself does before is not covered.
"""

import signal
import sys

HELD = (
    *(signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT),
    *(signal.SIGUSR1, signal.SIGUSR2, signal.SIGTTIN, signal.SIGTTOU),
)
EXIT_INTERRUPTED = 130


def main() -> None:
    """Run the command line and exit with its code."""
    signal.pthread_sigmask(signal.SIG_BLOCK, HELD)
    try:
        try:
            from reconsup import cli

            if cli.with_default_command(sys.argv[1:])[0] != "run":
                signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD)
            cli.main()
        finally:
            # who interrupts twice must not interrupt the end
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)


if __name__ == "__main__":
    main()
