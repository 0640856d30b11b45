"""What every contract keeps to and buf's lint does not know."""

import re

import pytest
from google.api import field_behavior_pb2
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorSet

from tools.openapi import http_rules
from tools.openapi_schemas import Contracts, Message, behaviors, is_map, is_repeated

Field = FieldDescriptorProto
OURS = "marketprism."

# Measurements of the mesh itself are floating-point numbers; market data never is.
FLOATING_DOMAINS = {"marketprism.monitoring.v1"}

# A change of a book's state is ours, not something read from a socket: it has `time`.
NOT_RECEIVED = {"order_book_status", "stream_status"}


def ours(contracts: Contracts) -> list[Message]:
    return [
        message
        for name, message in contracts.messages.items()
        if name.startswith(OURS) and not is_map(message)
    ]


def requests(contracts: Contracts) -> set[str]:
    """Every message that a client fills in: requests and what they hold."""
    found: set[str] = set()
    pending = [
        method.input_type.removeprefix(".")
        for service in contracts.services
        for method in service.proto.method
    ]
    while pending:
        name = pending.pop()
        if name in found or not name.startswith(OURS):
            continue
        found.add(name)
        pending += [
            field.type_name.removeprefix(".")
            for field in contracts.messages[name].proto.field
            if field.type == Field.TYPE_MESSAGE
            and field_behavior_pb2.FieldBehavior.OUTPUT_ONLY not in behaviors(field)
        ]
    return {name for name in found if not is_map(contracts.messages[name])}


def test_every_field_that_clients_fill_in_says_whether_it_must_be(contracts: Contracts) -> None:
    silent = [
        f"{name}.{field.name}"
        for name in sorted(requests(contracts))
        for field in contracts.messages[name].proto.field
        if not behaviors(field)
    ]
    assert silent == [], "fields of requests without google.api.field_behavior"


def test_lists_are_paged(contracts: Contracts) -> None:
    wrong = []
    for service in contracts.services:
        for method in service.proto.method:
            if not method.name.startswith("List") or method.server_streaming:
                continue
            request = {f.name: f.type for f in contracts.message(method.input_type).proto.field}
            answer = {f.name: f.type for f in contracts.message(method.output_type).proto.field}
            if (
                request.get("page_size") != Field.TYPE_INT32
                or request.get("page_token") != Field.TYPE_STRING
                or answer.get("next_page_token") != Field.TYPE_STRING
            ):
                wrong.append(f"{service.full_name}.{method.name}")
    assert wrong == [], "List methods without page_size, page_token and next_page_token"


def test_rest_carries_every_method_that_it_can(contracts: Contracts) -> None:
    for service in contracts.services:
        for method in service.proto.method:
            rules = list(http_rules(method))
            name = f"{service.full_name}.{method.name}"
            if method.client_streaming:
                assert rules == [], f"{name}: REST cannot carry a client's stream"
            else:
                assert rules, f"{name}: has no google.api.http rule"
                assert all(path.startswith("/api/v1/") for _, path, _ in rules), name


def test_a_bidirectional_stream_has_a_twin_that_rest_can_carry(contracts: Contracts) -> None:
    for service in contracts.services:
        for method in service.proto.method:
            if not method.client_streaming:
                continue
            shape = contracts.message(method.output_type).proto.field
            twins = [
                twin.name
                for twin in service.proto.method
                if twin.server_streaming
                and not twin.client_streaming
                and list(contracts.message(twin.output_type).proto.field) == list(shape)
            ]
            assert twins, f"{service.full_name}.{method.name}: no server-streaming twin"


def test_bodies_are_whole_requests_and_only_where_http_has_them(contracts: Contracts) -> None:
    for service in contracts.services:
        for method in service.proto.method:
            for verb, path, rule in http_rules(method):
                expected = "*" if verb in ("post", "put", "patch") else ""
                assert rule.body == expected, f"{verb.upper()} {path}: body {rule.body!r}"


def test_streams_can_say_in_band_why_they_end(contracts: Contracts) -> None:
    for service in contracts.services:
        for method in service.proto.method:
            if not method.server_streaming:
                continue
            if any(rule.response_body for _, _, rule in http_rules(method)):
                continue  # a file: its own format says whether it is whole
            types = {f.type_name for f in contracts.message(method.output_type).proto.field}
            assert types & {
                ".marketprism.market.v1.MarketEvent",
                ".marketprism.market.v1.StreamStatus",
            }, f"{service.full_name}.{method.name}: no StreamStatus among its answers"


def test_requests_and_responses_are_named_after_their_method(contracts: Contracts) -> None:
    for service in contracts.services:
        for method in service.proto.method:
            assert method.input_type.rsplit(".", 1)[1] == f"{method.name}Request"
            assert method.output_type.rsplit(".", 1)[1] == f"{method.name}Response"


def test_enums_begin_unspecified_and_fit_one_byte(contracts: Contracts) -> None:
    for name, enum in contracts.enums.items():
        if not name.startswith(OURS):
            continue
        first = enum.proto.value[0]
        assert first.number == 0, name
        assert first.name.endswith("_UNSPECIFIED"), name
        # The store keeps them as Enum8.
        assert all(0 <= value.number < 128 for value in enum.proto.value), name


