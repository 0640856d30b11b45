"""Who is silent: the collector of a book, by name, by venue, or any."""

from marketprism.collector.v1 import collector_service_pb2

from services.marketdata.collectors import Collectors, Rivals


def heartbeat(name: str, *exchanges: str) -> bytes:
    return collector_service_pb2.GetStatusResponse(
        collector_id=name,
        connections=[collector_service_pb2.VenueConnection(exchange=e) for e in exchanges],
    ).SerializeToString()


def at(collectors: Collectors, now: float) -> Collectors:
    collectors.refresh(now)
    return collectors


def test_silence_counts_only_while_we_listen() -> None:
    collectors = Collectors(5.0, 0.0)
    assert at(collectors, 100.0).silence("binance", "") == ""
    collectors.listening(100.0)
    assert at(collectors, 105.0).silence("binance", "") == ""
    assert "no collector was heard" in at(collectors, 105.1).silence("binance", "")
    collectors.on_heartbeat(heartbeat("c"), 106.0)
    assert at(collectors, 106.0).silence("binance", "") == ""
    collectors.listening(None)
    assert at(collectors, 200.0).silence("binance", "") == ""
    collectors.listening(200.0)
    assert at(collectors, 204.0).silence("binance", "") == "", "expected time to be heard again"
    assert "silent for 100 s" in at(collectors, 206.0).silence("binance", "")


def test_a_collector_whose_events_are_not_stored_is_as_good_as_silent() -> None:
    collectors = Collectors(5.0, 0.0)
    collectors.listening(0.0)

    def hear(now: float, acknowledged: int, waiting: int) -> str:
        message = collector_service_pb2.GetStatusResponse(collector_id="a")
        message.publisher.acknowledged = acknowledged
        message.publisher.buffered = waiting
        collectors.on_heartbeat(message.SerializeToString(), now)
        return at(collectors, now).silence("binance", "a")

    assert hear(10.0, 7, 0) == ""
    assert hear(19.0, 7, 0) == "", "expected a quiet market to be no fault"
    assert hear(20.0, 7, 3) == ""
    assert hear(24.0, 7, 9) == ""
    assert "stored nothing of the collector's for 6 s" in hear(25.0, 7, 9)
    assert hear(26.0, 8, 9) == "", "expected the first progress to end it"


def test_a_book_depends_on_its_own_collector_when_that_is_known() -> None:
    collectors = Collectors(5.0, 0.0)
    collectors.listening(0.0)
    collectors.on_heartbeat(heartbeat("a", "binance"), 10.0)
    collectors.on_heartbeat(heartbeat("b", "binance"), 20.0)
    at(collectors, 20.0)
    assert collectors.silence("binance", "a") != ""
    assert collectors.silence("binance", "b") == ""
    assert collectors.silence("binance", "") == "", "expected any of the venue's to be enough"
    assert collectors.silence("binance", "never-heard") == ""


def test_a_venue_depends_on_the_collectors_connected_to_it() -> None:
    collectors = Collectors(5.0, 0.0)
    collectors.listening(0.0)
    collectors.on_heartbeat(heartbeat("a", "binance"), 10.0)
    collectors.on_heartbeat(heartbeat("b", "okx"), 20.0)
    at(collectors, 20.0)
    assert collectors.silence("binance", "") != ""
    assert collectors.silence("okx", "") == ""
    assert collectors.silence("deribit", "") == "", "expected any collector to do for a new venue"


def test_what_is_no_heartbeat_is_refused_and_names_are_bounded() -> None:
    collectors = Collectors(5.0, 0.0)
    assert not collectors.on_heartbeat(b"\xff", 0.0)
    assert not collectors.on_heartbeat(b"", 0.0)
    for number in range(1500):
        assert collectors.on_heartbeat(heartbeat(f"c{number}"), float(number))
    assert len(collectors.known) == 1000
    assert "c1499" in collectors.known


def test_a_venue_that_nobody_collects_any_more_is_told_though_others_are() -> None:
    collectors = Collectors(5.0, 0.0)
    collectors.listening(0.0)
    collectors.on_heartbeat(heartbeat("a", "okx", "binance"), 10.0)
    collectors.on_heartbeat(heartbeat("b", "binance"), 20.0)
    assert at(collectors, 20.0).missing() == (
        "nobody collects okx (collector a has been silent for 10 s)"
    )
    assert collectors.collecting("binance") == {"b": False}
    collectors.on_heartbeat(heartbeat("b", "binance", "okx"), 21.0)
    assert at(collectors, 21.0).missing() == "", "expected another to do as well"
    collectors.on_heartbeat(heartbeat("b", "binance"), 22.0)
    assert "okx" in at(collectors, 22.0).missing()
    collectors.listening(None)
    assert at(collectors, 90.0).missing() == "", "expected nothing of what we cannot hear"


def test_collectors_that_share_a_venue_by_leases_are_known_to() -> None:
    collectors = Collectors(5.0, 0.0)
    for name in ("a", "b"):
        message = collector_service_pb2.GetStatusResponse(collector_id=name)
        # One that has no instrument at the moment has no connection either.
        message.rest_budgets.add(exchange="okx")
        message.leases.total = 64
        collectors.on_heartbeat(message.SerializeToString(), 1.0)
    assert at(collectors, 2.0).collecting("okx") == {"a": True, "b": True}
    assert at(collectors, 7.0).collecting("okx") == {}


def test_two_collectors_of_the_same_books_are_noticed_and_a_replacement_is_not() -> None:
    rivals = Rivals()
    for second in range(100):
        rivals.observe(min(second, 8), float(second))
        assert not rivals.are_at_work, "a few late events of one that was replaced"
    for second in range(100, 111):
        rivals.observe(second, float(second))
        assert not rivals.are_at_work
    rivals.observe(111, 111.0)
    assert rivals.are_at_work
    rivals.observe(111, 121.0)
    assert rivals.are_at_work
    rivals.observe(111, 121.1)
    assert not rivals.are_at_work, "expected it to be over when the other was stopped"
