"""`python -m services.gateway`: runs the gateway, or checks or prints Envoy's configuration."""

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from services.gateway.envoy import validate_config
from services.gateway.service import GatewayService, render_gateway
from services.gateway.settings import GatewaySettings
from services.shared.errors import ConfigError, MarketPrismError
from services.shared.loading import load_settings
from services.shared.run import EXIT_CONFIG, EXIT_FAILURE, EXIT_OK, run
from services.shared.settings import load_mesh

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line asks, and give the exit status."""
    parser = argparse.ArgumentParser(prog="python -m services.gateway", description=__doc__)
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument(
        "--validate",
        action="store_true",
        help="let Envoy check the configuration that it would get, and exit",
    )
    choice.add_argument(
        "--print-config",
        action="store_true",
        help="print the configuration that Envoy would get, and exit",
    )
    given = parser.parse_args(arguments)
    if not given.validate and not given.print_config:
        run(GatewayService)
    try:
        with tempfile.TemporaryDirectory(prefix="marketprism-gateway-") as directory:
            mesh = load_mesh()
            settings = load_settings(GatewaySettings, "gateway")
            rendered = render_gateway(mesh, settings, Path(directory))
            if given.print_config:
                sys.stdout.write(rendered.text)
            else:
                said = asyncio.run(validate_config(rendered.file))
                sys.stdout.write(f"{said}\n" if said else "")
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_CONFIG
    except MarketPrismError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_FAILURE
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
