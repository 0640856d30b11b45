"""JSON schemas of protobuf messages, as the gateway's transcoder writes and reads them.

Names are the proto's own, int64 is text, enums are names, as in protobuf's JSON mapping
(https://protobuf.dev/programming-guides/json/).
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from google.api import field_behavior_pb2  # type: ignore[import-untyped]
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    MethodDescriptorProto,
    ServiceDescriptorProto,
)

__all__ = [
    "Contracts",
    "Json",
    "Message",
    "Schemas",
    "Service",
    "behaviors",
    "is_map",
    "is_repeated",
    "schema_name",
]

Json: TypeAlias = dict[str, Any]
_Field = FieldDescriptorProto

# Numbers of the fields of the descriptors, of which source locations are made.
_FILE_MESSAGE, _FILE_ENUM, _FILE_SERVICE = 4, 5, 6
_MESSAGE_FIELD, _MESSAGE_NESTED, _MESSAGE_ENUM = 2, 3, 4
_MEMBER = 2  # values of an enum, methods of a service

# How the contracts write what is allowed: "Levels a side, 1 to 10000; 0 means all."
_RANGE = re.compile(r"(?:^|[ ,])([0-9]+) to ([0-9]+)[;,.]")
_ZERO = re.compile(r"\b(?:when 0|0 means)\b")
_AT_MOST = re.compile(r"\bat most ([0-9]+)\b")
_NARROWED = (_Field.TYPE_INT32, _Field.TYPE_UINT32)

_NON_FINITE = ["NaN", "Infinity", "-Infinity"]

_INT32: Json = {"type": "integer", "format": "int32", "minimum": -(2**31), "maximum": 2**31 - 1}
_UINT32: Json = {"type": "integer", "format": "uint32", "minimum": 0, "maximum": 2**32 - 1}
_INT64: Json = {"type": "string", "format": "int64", "pattern": "^-?[0-9]{1,19}$"}
_UINT64: Json = {"type": "string", "format": "uint64", "pattern": "^[0-9]{1,20}$"}
_FLOATING: Json = {"oneOf": [{"type": "number"}, {"type": "string", "enum": _NON_FINITE}]}

_SCALARS: dict[int, Json] = {
    _Field.TYPE_BOOL: {"type": "boolean"},
    _Field.TYPE_STRING: {"type": "string"},
    _Field.TYPE_BYTES: {"type": "string", "format": "byte"},
    _Field.TYPE_INT32: _INT32,
    _Field.TYPE_SINT32: _INT32,
    _Field.TYPE_SFIXED32: _INT32,
    _Field.TYPE_UINT32: _UINT32,
    _Field.TYPE_FIXED32: _UINT32,
    _Field.TYPE_INT64: _INT64,
    _Field.TYPE_SINT64: _INT64,
    _Field.TYPE_SFIXED64: _INT64,
    _Field.TYPE_UINT64: _UINT64,
    _Field.TYPE_FIXED64: _UINT64,
    _Field.TYPE_DOUBLE: _FLOATING,
    _Field.TYPE_FLOAT: _FLOATING,
}

# Messages that protobuf's JSON mapping writes in a form of their own.
_WELL_KNOWN: dict[str, Json] = {
    "google.protobuf.Timestamp": {
        "type": "string",
        "format": "date-time",
        "examples": ["2026-01-31T12:00:00.123456789Z"],
    },
    "google.protobuf.Duration": {
        "type": "string",
        "pattern": r"^-?[0-9]{1,12}(\.[0-9]{1,9})?s$",
        "examples": ["1.5s"],
    },
    "google.protobuf.Struct": {"type": "object", "additionalProperties": True},
    "google.protobuf.ListValue": {"type": "array", "items": {}},
    "google.protobuf.Value": {},
    "google.protobuf.Any": {
        "type": "object",
        "properties": {"@type": {"type": "string"}},
        "required": ["@type"],
    },
    "google.protobuf.Empty": {"type": "object"},
    "google.api.HttpBody": {"type": "string", "format": "binary"},
}


def behaviors(field: FieldDescriptorProto) -> set[int]:
    """Return the field's `google.api.field_behavior` values."""
    return set(field.options.Extensions[field_behavior_pb2.field_behavior])


def is_repeated(field: FieldDescriptorProto) -> bool:
    """Whether the field is a list or a map."""
    return field.label == _Field.LABEL_REPEATED


def schema_name(full_name: str) -> str:
    """Name the schema of a message or enum: `market.v1.Trade`."""
    return full_name.removeprefix("marketprism.")


