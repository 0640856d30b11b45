"""Which fields the JSON bodies of REST requests may have.

Envoy's transcoder passes over what it does not know in a body, and a misspelt option would be as
good as none. So the filter before it looks the names up in tables that are made here.
"""

import re
from collections.abc import Iterable, Iterator

from google.protobuf import descriptor_pb2

from services.gateway.contract import Contract, Method, Service

__all__ = ["body_tables"]

_Field = descriptor_pb2.FieldDescriptorProto
_OWN_FORM = "google.protobuf."
_LUA_MAGIC = re.compile(r"([^A-Za-z0-9/_:])")


def body_tables(contract: Contract, services: Iterable[Service]) -> str:
    """Give Lua that defines BODIES and SCHEMAS for the methods of services.

    BODIES is a list of {HTTP method, pattern of the path, name of a schema}, the more literal
    paths first. SCHEMAS has for each name the fields: `true`, or the name of the schema within.
    """
    messages = dict(_messages(contract.files))
    bodies: list[tuple[tuple[str, ...], str, str, str]] = []
    schemas: dict[str, dict[str, str]] = {}
    for service in services:
        for method in service.methods:
            for binding in method.bindings:
                name = _body_type(messages, method, binding.body)
                if name:
                    _add_schema(messages, schemas, name)
                    # "~" sorts behind every literal, as a variable gives way to one.
                    order = tuple(s.replace("*", "~") for s in binding.segments)
                    bodies.append((order, binding.verb, _pattern(binding.segments), name))
    lines = ["local BODIES = {"]
    lines += [f'  {{"{verb}", "{path}", "{name}"}},' for _, verb, path, name in sorted(bodies)]
    lines += ["}", "local SCHEMAS = {"]
    for name, fields in sorted(schemas.items()):
        inside = ", ".join(f"{field} = {value}" for field, value in sorted(fields.items()))
        lines.append(f'  ["{name}"] = {{{inside}}},')
    lines.append("}")
    return "\n".join(lines)


def _messages(
    files: descriptor_pb2.FileDescriptorSet,
) -> Iterator[tuple[str, descriptor_pb2.DescriptorProto]]:
    def within(
        scope: str, message: descriptor_pb2.DescriptorProto
    ) -> Iterator[tuple[str, descriptor_pb2.DescriptorProto]]:
        name = f"{scope}.{message.name}"
        yield name, message
        for nested in message.nested_type:
            yield from within(name, nested)

    for file in files.file:
        for message in file.message_type:
            yield from within(file.package, message)


def _body_type(
    messages: dict[str, descriptor_pb2.DescriptorProto], method: Method, body: str
) -> str:
    if body in ("", "*"):
        return method.request if body else ""
    field = next(each for each in messages[method.request].field if each.name == body)
    return field.type_name.removeprefix(".")


def _add_schema(
    messages: dict[str, descriptor_pb2.DescriptorProto],
    schemas: dict[str, dict[str, str]],
    name: str,
) -> None:
    if name in schemas:
        return
    fields = schemas[name] = {}
    for field in messages[name].field:
        inner = field.type_name.removeprefix(".") if field.type == _Field.TYPE_MESSAGE else ""
        value = "true"
        # Maps have keys of the client's choice.
        if inner and not inner.startswith(_OWN_FORM) and not messages[inner].options.map_entry:
            _add_schema(messages, schemas, inner)
            value = f'"{inner}"'
        fields[field.name] = fields[field.json_name] = value


def _pattern(segments: tuple[str, ...]) -> str:
    parts = []
    for segment in segments:
        stem, colon, verb = segment.partition(":")
        part = {"*": "[^/]+", "**": ".+"}.get(stem) or _escaped(stem)
        parts.append(part + colon + _escaped(verb))
    return "^/" + "/".join(parts) + "$"


def _escaped(text: str) -> str:
    return _LUA_MAGIC.sub(r"%\1", text)
