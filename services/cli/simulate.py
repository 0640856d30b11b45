"""`marketprism simulate`: a venue on loopback, for who develops against venues offline."""

from collections.abc import Sequence

__all__ = ["run_simulate"]


def run_simulate(arguments: Sequence[str]) -> int:
    """Run a simulated venue until a signal; gives the exit status.

    `arguments` are those of `python -m services.simulator`, which understands them.
    """
    from services.simulator.command import main

    return main(arguments, "marketprism simulate")