@dataclass(frozen=True, slots=True)
class Message:
    """A message with its comments."""

    full_name: str
    """Name with its package, without a leading dot."""

    proto: DescriptorProto
    """The descriptor."""

    comment: str
    """What is written above it."""

    field_comments: tuple[str, ...]
    """What is written above its fields, in their order."""

    @property
    def is_request(self) -> bool:
        """Whether it is what a method takes, as the contracts name such."""
        return self.proto.name.endswith("Request")

    def field(self, name: str) -> FieldDescriptorProto:
        """Return the field of this name; raises KeyError."""
        for field in self.proto.field:
            if field.name == name:
                return field
        raise KeyError(f"{self.full_name} has no field {name}")

    def comment_of(self, field: FieldDescriptorProto) -> str:
        """Return what is written above a field."""
        return self.field_comments[list(self.proto.field).index(field)]

    def oneof_of(self, field: FieldDescriptorProto) -> list[str]:
        """Return the names of the fields of the same oneof; empty when it is in none."""
        if not field.HasField("oneof_index") or field.proto3_optional:
            return []
        return [
            each.name
            for each in self.proto.field
            if each.HasField("oneof_index") and each.oneof_index == field.oneof_index
        ]


@dataclass(frozen=True, slots=True)
class Enum:
    """An enum with its comments."""

    full_name: str
    """Name with its package, without a leading dot."""

    proto: EnumDescriptorProto
    """The descriptor."""

    comment: str
    """What is written above it."""

    value_comments: tuple[str, ...]
    """What is written above its values, in their order."""


@dataclass(frozen=True, slots=True)
class Service:
    """A service with its comments."""

    full_name: str
    """Name with its package."""

    proto: ServiceDescriptorProto
    """The descriptor."""

    comment: str
    """What is written above it."""

    method_comments: tuple[str, ...]
    """What is written above its methods, in their order."""

    def methods(self) -> Iterator[tuple[MethodDescriptorProto, str]]:
        """Yield every method with its comment."""
        return zip(self.proto.method, self.method_comments, strict=True)


def is_map(message: Message | None) -> bool:
    """Whether the message is the entry of a map field."""
    return message is not None and message.proto.options.map_entry


class Contracts:
    """Messages, enums and services of a descriptor set, by full name."""

    def __init__(self, files: FileDescriptorSet) -> None:
        self.messages: dict[str, Message] = {}
        self.enums: dict[str, Enum] = {}
        self.services: list[Service] = []
        for file in files.file:
            self._add_file(file)
        self.services.sort(key=lambda service: service.full_name)

    def _add_file(self, file: FileDescriptorProto) -> None:
        comments = {
            tuple(location.path): _prose(location.leading_comments)
            for location in file.source_code_info.location
            if location.leading_comments
        }

        def at(*path: int) -> str:
            return comments.get(path, "")

        def add_enum(enum: EnumDescriptorProto, scope: str, path: Sequence[int]) -> None:
            name = f"{scope}.{enum.name}"
            values = tuple(at(*path, _MEMBER, i) for i in range(len(enum.value)))
            self.enums[name] = Enum(name, enum, at(*path), values)

        def add_message(message: DescriptorProto, scope: str, path: Sequence[int]) -> None:
            name = f"{scope}.{message.name}"
            fields = tuple(at(*path, _MESSAGE_FIELD, i) for i in range(len(message.field)))
            self.messages[name] = Message(name, message, at(*path), fields)
            for i, nested in enumerate(message.nested_type):
                add_message(nested, name, (*path, _MESSAGE_NESTED, i))
            for i, enum in enumerate(message.enum_type):
                add_enum(enum, name, (*path, _MESSAGE_ENUM, i))

        for i, message in enumerate(file.message_type):
            add_message(message, file.package, (_FILE_MESSAGE, i))
        for i, enum in enumerate(file.enum_type):
            add_enum(enum, file.package, (_FILE_ENUM, i))
        for i, service in enumerate(file.service):
            methods = tuple(at(_FILE_SERVICE, i, _MEMBER, j) for j in range(len(service.method)))
            name = f"{file.package}.{service.name}"
            self.services.append(Service(name, service, at(_FILE_SERVICE, i), methods))

    def message(self, type_name: str) -> Message:
        """Return the message of a field's or method's type name (`.package.Name`)."""
        return self.messages[type_name.removeprefix(".")]

    def message_of(self, field: FieldDescriptorProto) -> Message | None:
        """Return the message that the field holds; None for scalars and enums."""
        return self.message(field.type_name) if field.type == _Field.TYPE_MESSAGE else None


def _prose(comment: str) -> str:
    """Join the lines of a comment; a blank line stays a new paragraph."""
    paragraphs = "\n".join(line.strip() for line in comment.splitlines()).strip().split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


