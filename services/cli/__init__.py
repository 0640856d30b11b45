"""The `marketprism` command line, and the supervisor behind `marketprism up`."""

__all__ = ["main"]


def main() -> None:
    """Run the command line; the entry point of the `marketprism` script."""
    # Imported here, so that a part of this package can be used without all that commands need.
    from services.cli.app import run

    run()
