"""A client as an outsider would write it against the contract: keeps one book over a stream."""

import threading
import time
from decimal import Decimal

import grpc
from marketprism.market.v1 import market_data_service_pb2 as pb
from marketprism.market.v1 import market_data_service_pb2_grpc as pb_grpc
from marketprism.market.v1 import order_book_pb2 as book_pb

__all__ = ["BookClient"]


class BookClient:
    """Subscribes through the gateway in a thread, resumes after a broken stream, breaks no rule.

    `told` collects the states that were told in-band; `breaches` what the server sent against the
    contract: an update that does not continue what came before.
    """

    def __init__(self, address: str, exchange: str, symbol: str) -> None:
        self.told: list[str] = []
        self.breaches: list[str] = []
        self.reconnects = 0
        self.updates = 0
        self.snapshots = 0
        self._address = address
        self._exchange = exchange
        self._symbol = symbol
        self._lock = threading.Lock()
        self._sides: dict[str, dict[Decimal, Decimal]] = {"bids": {}, "asks": {}}
        self._horizon = {"bids": "", "asks": ""}
        self._epoch = 0
        self._sequence = 0
        self._venue_sequence = 0
        self._state = ""
        self._stop = threading.Event()
        self._call: grpc.Call | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "BookClient":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._call is not None:
            self._call.cancel()
        self._thread.join(10)
        assert not self._thread.is_alive(), "the client's thread does not end"

    @property
    def in_step(self) -> bool:
        """Whether the client may trust its book."""
        return self._state == "SYNCED" and self._epoch > 0

    def book(self) -> tuple[str, int, dict[str, list[tuple[Decimal, Decimal]]], dict[str, str]]:
        """Give state, venue sequence, levels best first, and horizons, all of one instant."""
        with self._lock:
            levels = {
                side: sorted(self._sides[side].items(), reverse=side == "bids")
                for side in ("bids", "asks")
            }
            return self._state, self._venue_sequence, levels, dict(self._horizon)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                with grpc.insecure_channel(self._address) as channel:
                    request = pb.StreamOrderBookRequest(
                        exchange=self._exchange, symbol=self._symbol
                    )
                    if self._epoch:
                        request.resume.epoch = self._epoch
                        request.resume.sequence = self._sequence
                    stub = pb_grpc.MarketDataServiceStub(channel)
                    self._call = stub.StreamOrderBook(request)
                    for response in self._call:
                        with self._lock:
                            for event in response.events:
                                self._apply(event)
            except grpc.RpcError:
                pass
            if not self._stop.is_set():
                # Nothing is known any more until the next stream says so.
                self._state = "DISCONNECTED"
                self.told.append("DISCONNECTED")
                self.reconnects += 1
                time.sleep(0.05)

    def _apply(self, event: object) -> None:
        kind = event.WhichOneof("event")  # type: ignore[attr-defined]
        if kind == "order_book_snapshot":
            message = event.order_book_snapshot  # type: ignore[attr-defined]
            if message.epoch < self._epoch:
                self.breaches.append(f"epoch went back from {self._epoch} to {message.epoch}")
            self._sides = {
                "bids": {Decimal(x.price): Decimal(x.quantity) for x in message.bids},
                "asks": {Decimal(x.price): Decimal(x.quantity) for x in message.asks},
            }
            self._horizon = {"bids": message.bid_horizon, "asks": message.ask_horizon}
            self._take(message)
            self.snapshots += 1
        elif kind == "order_book_update":
            message = event.order_book_update  # type: ignore[attr-defined]
            if (message.epoch, message.sequence) != (self._epoch, self._sequence + 1):
                self.breaches.append(
                    f"at ({self._epoch}, {self._sequence}) came an update "
                    f"({message.epoch}, {message.sequence})"
                )
                return
            for side in ("bids", "asks"):
                for level in getattr(message, side):
                    price, quantity = Decimal(level.price), Decimal(level.quantity)
                    if quantity:
                        self._sides[side][price] = quantity
                    else:
                        self._sides[side].pop(price, None)
            self._take(message)
            self.updates += 1
        elif kind == "order_book_status":
            state = book_pb.OrderBookState.Name(event.order_book_status.state)  # type: ignore[attr-defined]
            self._state = state.removeprefix("ORDER_BOOK_STATE_")
            self.told.append(self._state)

    def _take(self, message: object) -> None:
        self._epoch = message.epoch  # type: ignore[attr-defined]
        self._sequence = message.sequence  # type: ignore[attr-defined]
        self._venue_sequence = message.venue_sequence  # type: ignore[attr-defined]
