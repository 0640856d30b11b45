"""The OpenAPI document says what the gateway does with the contracts."""

import json
import re
from typing import Any

import jsonschema
import pytest
from google.api import field_behavior_pb2
from google.protobuf import descriptor_pool, json_format, message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.message import Message
from openapi_spec_validator import OpenAPIV31SpecValidator

from tools.buf import ROOT
from tools.gen import OPENAPI
from tools.openapi import http_rules, make_document
from tools.openapi_schemas import Contracts, behaviors, schema_name

Json = dict[str, Any]
ERRORS = {"400", "401", "403", "404", "429", "500", "501", "503", "504"}


@pytest.fixture(scope="module")
def document() -> Json:
    """The committed document."""
    loaded: Json = json.loads((ROOT / OPENAPI).read_text(encoding="utf-8"))
    return loaded


@pytest.fixture(scope="module")
def pool(files: FileDescriptorSet) -> descriptor_pool.DescriptorPool:
    pool = descriptor_pool.DescriptorPool()
    for file in files.file:
        pool.Add(file)
    return pool


def operations(document: Json) -> dict[str, tuple[str, str, Json]]:
    """(path, HTTP method, operation) by the gRPC method it calls."""
    return {
        operation["x-grpc-method"]: (path, verb, operation)
        for path, item in document["paths"].items()
        for verb, operation in item.items()
        if "x-grpc-method" in operation
    }


