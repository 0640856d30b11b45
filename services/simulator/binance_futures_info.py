"""The `exchangeInfo` of Binance futures: every contract with its type, size, dates and filters.

Follows "Exchange Information" of the USD-M and COIN-M documents.
"""

from collections.abc import Iterable, Mapping

from services.simulator.binance_futures_contracts import Contract, decimal
from services.simulator.binance_http import rate_limit
from services.simulator.fixed import canonical

__all__ = ["exchange_info"]

_ORDER_TYPES = (
    *("LIMIT", "MARKET", "STOP", "STOP_MARKET"),
    *("TAKE_PROFIT", "TAKE_PROFIT_MARKET", "TRAILING_STOP_MARKET"),
)


def exchange_info(
    contracts: Iterable[Contract],
    *,
    inverse: bool,
    now_ms: int,
    weight_limit: int,
    gone: Mapping[str, Contract],
) -> dict[str, object]:
    """Return the answer; `gone` are contracts that were delivered or delisted meanwhile."""
    listed = [_symbol(contract, "TRADING") for contract in contracts]
    listed += [_symbol(contract, "SETTLING") for contract in gone.values()]
    info: dict[str, object] = {
        "timezone": "UTC",
        "serverTime": now_ms,
        "rateLimits": [
            rate_limit("REQUEST_WEIGHT", "MINUTE", 1, weight_limit),
            rate_limit("ORDERS", "MINUTE", 1, 1200),
        ],
        "exchangeFilters": [],
        "symbols": listed,
    }
    if not inverse:
        info["futuresType"] = "U_MARGINED"
        info["assets"] = [
            {"asset": asset, "marginAvailable": True, "autoAssetExchange": "-10000"}
            for asset in sorted({contract.spec.settlement for contract in contracts})
        ]
    return info


def _symbol(contract: Contract, status: str) -> dict[str, object]:
    spec = contract.spec
    entry: dict[str, object] = {
        "symbol": spec.symbol,
        "pair": contract.pair,
        "contractType": contract.kind,
        "deliveryDate": contract.delivery_ms,
        "onboardDate": spec.listed_us // 1000,
    }
    if contract.inverse:
        entry |= {
            "contractStatus": status,
            "contractSize": contract.size,
            "equalQtyPrecision": 4,
            "maxMoveOrderLimit": 10000,
        }
    else:
        entry["status"] = status
    return entry | {
        "maintMarginPercent": "2.5000",
        "requiredMarginPercent": "5.0000",
        "baseAsset": spec.base,
        "quoteAsset": spec.quote,
        "marginAsset": spec.settlement,
        "pricePrecision": contract.price_decimals,
        "quantityPrecision": contract.quantity_decimals,
        "baseAssetPrecision": 8,
        "quotePrecision": 8,
        "underlyingType": "COIN",
        "underlyingSubType": ["PoW"] if spec.base == "BTC" else [],
        "triggerProtect": "0.0500",
        "liquidationFee": "0.012500",
        "marketTakeBound": "0.05",
        "filters": _filters(contract),
        "orderTypes": list(_ORDER_TYPES),
        "timeInForce": ["GTC", "IOC", "FOK", "GTX", "GTD"],
    }


def _filters(contract: Contract) -> list[dict[str, object]]:
    spec = contract.spec
    tick, lot = decimal(spec.tick, contract.price_decimals), canonical(spec.lot)
    filters: list[dict[str, object]] = [
        {
            "filterType": "PRICE_FILTER",
            "minPrice": tick,
            "maxPrice": "4529764",
            "tickSize": tick,
        },
        {"filterType": "LOT_SIZE", "stepSize": lot, "minQty": lot, "maxQty": "1000000"},
        {"filterType": "MARKET_LOT_SIZE", "stepSize": lot, "minQty": lot, "maxQty": "60000"},
        {"filterType": "MAX_NUM_ORDERS", "limit": 200},
        {"filterType": "MAX_NUM_ALGO_ORDERS", "limit": 20},
        {
            "filterType": "PERCENT_PRICE",
            "multiplierUp": "1.0500",
            "multiplierDown": "0.9500",
            "multiplierDecimal": "4",
        },
    ]
    if not contract.inverse:
        filters.insert(5, {"filterType": "MIN_NOTIONAL", "notional": "5"})
    return filters
