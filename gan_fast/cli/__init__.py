"""The command line ``gan-fast``: one module for each subcommand, with ``add_parser(subparsers)`` and ``run(args) ->
int``."""

from __future__ import annotations

import argparse
import difflib
import importlib
import logging
import os
import sys
import warnings
from collections.abc import Sequence

import gan_fast

__all__ = ["main"]

_COMMANDS = ("train", "sample", "eval", "bench", "tune", "profile", "doctor", "demo")
_UNLISTED = ("demo",)  # for make demo

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
    args = _parse(sys.argv[1:] if argv is None else list(argv))
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


def _parse(words: list[str]) -> argparse.Namespace:
    """The parsed command line; unknown commands and options end the program with the near ones."""
    parser = _parser()
    command = next((word for word in words if not word.startswith("-")), None)
    if command is not None and command not in _COMMANDS:
        listed = [name for name in _COMMANDS if name not in _UNLISTED]
        parser.error(f"unknown command {command!r}; {_near(command, listed)}expected one of {', '.join(listed)}")
    if command is None and words and not any(option.startswith(words[0]) for option in parser._option_string_actions):
        hint = _near(words[0], list(parser._option_string_actions))
        parser.error(f"unrecognized arguments: {' '.join(words)}; {hint}gan-fast --help lists the commands")
    args, unknown = parser.parse_known_args(words)
    if unknown:
        hints = [_near(word.partition("=")[0], args.options) for word in unknown if word.startswith("-")]
        hint = next((hint for hint in hints if hint), "")
        parser.error(f"unrecognized arguments: {' '.join(unknown)}; {hint}gan-fast {command} --help lists the options")
    return args


def _near(word: str, choices: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.7)
    return f"did you mean {close[0]}? " if close else ""


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
        subparser.set_defaults(options=[word for word in subparser._option_string_actions if word.startswith("--")])
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
