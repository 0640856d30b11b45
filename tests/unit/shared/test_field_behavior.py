"""A REQUIRED field that is unset, empty or unspecified is refused, by name and path."""

import pytest
from google.api import field_behavior_pb2
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import Message

from services.shared.errors import InvalidArgument
from services.shared.field_behavior import RequiredFields

Field = descriptor_pb2.FieldDescriptorProto


def build() -> type[Message]:
    file = descriptor_pb2.FileDescriptorProto(
        name="required.proto",
        package="required",
        syntax="proto3",
        dependency=["google/api/field_behavior.proto"],
    )
    kind = file.enum_type.add(name="Kind")
    kind.value.add(name="KIND_UNSPECIFIED", number=0)
    kind.value.add(name="KIND_TRADE", number=1)

    def add(message, name, number, type_, required=False, repeated=False, of="", optional=False):
        field = message.field.add(
            name=name,
            number=number,
            type=type_,
            label=Field.LABEL_REPEATED if repeated else Field.LABEL_OPTIONAL,
            type_name=of or None,
        )
        if required:
            field.options.Extensions[field_behavior_pb2.field_behavior].append(
                field_behavior_pb2.REQUIRED
            )
        if optional:
            field.proto3_optional = True
            field.oneof_index = len(message.oneof_decl)
            message.oneof_decl.add(name=f"_{name}")

    item = file.message_type.add(name="Item")
    add(item, "name", 1, Field.TYPE_STRING, required=True)
    # A message that holds itself must not send the walk into a loop.
    add(item, "child", 2, Field.TYPE_MESSAGE, of=".required.Item")

    plain = file.message_type.add(name="Plain")
    add(plain, "text", 1, Field.TYPE_STRING)

    request = file.message_type.add(name="Request")
    add(request, "text", 1, Field.TYPE_STRING, required=True)
    add(request, "kind", 2, Field.TYPE_ENUM, required=True, of=".required.Kind")
    add(request, "item", 3, Field.TYPE_MESSAGE, required=True, of=".required.Item")
    add(request, "tags", 4, Field.TYPE_STRING, required=True, repeated=True)
    add(request, "data", 5, Field.TYPE_BYTES, required=True)
    add(request, "depth", 6, Field.TYPE_INT32, required=True)
    add(request, "flag", 7, Field.TYPE_BOOL, required=True)
    add(request, "limit", 8, Field.TYPE_INT32, required=True, optional=True)
    add(request, "note", 9, Field.TYPE_STRING, required=True, optional=True)
    add(request, "items", 10, Field.TYPE_MESSAGE, repeated=True, of=".required.Item")
    add(request, "other", 11, Field.TYPE_MESSAGE, of=".required.Item")
    add(request, "plain", 12, Field.TYPE_MESSAGE, of=".required.Plain")
    entry = request.nested_type.add(name="ByNameEntry")
    entry.options.map_entry = True
    add(entry, "key", 1, Field.TYPE_STRING)
    add(entry, "value", 2, Field.TYPE_MESSAGE, of=".required.Item")
    add(
        request,
        "by_name",
        13,
        Field.TYPE_MESSAGE,
        repeated=True,
        of=".required.Request.ByNameEntry",
    )
    pool = descriptor_pool.DescriptorPool()
    for dependency in ("google/protobuf/descriptor.proto", "google/api/field_behavior.proto"):
        found = descriptor_pool.Default().FindFileByName(dependency)
        pool.AddSerializedFile(found.serialized_pb)
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("required.Request"))


REQUEST = build()
COMPLETE = {
    "text": "x",
    "kind": 1,
    "item": {"name": "i"},
    "tags": ["t"],
    "data": b"d",
    "limit": 0,
    "note": "n",
}


def missing(**fields: object) -> list[str]:
    with pytest.raises(InvalidArgument) as caught:
        RequiredFields().check(REQUEST(**{**COMPLETE, **fields}))
    assert caught.value.reason == "REQUIRED_FIELD_MISSING"
    assert all(v.reason == "REQUIRED" for v in caught.value.violations)
    return [v.field for v in caught.value.violations]


def test_complete_message_passes() -> None:
    checks = RequiredFields()
    for _ in range(2):
        checks.check(REQUEST(**COMPLETE))


def test_empty_message_has_one_violation_a_field() -> None:
    with pytest.raises(InvalidArgument) as caught:
        RequiredFields().check(REQUEST())
    fields = [v.field for v in caught.value.violations]
    # A number without presence cannot be told from zero, so depth and flag are not among them.
    assert fields == ["text", "kind", "item", "tags", "data", "limit", "note"]


@pytest.mark.parametrize(
    ("field", "empty"), [("text", ""), ("kind", 0), ("tags", []), ("data", b""), ("note", "")]
)
def test_empty_value_is_no_value(field: str, empty: object) -> None:
    assert missing(**{field: empty}) == [field]


def test_paths_of_nested_fields_are_dotted() -> None:
    assert missing(item={"child": {"child": {}}}) == [
        "item.name",
        "item.child.name",
        "item.child.child.name",
    ]
    assert missing(items=[{"name": "a"}, {}]) == ["items[1].name"]
    assert missing(by_name={"k": {}}) == ["by_name['k'].name"]


def test_optional_message_is_checked_only_when_it_is_there() -> None:
    assert missing(other={}) == ["other.name"]


def test_violation_says_what_was_expected() -> None:
    with pytest.raises(InvalidArgument) as caught:
        RequiredFields().check(REQUEST())
    expected = {v.field: v.description for v in caught.value.violations}
    assert "one of KIND_TRADE" in expected["kind"]
    assert "at least one entry" in expected["tags"]
    assert "an Item" in expected["item"]