def closed(schema: Any) -> Any:
    """The same schema without room for properties that it does not name."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: closed(value) for key, value in schema.items()}
    if result.get("type") == "object" and "additionalProperties" not in result:
        result["additionalProperties"] = False
    return result


def validator(document: Json, schema: Json) -> jsonschema.Draft202012Validator:
    components = {"components": closed(document["components"])}
    return jsonschema.Draft202012Validator({**closed(schema), **components})


SCALARS: dict[int, Any] = {
    FieldDescriptor.CPPTYPE_INT32: 7,
    FieldDescriptor.CPPTYPE_INT64: -(2**60),
    FieldDescriptor.CPPTYPE_UINT32: 7,
    FieldDescriptor.CPPTYPE_UINT64: 2**63 + 1,
    FieldDescriptor.CPPTYPE_DOUBLE: 1.5,
    FieldDescriptor.CPPTYPE_FLOAT: 1.5,
    FieldDescriptor.CPPTYPE_BOOL: True,
}


def value(field: FieldDescriptor) -> Any:
    if field.cpp_type == FieldDescriptor.CPPTYPE_ENUM:
        return field.enum_type.values[-1].number
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return b"\x00\xff" if field.type == FieldDescriptor.TYPE_BYTES else "60000.5"
    return SCALARS[field.cpp_type]


def fill(message: Message, oneof_choice: int = 0, depth: int = 0) -> Message:
    """Set every field, of a oneof the one that is chosen."""
    descriptor: Descriptor = message.DESCRIPTOR
    if descriptor.full_name == "google.protobuf.Struct":
        message.update({"text": "a", "number": 1, "list": [None, True]})  # type: ignore[attr-defined]
        return message
    if descriptor.full_name == "google.protobuf.ListValue":
        message.extend(["1", None])  # type: ignore[attr-defined]
        return message
    if descriptor.full_name in ("google.protobuf.Timestamp", "google.protobuf.Duration"):
        message.seconds, message.nanos = 1_769_860_800, 123_456_789  # type: ignore[attr-defined]
        return message
    for field in descriptor.fields:
        oneof = field.containing_oneof
        if oneof is not None and oneof.fields[oneof_choice % len(oneof.fields)] != field:
            continue
        target = getattr(message, field.name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            target["key"] = value(field.message_type.fields_by_name["value"])
        elif field.message_type is not None:
            if depth < 8:
                fill(target.add() if field.is_repeated else target, oneof_choice, depth + 1)
        elif field.is_repeated:
            target.append(value(field))
        else:
            setattr(message, field.name, value(field))
    return message


def as_json(message: Message, *, defaults: bool = True) -> Json:
    """What the transcoder writes: proto names, scalars also when they have their default."""
    written: Json = json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=defaults
    )
    return written


def samples(pool: descriptor_pool.DescriptorPool, full_name: str) -> list[Message]:
    made = message_factory.GetMessageClass(pool.FindMessageTypeByName(full_name))
    choices = max((len(o.fields) for o in made.DESCRIPTOR.oneofs), default=1)
    if full_name.endswith(("StreamResponse", "ReplayMarketDataResponse")) or "MarketEvent" in {
        f.message_type.name for f in made.DESCRIPTOR.fields if f.message_type is not None
    }:
        choices = 16
    return [fill(made(), choice) for choice in range(choices)]


def test_the_document_is_valid_openapi(document: Json) -> None:
    OpenAPIV31SpecValidator(document).validate()


def test_every_rest_rule_of_the_contracts_is_there(document: Json, contracts: Contracts) -> None:
    found = operations(document)
    told = set()
    for service in contracts.services:
        for method, _ in service.methods():
            for verb, path, rule in http_rules(method):
                where = f"{verb.upper()} {path}"
                operation = document["paths"].get(path, {}).get(verb)
                assert operation is not None, f"{where} is missing"
                name = f"{service.full_name}/{method.name}"
                assert operation["x-grpc-method"] == name, where
                in_path = {p["name"] for p in operation.get("parameters", []) if p["in"] == "path"}
                assert in_path == set(re.findall(r"\{([^}]+)\}", path)), where
                assert ("requestBody" in operation) == bool(rule.body), where
                told.add(name)
    assert set(found) == told, "operations that no contract has"


def test_every_request_field_can_be_given(document: Json, contracts: Contracts) -> None:
    """In the path, the query or the body; only lists of messages have no place in a query."""
    for service in contracts.services:
        for method, _ in service.methods():
            for verb, path, _rule in http_rules(method):
                operation = document["paths"][path][verb]
                names = {p["name"].split(".")[0] for p in operation.get("parameters", [])}
                if "requestBody" in operation:
                    schema = operation["requestBody"]["content"]["application/json"]["schema"]
                    if "$ref" in schema:
                        schema = document["components"]["schemas"][schema["$ref"].split("/")[-1]]
                    names |= set(schema.get("properties", {}))
                fields = {field.name for field in contracts.message(method.input_type).proto.field}
                assert names == fields, f"{verb.upper()} {path}"


def test_parameters_and_properties_are_required_as_the_contract_says(
    document: Json, contracts: Contracts
) -> None:
    for name, message in contracts.messages.items():
        schema = document["components"]["schemas"].get(schema_name(name))
        if schema is None or not name.startswith("marketprism."):
            continue
        required = {
            field.name
            for field in message.proto.field
            if field_behavior_pb2.FieldBehavior.REQUIRED in behaviors(field)
        }
        assert set(schema.get("required", [])) == required, name
    _, _, operation = operations(document)["marketprism.history.v1.HistoryService/ListSpreads"]
    assert {p["name"] for p in operation["parameters"] if p.get("required")} == {
        "exchange",
        "symbol",
        "start_time",
        "end_time",
        "step",
    }


def test_nested_and_repeated_parameters_are_written_as_the_transcoder_reads_them(
    document: Json,
) -> None:
    found = operations(document)
    _, _, book = found["marketprism.market.v1.MarketDataService/StreamOrderBook"]
    names = [parameter["name"] for parameter in book["parameters"]]
    assert names == [
        "exchange",
        "symbol",
        "resume.epoch",
        "resume.sequence",
        "heartbeat_interval",
    ]
    # resume is optional, so nothing in it must be given although epoch is required within it
    assert [p["name"] for p in book["parameters"] if p.get("required")] == ["exchange", "symbol"]
    _, _, stream = found["marketprism.market.v1.MarketDataService/StreamMarketData"]
    kinds = next(p for p in stream["parameters"] if p["name"] == "kinds")
    assert kinds["explode"] is True
    assert kinds["schema"]["type"] == "array"


def test_every_operation_lists_the_errors_in_their_envelope(document: Json) -> None:
    for path, verb, operation in operations(document).values():
        statuses = set(operation["responses"])
        expected = ERRORS | ({"409"} if verb != "get" else set()) | {"200"}
        assert statuses == expected, f"{verb.upper()} {path}"
    for status, response in document["components"]["responses"].items():
        content = response["content"]["application/json"]
        validator(document, content["schema"]).validate(content["example"])
        assert status in ERRORS | {"409"}


def test_streams_are_lines_or_server_sent_events(document: Json, contracts: Contracts) -> None:
    found = operations(document)
    for service in contracts.services:
        for method, _ in service.methods():
            if not method.server_streaming or not list(http_rules(method)):
                continue
            _, _, operation = found[f"{service.full_name}/{method.name}"]
            media = operation["responses"]["200"]["content"]
            if method.name == "ExportEvents":
                assert media == {"*/*": {"schema": {"type": "string", "format": "binary"}}}
            else:
                assert set(media) == {"application/json", "text/event-stream"}, method.name
                bare = {"$ref": f"#/components/schemas/{schema_name(method.output_type[1:])}"}
                assert [content["schema"] for content in media.values()] == [bare, bare]


def test_what_protobuf_writes_is_what_the_document_promises(
    document: Json, contracts: Contracts, pool: descriptor_pool.DescriptorPool
) -> None:
    found = operations(document)
    for service in contracts.services:
        for method, _ in service.methods():
            name = f"{service.full_name}/{method.name}"
            if name not in found or method.name == "ExportEvents":
                continue
            _, _, operation = found[name]
            schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
            check = validator(document, schema)
            for sample in samples(pool, method.output_type[1:]):
                data = as_json(sample)
                if not method.server_streaming:
                    data = {
                        "success": True,
                        "data": data,
                        "message": "OK",
                        "timestamp": "2026-01-31T12:00:00.123Z",
                        "request_id": "1",
                    }
                check.validate(data)


def test_what_the_document_asks_for_is_what_protobuf_reads(
    document: Json, contracts: Contracts, pool: descriptor_pool.DescriptorPool
) -> None:
    found = operations(document)
    for service in contracts.services:
        for method, _ in service.methods():
            name = f"{service.full_name}/{method.name}"
            if name not in found or "requestBody" not in found[name][2]:
                continue
            path, _, operation = found[name]
            schema = operation["requestBody"]["content"]["application/json"]["schema"]
            in_path = re.findall(r"\{([^}]+)\}", path)
            for sample in samples(pool, method.input_type[1:]):
                body = as_json(sample, defaults=False)
                for variable in in_path:
                    del body[variable]
                validator(document, schema).validate(body)


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"epoch": 3}, "64-bit integers are text"),
        ({"reason": "REQUESTED"}, "enums are full names"),
        ({"receive_time": 1769860800}, "times are text"),
        ({"bids": [{"price": 60000.5, "quantity": "1"}]}, "prices are text"),
        ({"bestBid": "1"}, "names are the proto's"),
    ],
)
def test_what_protobuf_would_not_write_is_refused(document: Json, wrong: Json, why: str) -> None:
    schema = {"$ref": "#/components/schemas/market.v1.OrderBookSnapshot"}
    with pytest.raises(jsonschema.ValidationError):
        validator(document, schema).validate(wrong)


def test_health_is_described(document: Json) -> None:
    content = document["paths"]["/health"]["get"]["responses"]["200"]["content"]
    validator(document, content["application/json"]["schema"]).validate(
        {
            "status": "degraded",
            "timestamp": "2026-01-31T12:00:00.123Z",
            "uptime_seconds": 1.5,
            "version": "0.1.0",
            "dependencies": {"nats": {"status": "unhealthy", "detail": "away", "attempts": 3}},
        }
    )


def test_everything_in_the_document_is_explained(document: Json) -> None:
    silent = [
        f"{verb.upper()} {path} {parameter['name']}"
        for path, verb, operation in operations(document).values()
        for parameter in operation.get("parameters", [])
        if not parameter.get("description")
    ]
    silent += [
        f"{name}.{field}"
        for name, schema in document["components"]["schemas"].items()
        for field, prop in schema.get("properties", {}).items()
        if name[0].islower() and not prop.get("description")
    ]
    assert silent == []


def test_a_response_body_that_the_gateway_cannot_write_stops_the_generation(
    files: FileDescriptorSet,
) -> None:
    broken = FileDescriptorSet.FromString(files.SerializeToString())
    for file in broken.file:
        for service in file.service:
            for method in service.method:
                if method.name == "GetOrderBook":
                    (_, _, rule), *_ = http_rules(method)
                    rule.response_body = "order_book"
    with pytest.raises(ValueError, match="GetOrderBook: Envoy takes response_body only for"):
        make_document(broken, "0")
