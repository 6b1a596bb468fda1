"""``covey completion`` and ``covey-edge completion``: what a shell needs to complete commands, options and files."""

from __future__ import annotations

import argparse
from pathlib import Path

from edge_runtime import output
from edge_runtime.errors import ConfigError

SHELLS = ("bash", "zsh", "tcsh")


def add_completion(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], parser: argparse.ArgumentParser
) -> None:
    """Add ``completion``; ``parser``: the whole program's, to which the commands belong."""
    one = commands.add_parser("completion", help="let a shell complete commands", description=_completion.__doc__)
    one.add_argument("shell", choices=SHELLS, help="the shell")
    output.add_format(one)
    one.set_defaults(run=lambda args: _completion(args, parser))


def _completion(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Print a script that lets a shell complete commands, options and files.

    bash: covey completion bash | sudo tee /etc/bash_completion.d/covey; zsh: covey completion zsh > ~/.zfunc/_covey

    Raises:
        ConfigError: shtab, which makes the script, is not installed.
    """
    try:
        import shtab
    except ImportError as error:
        raise ConfigError("completion needs shtab", "pip install shtab") from error
    _complete_paths(parser, shtab.FILE)
    script = shtab.complete(parser, shell=args.shell)
    output.emit(args, {"shell": args.shell, "script": script}, script.rstrip())
    return 0


def _complete_paths(parser: argparse.ArgumentParser, files: object) -> None:
    """Let what is read as a path be completed as one, in every command."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                _complete_paths(command, files)
        elif action.type is Path:
            action.complete = files  # type: ignore[attr-defined]