class Schemas:
    """Makes schemas, and remembers which components they refer to."""

    def __init__(self, contracts: Contracts) -> None:
        self._contracts = contracts
        self.components: dict[str, Json] = {}
        """Every component referred to so far, by name."""

    def reference(self, full_name: str) -> Json:
        """Return a reference to the schema of a message or enum, and make that schema."""
        name = schema_name(full_name)
        if name not in self.components:
            self.components[name] = {}  # messages may hold each other
            if full_name in self._contracts.enums:
                self.components[name] = self._enum(self._contracts.enums[full_name])
            else:
                message = self._contracts.messages[full_name]
                self.components[name] = self.message(message)
        return {"$ref": f"#/components/schemas/{name}"}

    def message(self, message: Message, *, without: frozenset[str] = frozenset()) -> Json:
        """Make the schema of a message, leaving out fields that are told elsewhere."""
        schema: Json = {"type": "object"}
        if message.comment:
            schema["description"] = message.comment
        fields = [field for field in message.proto.field if field.name not in without]
        if fields:
            schema["properties"] = {field.name: self.property(message, field) for field in fields}
        required = [
            field.name
            for field in fields
            if field_behavior_pb2.FieldBehavior.REQUIRED in behaviors(field)
        ]
        if required:
            schema["required"] = required
        if message.is_request:
            # Answers may get fields that a client does not know yet; requests may not.
            schema["additionalProperties"] = False
        if fields and all(len(message.oneof_of(field)) == len(fields) for field in fields):
            schema["maxProperties"] = 1
        return schema

    def property(self, message: Message, field: FieldDescriptorProto) -> Json:
        """Make the schema of a field, with what is written above it."""
        schema = self.narrowed(message, field)
        comment = message.comment_of(field)
        others = message.oneof_of(field)
        if len(others) > 1:
            comment += f" At most one of {', '.join(others)} is set."
        if comment:
            schema["description"] = comment
        if field_behavior_pb2.FieldBehavior.OUTPUT_ONLY in behaviors(field):
            schema["readOnly"] = True
        return schema

    def narrowed(self, message: Message, field: FieldDescriptorProto) -> Json:
        """Make the schema of what a field holds, with the range that is written above it."""
        schema = dict(self.value(field))
        comment = message.comment_of(field)
        found = _RANGE.search(comment)
        many = is_repeated(field)
        if field_behavior_pb2.FieldBehavior.REQUIRED in behaviors(field):
            # What is empty counts as missing.
            if many:
                schema["minItems"] = 1
            elif field.type == _Field.TYPE_STRING:
                schema["minLength"] = 1
        if not message.is_request:
            return schema
        if many and field.type == _Field.TYPE_STRING:
            schema["items"] = {**schema["items"], "minLength": 1}
        if many and field.type == _Field.TYPE_ENUM:
            first = self._contracts.enums[field.type_name.removeprefix(".")].proto.value[0].name
            schema["items"] = {**schema["items"], "not": {"const": first}}
        if found is None:
            return schema
        low, high = int(found[1]), int(found[2])
        if field.type in _NARROWED:
            low = 0 if _ZERO.search(comment) else low
            within = {**self.single(field), "minimum": low, "maximum": high}
            if not many:
                return within
            schema["items"] = within
            most = _AT_MOST.search(comment)
            return {**schema, "maxItems": int(most[1])} if most else schema
        return {**schema, "minItems": low, "maxItems": high} if many else schema

    def value(self, field: FieldDescriptorProto) -> Json:
        """Make the schema of what a field holds: one value, a list or a map."""
        held = self._contracts.message_of(field)
        if held is not None and is_map(held):
            return {
                "type": "object",
                "additionalProperties": self.single(held.field("value")),
            }
        single = self.single(field)
        return {"type": "array", "items": single} if is_repeated(field) else single

    def single(self, field: FieldDescriptorProto) -> Json:
        """Make the schema of one value of a field."""
        full_name = field.type_name.removeprefix(".")
        if field.type == _Field.TYPE_MESSAGE and full_name in _WELL_KNOWN:
            return _WELL_KNOWN[full_name]
        if field.type in (_Field.TYPE_MESSAGE, _Field.TYPE_ENUM):
            return self.reference(full_name)
        return _SCALARS[field.type]

    @staticmethod
    def is_leaf(message: Message | None) -> bool:
        """Whether a value has one text, so that it can be a query parameter."""
        return message is None or message.full_name in (
            "google.protobuf.Timestamp",
            "google.protobuf.Duration",
        )

    @staticmethod
    def _enum(enum: Enum) -> Json:
        lines = [enum.comment, ""] if enum.comment else []
        lines += [
            f"- `{value.name}`: {comment}"
            for value, comment in zip(enum.proto.value, enum.value_comments, strict=True)
        ]
        return {
            "type": "string",
            "enum": [value.name for value in enum.proto.value],
            "description": "\n".join(lines),
        }
