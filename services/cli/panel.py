"""The panel that `marketprism up` shows when everything is ready."""

from services.cli.mesh_plan import MeshPlan
from services.cli.parts import SIMULATOR

__all__ = ["ready_panel"]

_BOLD, _CYAN, _PLAIN = "\x1b[1m", "\x1b[1;36m", "\x1b[0m"


def ready_panel(plan: MeshPlan, seconds: float, exchange: str, symbol: str, *, colour: bool) -> str:
    """Give addresses, three commands to try, and where data and logs are.

    `exchange` and `symbol` are the instrument that the commands name.
    """
    title = f"MarketPrism is ready after {seconds:.1f} s"
    groups = [_addresses(plan), _commands(plan, exchange, symbol), _places(plan)]
    # No frame: a command that is longer than the terminal is wide can still be copied whole.
    bold, cyan, plain = (_BOLD, _CYAN, _PLAIN) if colour else ("", "", "")
    lines = ["", f"{bold}{title}{plain}"]
    for group in filter(None, groups):
        lines += [f"  {cyan}{name:<9}{plain} {value}" for name, value in group]
        lines.append("")
    return "\n".join(lines)


def _shown(address: str) -> str:
    host, _, port = address.rpartition(":")
    return f"localhost:{port}" if host in ("127.0.0.1", "0.0.0.0", "[::1]", "[::]") else address  # noqa: S104 - compared only


def _addresses(plan: MeshPlan) -> list[tuple[str, str]]:
    addresses = plan.addresses
    rows = []
    if "all" in addresses:
        client = _shown(addresses["all"])
        rows += [
            ("gRPC", f"{client}    (gRPC-Web too)"),
            ("REST", f"http://{client}/api/v1/    (streams as NDJSON or SSE)"),
            ("health", f"http://{client}/health"),
        ]
    if "admin" in addresses:
        rows.append(("admin", f"http://{_shown(addresses['admin'])}    (Envoy)"))
    if "nats" in addresses:
        rows.append(("NATS", f"nats://{_shown(addresses['nats'])}"))
    title = "venues"
    for name, address in addresses.items():
        if name.startswith(f"{SIMULATOR}."):
            exchange = name.partition(".")[2]
            rows.append((title, f"http://{_shown(address)}/sim/stats    (simulated {exchange})"))
            title = ""
    return rows


def _commands(plan: MeshPlan, exchange: str, symbol: str) -> list[tuple[str, str]]:
    if "all" not in plan.addresses:
        return []
    client = _shown(plan.addresses["all"])
    where = "" if client == "localhost:8080" else f" --address {client}"
    request = f'{{"exchange":"{exchange}","symbol":"{symbol}"}}'
    return [
        (
            "try",
            f"grpcurl -plaintext -d '{request}' {client} "
            "marketprism.market.v1.MarketDataService/StreamOrderBook",
        ),
        ("", f"curl '{client}/api/v1/orderbook/{exchange}/{symbol}?depth=5'"),
        ("", f"marketprism book {exchange} {symbol}{where}"),
    ]


def _places(plan: MeshPlan) -> list[tuple[str, str]]:
    data_dir = plan.configuration.mesh.data_dir
    return [
        ("data", str(data_dir)),
        ("logs", f"{data_dir / 'logs'}    (one file a process)"),
        ("stop", "Ctrl-C; twice kills at once"),
    ]
