"""The command line: `uniecs COMMAND`; each command loads its room on use.

Results go to stdout, progress and notes to stderr. Exit status: 0 fine, 1 failed (one line, "uniecs: error:
..."), 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable, Sequence

from uniecs import __version__, cli_bench, cli_models, cli_search
from uniecs.errors import UniecsError

INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; argparse exits with 2 by itself on wrong usage."""
    if sys.stderr is None:  # closed: else notes would go to stdout, and progress bars fail
        sys.stderr = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a title may hold what the terminal's encoding lacks
    args = build_parser().parse_args(argv)
    command: Callable[[argparse.Namespace], int] = args.command
    try:
        status = command(args)
        print(end="", flush=True)  # into nothing where stdout is closed
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED)
    except BrokenPipeError:  # the reader (head, less) left: no more output, and none at interpreter exit either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (UniecsError, OSError) as error:
        return _fail(f"error: {error}", 1)
    return status


def _fail(message: str, status: int) -> int:
    print("uniecs: " + " ".join(message.split()), file=sys.stderr)
    return status


def build_parser() -> argparse.ArgumentParser:
    """The whole command line as one argparse parser."""
    parser = argparse.ArgumentParser(prog="uniecs", description="Find products by words, a photo or both.")
    parser.add_argument("--version", action="version", version=f"uniecs {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    as_json = argparse.ArgumentParser(add_help=False)
    as_json.add_argument("--json", action="store_true", help="print one JSON document on stdout")
    where = argparse.ArgumentParser(add_help=False)
    where.add_argument("--backend", choices=("auto", "openvino", "onnxruntime", "tensorrt"), default="auto")
    where.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    where.add_argument("--precision", choices=("auto", "fp32", "bf16", "fp16", "int8"), default="auto")
    cli_search.add_commands(commands, as_json, where)
    cli_models.add_commands(commands, as_json, where)
    cli_bench.add_commands(commands, as_json, where)
    return parser
