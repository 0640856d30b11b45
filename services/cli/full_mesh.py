"""`python -m services.cli.full_mesh broker collector ...`: several services in one process.

Their nats-server and Envoy are children of that process. They start in the order given and stop
in reverse.
"""

import importlib
import inspect
import sys
from collections.abc import Sequence

from services.shared.errors import ConfigError
from services.shared.run import EXIT_CONFIG, run_many
from services.shared.service import BaseService

__all__ = ["find_service_class", "main"]


def find_service_class(name: str) -> type[BaseService]:
    """Give the class of a service: the one of this name in `services.<name>.service`.

    Raises `ConfigError` when there is none.
    """
    module_name = f"services.{name}.service"
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if not module_name.startswith(error.name or "-"):
            raise
        raise ConfigError(f"expected the name of a service, got {name!r}") from None
    for _, found in inspect.getmembers(module, inspect.isclass):
        if issubclass(found, BaseService) and getattr(found, "name", None) == name:
            return found
    raise ConfigError(f"expected a service {name!r} in {module_name}, and there is none")


def main(names: Sequence[str]) -> None:
    """Run the services of these names until a signal, and exit."""
    try:
        classes = [find_service_class(name) for name in names]
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(EXIT_CONFIG)
    run_many(classes)


if __name__ == "__main__":
    main(sys.argv[1:])
