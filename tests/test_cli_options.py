"""An option has the same names in every command that takes it."""

from __future__ import annotations

import argparse
import importlib

import pytest

from gan_fast.cli import _COMMANDS, _options

NAMES = [getattr(_options, name) for name in _options.__all__]


def options(command: str) -> dict[str, argparse.Action]:
    """What a command's parser takes, by name."""
    parser = argparse.ArgumentParser()
    importlib.import_module(f"gan_fast.cli.{command}").add_parser(parser.add_subparsers())
    (subparsers,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return {name: action for action in subparsers.choices[command]._actions for name in action.option_strings}


@pytest.mark.parametrize("names", NAMES, ids=lambda names: names[0])
@pytest.mark.parametrize("command", _COMMANDS)
def test_a_command_takes_all_names_of_an_option_or_none(command: str, names: tuple[str, ...]) -> None:
    taken = options(command)
    actions = {id(taken[name]) for name in names if name in taken}
    assert len(actions) <= 1
    assert not actions or set(names) <= set(taken)


def test_each_option_is_taken_by_several_commands() -> None:
    for names in NAMES:
        assert sum(names[0] in options(command) for command in _COMMANDS) > 1, names
