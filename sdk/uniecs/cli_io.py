"""What the commands share: how they are added, which extra they need, and how they report."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uniecs.errors import InputError, MissingExtraError

if TYPE_CHECKING:
    from uniecs.catalog import Rejected
    from uniecs.encoder import Encoder

SHOWN_REJECTIONS = 20


def add_command(
    commands: Any,
    name: str,
    command: Callable[[argparse.Namespace], int],
    does: str,
    *parents: argparse.ArgumentParser,
) -> argparse.ArgumentParser:
    """Add one command, which `command` runs."""
    parser: argparse.ArgumentParser = commands.add_parser(name, help=does, description=does, parents=parents)
    parser.set_defaults(command=command)
    return parser


def views(text: str) -> tuple[str, ...]:
    """`--views a,b` as a tuple."""
    return tuple(text.split(","))


@contextmanager
def needs(command: str, extra: str) -> Iterator[None]:
    """Say which extra to install when a package other than uniecs itself is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "uniecs":
            raise
        raise MissingExtraError(f"uniecs {command} needs {error.name}: pip install 'uniecs[{extra}]'") from error


def load_encoder(args: argparse.Namespace) -> Encoder:
    """The encoder that --model, --device, --backend and --precision ask for."""
    from uniecs.encoder import load

    return load(args.model, device=args.device, backend=args.backend, precision=args.precision)


def check_writable(out: Path) -> None:
    """Raise `InputError` now where a file could not be written later: what it is to hold takes long to make."""
    if out.is_dir():
        raise InputError(f"{out} is a folder; expected a file to write")
    if not os.access(out.parent, os.W_OK | os.X_OK):
        raise InputError(f"{out} cannot be written: {out.parent} is missing or cannot be written to")


def print_json(document: object) -> None:
    """One JSON document on stdout, its characters escaped where stdout's encoding lacks one of them."""
    text = json.dumps(document, ensure_ascii=False, indent=2, default=str)
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(document, indent=2, default=str)
    print(text)


def rejections(rejected: Sequence[Rejected]) -> list[dict[str, Any]]:
    """Rejected rows as JSON types."""
    return [{"row": each.row, "id": each.id, "reason": str(each.error)} for each in rejected]


def note_rejected(rejected: Sequence[Rejected]) -> None:
    """Print the first rejected rows with their reasons to stderr, then a count of the others."""
    for each in rejected[:SHOWN_REJECTIONS]:
        print(f"rejected row {each.row} (id {each.id}): {each.error}", file=sys.stderr)
    if len(rejected) > SHOWN_REJECTIONS:
        print(f"and {len(rejected) - SHOWN_REJECTIONS} more rejected rows", file=sys.stderr)
