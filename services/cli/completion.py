"""What the shell offers while a command is typed: venues, and the symbols that a mesh has."""

import typer

__all__ = ["complete_exchange", "complete_symbol"]

_SECONDS = 1.5


def complete_exchange(incomplete: str) -> list[str]:
    """Give the venues that begin with what was typed."""
    from services.cli.venue_names import VENUES

    return [name for name in VENUES if name.startswith(incomplete)]


def complete_symbol(context: typer.Context, incomplete: str) -> list[str]:
    """Give the symbols that the mesh has of the venue that was typed; none when nobody answers."""
    from services.cli.client import gateway_address, run_async
    from services.cli.instruments import list_instruments

    given = context.params
    try:
        address = gateway_address(
            given.get("address"), given.get("data_dir"), given.get("config_dir")
        )
        found = run_async(list_instruments(address, given.get("exchange") or "", _SECONDS))
    except Exception:  # whatever it is: a shell that waits for words has no place for errors
        return []
    return [each.symbol for each in found if each.symbol.startswith(incomplete.upper())]
