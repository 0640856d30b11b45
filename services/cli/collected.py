"""What the collector is told beside its configuration: which venues, where, and what of them."""

import json
from collections.abc import Mapping, Sequence

from services.cli.venue import VenueOptions, simulated_urls
from services.cli.venue_names import can_match
from services.collector.settings import CollectorSettings
from services.shared.errors import ConfigError
from services.shared.settings import ENV_PREFIX

__all__ = ["live_environment", "simulated_environment"]

_EXCHANGES = f"{ENV_PREFIX}COLLECTOR__EXCHANGES__"
_ANYTHING = ("*",)


def simulated_environment(
    options: VenueOptions,
    addresses: Mapping[str, str],
    symbols: Sequence[str],
    configured: CollectorSettings,
) -> dict[str, str]:
    """Give the environment that points the collector at simulated venues, and at nothing else.

    `addresses` are their `host:port` by exchange; `symbols` what is collected, all when empty.
    """
    environment: dict[str, str] = {}
    missing = [each for each in options.exchanges if each not in configured.exchanges]
    if missing:
        # A variable can change a venue of the file, and cannot add one; that of the section can.
        section = configured.model_dump(mode="json", exclude_unset=True)["exchanges"]
        section |= {exchange: {"symbols": list(_ANYTHING)} for exchange in missing}
        environment[_EXCHANGES.removesuffix("__")] = json.dumps(section)
    for exchange in options.exchanges:
        rest_url, ws_url = simulated_urls(exchange, addresses[exchange])
        environment |= _of(
            exchange,
            ENABLED="true",
            REST_URL=rest_url,
            WS_URL=ws_url,
            SYMBOLS=json.dumps(list(symbols or _ANYTHING)),
        )
    for exchange in configured.exchanges:
        if exchange not in options.exchanges:
            environment |= _of(exchange, ENABLED="false")
    return environment


def live_environment(
    exchanges: Sequence[str], symbols: Sequence[str], configured: CollectorSettings
) -> dict[str, str]:
    """Give the environment that chooses among the configured venues, and their symbols.

    Venues that are not named, or cannot have any of the symbols, are switched off. Nothing is
    changed of what is not asked for. Raises `ConfigError`.
    """
    for exchange in exchanges:
        if exchange not in configured.exchanges:
            raise ConfigError(
                "--exchanges: expected venues of config/collector.yaml, "
                f"{', '.join(configured.exchanges)}, got {exchange!r}"
            )
    enabled = exchanges or [
        name for name, settings in configured.exchanges.items() if settings.enabled
    ]
    environment: dict[str, str] = {}
    if exchanges:
        for exchange in configured.exchanges:
            environment |= _of(exchange, ENABLED="true" if exchange in exchanges else "false")
    if not symbols:
        return environment
    placed: set[str] = set()
    for exchange in enabled:
        wanted = [each for each in symbols if not each.startswith("!")]
        fitting = [each for each in wanted if can_match(exchange, each)]
        placed.update(fitting)
        if fitting:
            excluded = [each for each in symbols if each.startswith("!")]
            environment |= _of(exchange, SYMBOLS=json.dumps(fitting + excluded))
        elif exchanges:
            raise ConfigError(
                f"--symbols: expected something for {exchange} among them, which --exchanges "
                f"names, got {', '.join(symbols)}"
            )
        else:
            environment |= _of(exchange, ENABLED="false")
    for symbol in symbols:
        if symbol not in placed and not symbol.startswith("!"):
            raise ConfigError(
                f"--symbols: expected symbols that one of {', '.join(enabled)} can have, such as "
                f"BTC-USDT, BTC-USDT-PERP or *-USD-PERP, got {symbol!r}"
            )
    return environment


def _of(exchange: str, **values: str) -> dict[str, str]:
    return {f"{_EXCHANGES}{exchange.upper()}__{key}": value for key, value in values.items()}