def test_everything_is_explained_in_sentences(contracts: Contracts) -> None:
    silent = []
    for message in ours(contracts):
        texts = {message.full_name: message.comment}
        texts |= {
            f"{message.full_name}.{field.name}": comment
            for field, comment in zip(message.proto.field, message.field_comments, strict=True)
        }
        silent += [name for name, text in texts.items() if not text.endswith((".", '."'))]
    for name, enum in contracts.enums.items():
        if name.startswith(OURS):
            texts = {name: enum.comment} | {
                f"{name}.{value.name}": comment
                for value, comment in zip(enum.proto.value, enum.value_comments, strict=True)
            }
            silent += [each for each, text in texts.items() if not text.endswith(".")]
    for service in contracts.services:
        texts = {service.full_name: service.comment} | {
            f"{service.full_name}.{method.name}": comment for method, comment in service.methods()
        }
        silent += [name for name, text in texts.items() if not text.endswith(".")]
    assert silent == [], "no comment, or one that is not a sentence"


def test_services_tell_their_errors(contracts: Contracts) -> None:
    for service in contracts.services:
        if service.full_name == "marketprism.collector.v1.CollectorService":
            continue  # has none beside the usual ones
        assert re.search(r"Errors, beside the usual ones: .*[A-Z]+_[A-Z_]+", service.comment), (
            f"{service.full_name}: its comment names no error reasons"
        )


def test_events_name_their_instrument_and_when_they_were_received(contracts: Contracts) -> None:
    envelope = contracts.messages["marketprism.market.v1.MarketEvent"]
    events = [
        contracts.message(field.type_name)
        for field in envelope.proto.field
        if field.name not in NOT_RECEIVED
    ]
    events.append(contracts.messages["marketprism.collector.v1.IntegrityEvent"])
    for event in events:
        fields = {field.name: field for field in event.proto.field}
        assert fields["exchange"].number == 1, event.full_name
        assert fields["symbol"].number == 2, event.full_name
        assert fields["receive_time"].type_name == ".google.protobuf.Timestamp", event.full_name


def test_every_kind_of_event_can_travel(contracts: Contracts) -> None:
    kinds = {
        value.name.removeprefix("EVENT_KIND_").lower()
        for value in contracts.enums["marketprism.market.v1.EventKind"].proto.value
        if value.number
    }
    carried = {
        field.name for field in contracts.messages["marketprism.market.v1.MarketEvent"].proto.field
    }
    assert kinds - {"order_book"} <= carried
    assert {"order_book_snapshot", "order_book_update", "order_book_status"} <= carried


def test_no_number_of_the_market_is_floating_point(contracts: Contracts) -> None:
    floating = [
        f"{message.full_name}.{field.name}"
        for message in ours(contracts)
        if message.full_name.rsplit(".", 1)[0] not in FLOATING_DOMAINS
        for field in message.proto.field
        if field.type in (Field.TYPE_DOUBLE, Field.TYPE_FLOAT)
        # How often something happens is a measurement, as in monitoring.
        and not field.name.endswith("_per_second")
    ]
    assert floating == [], "prices and quantities are exact decimal strings"


@pytest.mark.parametrize("word", ["price", "quantity", "volume", "notional"])
def test_amounts_are_decimal_strings(contracts: Contracts, word: str) -> None:
    for message in ours(contracts):
        for field in message.proto.field:
            named = field.name == word or field.name.endswith(f"_{word}")
            if named and field.type != Field.TYPE_MESSAGE:
                assert field.type == Field.TYPE_STRING, f"{message.full_name}.{field.name}"


def test_exchange_and_symbol_mean_the_same_everywhere(contracts: Contracts) -> None:
    for message in ours(contracts):
        for field in message.proto.field:
            if field.name in ("exchange", "symbol"):
                assert field.type == Field.TYPE_STRING, message.full_name
                assert not is_repeated(field), message.full_name


def test_instants_are_named_as_such(contracts: Contracts) -> None:
    endings = re.compile(r"(^|_)(time|day|until|position)$")
    wrong = [
        f"{message.full_name}.{field.name}"
        for message in ours(contracts)
        for field in message.proto.field
        if field.type_name == ".google.protobuf.Timestamp" and not endings.search(field.name)
    ]
    assert wrong == []


def test_every_file_names_packages_for_other_languages(files: FileDescriptorSet) -> None:
    for file in files.file:
        if not file.package.startswith(OURS):
            continue
        _, domain, version = file.package.split(".")
        assert file.options.go_package == (
            f"marketprism/gen/go/{domain}/{version};{domain}{version}"
        ), file.name
        assert file.options.java_package == f"io.marketprism.{domain}.{version}", file.name
        assert file.options.java_multiple_files, file.name


def test_the_descriptor_set_explains_errors(files: FileDescriptorSet) -> None:
    """The gateway writes a status and its details as JSON only when it knows their messages."""
    names = {file.name for file in files.file}
    assert {
        "google/rpc/status.proto",
        "google/rpc/error_details.proto",
        "google/api/httpbody.proto",
        "google/protobuf/any.proto",
    } <= names
