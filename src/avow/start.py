"""The command `avow`: the commands that show evidence or hold keys go on in a measured process.

That is this process, but begun again: isolated (`-I`), without `site` (`-S`) and so without `.pth`
files and `sitecustomize`, without compiled files that somebody left, and with an environment in
which nothing is left that brings code in. See `avow.runtime.boot` for what comes then.

Imports nothing but what every Python has imported at its start.
"""

import os
import sys

from avow.runtime.boot import FLAGS

# The module whose `main` is the command.
COMMANDS = "avow.cli"
MEASURED = frozenset({"broker", "run", "attest", "measure", "store", "witness"})
# Of the others, when they show evidence of their own.
OWN_EVIDENCE = "--tee"

# What decides how a command talks, where it finds a user's files, and what the service manager
# says. Everything else is data for the command and no environment of its process: the dynamic
# loader, the C library, OpenSSL and Python all take code or paths of code from variables.
KEPT = frozenset(
    {
        "COLUMNS",
        "FORCE_COLOR",
        "HOME",
        "INVOCATION_ID",
        "JOURNAL_STREAM",
        "LANG",
        "LANGUAGE",
        "LINES",
        "LISTEN_FDNAMES",
        "LISTEN_FDS",
        "LISTEN_PID",
        "LOGNAME",
        "NOTIFY_SOCKET",
        "NO_COLOR",
        "PATH",
        "TERM",
        "TMPDIR",
        "TSS2_LOG",
        "TZ",
        "USER",
        "XDG_RUNTIME_DIR",
    }
)
KEPT_PREFIXES = ("AVOW_", "LC_")
# Standard streams that the caller has closed stay closed.
_DESCRIPTOR_MIN = 3


def main() -> None:
    """The console script."""
    if measured(sys.argv[1:]):
        begin_again(sys.argv[1:])
    from avow.cli import main as command

    command()


def measured(arguments: "list[str]") -> bool:
    """Whether a command shows evidence or holds keys."""
    # `avow -- broker` is a broker too: no option before a command's name has a value, so the
    # command is the first word that is no option.
    command = next((each for each in arguments if not each.startswith("-")), None)
    return command in MEASURED or any(
        each == OWN_EVIDENCE or each.startswith(f"{OWN_EVIDENCE}=") for each in arguments
    )


def clean(environment: "dict[str, str]") -> "dict[str, str]":
    """What a measured process keeps of an environment."""
    return {
        name: value
        for name, value in environment.items()
        if name in KEPT or name.startswith(KEPT_PREFIXES)
    }


def begin_again(arguments: "list[str]") -> None:
    """Replaces this process. Returns never."""
    import fcntl

    everything = "\0".join(f"{name}={value}" for name, value in os.environ.items())
    made = os.memfd_create("avow-environment", os.MFD_CLOEXEC)
    descriptor = fcntl.fcntl(made, fcntl.F_DUPFD, _DESCRIPTOR_MIN)
    os.close(made)
    os.write(descriptor, os.fsencode(everything))
    boot = os.path.join(os.path.dirname(os.path.abspath(__file__)), "runtime", "boot.py")
    given = () if not sys.flags.utf8_mode else ("-X", "utf8")
    # The interpreter that runs, whatever a variable makes of its name.
    running = os.path.realpath("/proc/self/exe")
    python = sys.executable if os.path.realpath(sys.executable) == running else running
    command = [python, *FLAGS, *given, boot, str(descriptor), COMMANDS, *arguments]
    os.execve(python, command, clean(dict(os.environ)))
