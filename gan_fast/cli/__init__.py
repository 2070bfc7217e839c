"""The command line ``gan-fast``: one module for each subcommand, with ``add_parser(subparsers)`` and ``run(args) ->
int``."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
import warnings
from collections.abc import Sequence

import gan_fast

__all__ = ["main"]

_COMMANDS = ("train", "sample", "eval", "tune", "doctor", "demo")

# What a user can cause: wrong arguments, files, data, checkpoints, missing extras. Anything else is a bug and keeps its
# traceback.
_USER_ERRORS = (ValueError, OSError, RuntimeError, ImportError)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments without the program's name; by default the process's own.

    Returns:
        The exit status: 0 if it worked, 1 if the command's own check failed, 2 after an error, 130 after Ctrl-C.
    """
    parser = _parser()
    args = parser.parse_args(argv)
    debug = getattr(args, "debug", False)
    _set_up_messages(debug)
    try:
        return int(args.run(args))
    except KeyboardInterrupt as interrupt:
        print(f"gan-fast: {interrupt or 'interrupted'}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of a pipe (head, less) has gone: point the stream elsewhere so that its closing does not fail too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except _USER_ERRORS as error:
        if debug:
            raise
        print(f"gan-fast: error: {_one_line(error)}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gan-fast",
        description="Train GANs fast: fused kernels, a trainer with exact resume, data and metrics.",
        epilog="gan-fast COMMAND --help tells more.",
    )
    parser.add_argument("--version", action="version", version=f"gan-fast {gan_fast.__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for name in _COMMANDS:
        importlib.import_module(f"gan_fast.cli.{name}").add_parser(subparsers)
    for subparser in subparsers.choices.values():
        subparser.add_argument("--debug", action="store_true", help="show tracebacks and debug messages")
    return parser


def _set_up_messages(debug: bool) -> None:
    """The library's log lines and warnings as plain lines on stderr, above a progress bar if there is one."""
    from tqdm.auto import tqdm

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            prefix = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
            tqdm.write(prefix + record.getMessage(), file=sys.stderr)

    root = logging.getLogger("gan_fast")
    for handler in [
        handler for handler in root.handlers if isinstance(handler, logging.Handler) and handler.name == "cli"
    ]:
        root.removeHandler(handler)
    lines = Lines()
    lines.name = "cli"
    root.addHandler(lines)
    root.setLevel(logging.DEBUG if debug else logging.INFO)
    if not debug:
        logging.getLogger("gan_fast.accelerate").setLevel(logging.WARNING)  # its table has a line for each layer
    warnings.formatwarning = lambda message, category, filename, lineno, line=None: f"warning: {message}\n"


def _one_line(error: BaseException) -> str:
    from gan_fast.data import DownloadError

    if isinstance(error, DownloadError):  # a list of files and addresses, meant to be read line by line
        return str(error)
    return " ".join(str(error).split()) or type(error).__name__
