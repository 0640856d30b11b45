"""`config/broker.yaml`: what it takes, what it refuses, and that the mesh's own one is complete."""

from pathlib import Path

import pytest
from marketprism.market.v1 import market_event_pb2
from pydantic import ValidationError

from services.broker.settings import BrokerSettings, StreamSettings, load_broker_settings
from services.broker.streams import bucket_config, stream_config
from services.shared.errors import ConfigError

ONE = {"T": {"subjects": ["market.trade.>"]}}


def test_every_kind_of_event_has_a_stream() -> None:
    settings = load_broker_settings()
    kinds = [field.name for field in market_event_pb2.MarketEvent.DESCRIPTOR.oneofs[0].fields]
    kinds.remove("stream_status")
    for kind in [*kinds, "instrument", "integrity"]:
        assert settings.stream_of(f"market.{kind}.binance.BTC-USDT"), f"{kind} has no stream"
    assert settings.stream_of("market.unknown.binance.BTC-USDT") is None


def test_a_book_is_one_stream_so_that_its_order_is_kept() -> None:
    settings = load_broker_settings()
    kinds = ("order_book_snapshot", "order_book_update", "order_book_status")
    streams = {settings.stream_of(f"market.{kind}.binance.BTC-USDT") for kind in kinds}
    assert streams == {"MARKET_ORDER_BOOK"}


@pytest.mark.parametrize(
    ("name", "max_age", "max_bytes", "window"),
    [
        ("MARKET_ORDER_BOOK", 900, 2 << 30, 30),
        ("MARKET_TRADE", 86_400, 2 << 30, 120),
        ("MARKET_BEST_BID_OFFER", 600, 512 << 20, 30),
        ("MARKET_REFERENCE", 86_400, 1 << 30, 120),
        ("MARKET_INTEGRITY", 7 * 86_400, 256 << 20, 120),
        ("DEAD_LETTER", 30 * 86_400, 256 << 20, 3600),
    ],
)
def test_retention_of_the_streams(name: str, max_age: int, max_bytes: int, window: int) -> None:
    stream = load_broker_settings().streams[name]
    assert (stream.max_age, stream.max_bytes, stream.duplicate_window) == (
        max_age,
        max_bytes,
        window,
    )
    assert (stream.storage, stream.discard) == ("file", "old")


def test_instruments_are_kept_without_end_one_a_subject() -> None:
    stream = load_broker_settings().streams["MARKET_INSTRUMENT"]
    assert (stream.max_messages_per_subject, stream.max_age) == (1, 0)


def test_sizes_and_times_have_units() -> None:
    stream = StreamSettings(
        subjects=("a.>",), max_bytes="1.5KiB", max_age="2h", duplicate_window="500ms"
    )
    assert (stream.max_bytes, stream.max_age, stream.duplicate_window) == (1536, 7200.0, 0.5)
    assert StreamSettings(subjects=("a",), max_bytes=7, max_age=240).max_bytes == 7


@pytest.mark.parametrize(
    ("streams", "message"),
    [
        ({"T": {"subjects": ["market.trade.>"], "max_bytes": "2 gigs"}}, "a size such as 512MiB"),
        ({"T": {"subjects": ["market.trade.>"], "max_age": "soon"}}, "a time such as 30s"),
        ({"T": {"subjects": ["market trade"]}}, "subjects of words joined by dots"),
        ({"T": {"subjects": []}}, "at least 1 item"),
        ({"T": {"subjects": ["a"], "max_age": "10s"}}, "duplicate_window of at most max_age"),
        ({"T": {"subjects": ["a"], "retention": "limits"}}, "Extra inputs"),
        ({"a.b": {"subjects": ["a"]}}, "stream names of at most 64"),
        ({"KV_A": {"subjects": ["a"]}}, "not beginning with KV_"),
        ({"T": {"subjects": ["a"], "max_bytes": "1TiB"}}, "max_storage of at least"),
        (
            {"T": {"subjects": ["market.>"]}, "U": {"subjects": ["market.trade.*"]}},
            "market.> of T and market.trade.\\* of U overlap",
        ),
    ],
)
def test_what_is_wrong_is_refused_with_what_was_expected(
    streams: dict[str, dict[str, object]], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        BrokerSettings.model_validate({"streams": streams})


@pytest.mark.parametrize(
    ("one", "other", "overlap"),
    [
        ("a.b", "a.b", True),
        ("a.*", "a.b", True),
        ("a.>", "a.b.c", True),
        ("*.b", "a.*", True),
        ("a.b", "a.c", False),
        ("a.b", "a.b.c", False),
        ("a.>", "b.>", False),
    ],
)
def test_overlapping_subjects_are_found(one: str, other: str, overlap: bool) -> None:
    streams = {"T": {"subjects": [one]}, "U": {"subjects": [other]}}
    if overlap:
        with pytest.raises(ValidationError, match="overlap"):
            BrokerSettings.model_validate({"streams": streams})
    else:
        BrokerSettings.model_validate({"streams": streams})


def test_a_bad_file_names_the_place(tmp_path: Path) -> None:
    (tmp_path / "broker.yaml").write_text("streams:\n  T:\n    subjects: [a]\n    max_ages: 3\n")
    with pytest.raises(ConfigError, match=r"broker.yaml:4: streams.T.max_ages: unknown key; did"):
        load_broker_settings(tmp_path)


def test_what_jetstream_is_told() -> None:
    settings = BrokerSettings.model_validate({"streams": ONE, "replicas": 3})
    config = stream_config("T", settings.streams["T"], settings.replicas)
    assert config["num_replicas"] == 3
    assert config["max_age"] == 0
    assert config["max_bytes"] == config["max_msgs"] == -1
    assert config["duplicate_window"] == 120_000_000_000
    assert config["allow_batched"], "expected what the publisher's order rests on"


def test_what_jetstream_is_told_of_a_bucket() -> None:
    settings = load_broker_settings()
    config = bucket_config("COLLECTOR_LEASES", settings.buckets["COLLECTOR_LEASES"], 3)
    assert (config["name"], config["subjects"]) == (
        "KV_COLLECTOR_LEASES",
        ["$KV.COLLECTOR_LEASES.>"],
    )
    assert (config["num_replicas"], config["max_msgs_per_subject"]) == (3, 1)
    assert config["storage"] == "file", "expected a restart of the broker to lose no lease"
    assert "KV_COLLECTOR_LEASES" in settings.stream_names


@pytest.mark.parametrize(
    ("bucket", "message"),
    [
        ({"a.b": {}}, "bucket names of at most 64"),
        ({"A": {"history": 65}}, "less than or equal to 64"),
        ({"A": {"max_bytes": "1TiB"}}, "max_storage of at least"),
    ],
)
def test_a_bucket_that_is_wrong_is_refused(
    bucket: dict[str, dict[str, object]], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        BrokerSettings.model_validate({"streams": ONE, "buckets": bucket})
