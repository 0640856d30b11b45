"""Errors as a person reads them on the command line: sentences, never a traceback."""

import contextlib
import sys
from collections.abc import Iterator

import grpc
import typer

from services.shared.errors import (
    ConfigError,
    InvalidArgument,
    MarketPrismError,
    StartupError,
    Unavailable,
    from_rpc_error,
    grpc_code,
)

__all__ = ["EXIT_FAILURE", "EXIT_USAGE", "error_lines", "readable_errors"]

EXIT_FAILURE = 1
"""It did not work, or something is not as it should be."""

EXIT_USAGE = 2
"""The request itself is wrong: options, configuration, an input that cannot be read."""


def error_lines(error: MarketPrismError, *, address: str = "") -> list[str]:
    """Give what to print of an error: the sentence, the fields that are wrong, the reason.

    `address` is the server that was asked.
    """
    if isinstance(error, Unavailable) and error.reason == Unavailable.default_reason and address:
        # No details came with it, so it is the connection that failed, not an answer.
        return [
            f"nothing answers at {address} ({error.message.splitlines()[0]}): start a mesh with "
            "`marketprism up`, or name another one with --address"
        ]
    if isinstance(error, (ConfigError, StartupError)):
        # Ours, of this machine: the sentence says it all, and no program reads it.
        return error.message.splitlines()
    code = grpc_code(error).name
    lines = [error.message]
    lines += [f"  {violation.field}: {violation.description}" for violation in error.violations]
    kind = code if error.reason == code else f"{code}, {error.reason}"
    facts = "".join(f" {key}={value}" for key, value in sorted(error.metadata.items()))
    lines.append(f"  ({kind}{facts})")
    if error.reason == "INSTRUMENT_NOT_FOUND":
        exchange = error.metadata.get("exchange", "")
        lines.append(f"  `marketprism instruments {exchange}` lists those that there are")
    if error.retry_after is not None:
        lines.append(f"  try again in {error.retry_after:g} s")
    return lines


@contextlib.contextmanager
def readable_errors(address: str = "") -> Iterator[None]:
    """Print an error as sentences on stderr and exit with its status."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        _exit(from_rpc_error(error), address)
    except MarketPrismError as error:
        _exit(error, address)


def _exit(error: MarketPrismError, address: str) -> None:
    for line in error_lines(error, address=address):
        print(line, file=sys.stderr)
    wrong_request = isinstance(error, (ConfigError, InvalidArgument))
    raise typer.Exit(EXIT_USAGE if wrong_request else EXIT_FAILURE) from None
