"""Enforces `google.api.field_behavior = REQUIRED` on the requests of every service.

A message type is walked once; a type without required fields anywhere costs one dictionary
look-up a request.
"""

from collections.abc import Callable, Iterator
from typing import cast

from google.api import (  # type: ignore[import-untyped]  # the package ships no type stubs
    field_behavior_pb2,
)
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from services.shared.errors import FieldViolation, InvalidArgument

__all__ = ["RequiredFields"]

_Check = Callable[[Message, str], Iterator[FieldViolation]]

# Without presence their default is a value like any other: "required" cannot be told from 0.
_NO_EMPTY_VALUE = {
    FieldDescriptor.CPPTYPE_BOOL,
    FieldDescriptor.CPPTYPE_INT32,
    FieldDescriptor.CPPTYPE_INT64,
    FieldDescriptor.CPPTYPE_UINT32,
    FieldDescriptor.CPPTYPE_UINT64,
    FieldDescriptor.CPPTYPE_FLOAT,
    FieldDescriptor.CPPTYPE_DOUBLE,
}


class RequiredFields:
    """Checks messages for REQUIRED fields that are unset, empty or `_UNSPECIFIED`."""

    def __init__(self) -> None:
        self._plans: dict[object, tuple[_Check, ...]] = {}

    def check(self, message: Message) -> None:
        """Raise `InvalidArgument` with one violation a field, dotted paths for nested ones."""
        plan = self._plans.get(message.DESCRIPTOR)
        if plan is None:
            plan = self._plan(cast("Descriptor", message.DESCRIPTOR))
        if not plan:
            return
        violations = [violation for check in plan for violation in check(message, "")]
        if violations:
            fields = ", ".join(violation.field for violation in violations)
            raise InvalidArgument(
                f"{message.DESCRIPTOR.name} needs a value for {fields}",
                reason="REQUIRED_FIELD_MISSING",
                metadata={"fields": fields},
                violations=violations,
            )

    def _plan(self, descriptor: Descriptor) -> tuple[_Check, ...]:
        known = self._plans.get(descriptor)
        if known is not None:
            return known
        reachable = _reachable(descriptor)
        # A type matters when a required field can be reached from it; found by growing the set,
        # so that recursive messages end.
        matters = {d for d in reachable if any(_is_required(f) for f in d.fields)}
        grown = True
        while grown:
            more = {
                d for d in reachable - matters if any(_message_type(f) in matters for f in d.fields)
            }
            matters |= more
            grown = bool(more)
        for each in reachable:
            if each in self._plans:
                continue
            checks: list[_Check] = []
            for field in each.fields if each in matters else ():
                if _is_required(field):
                    checks.append(_present(field))
                if _message_type(field) in matters:
                    checks.append(self._nested(field))
            self._plans[each] = tuple(checks)
        return self._plans[descriptor]

    def _nested(self, field: FieldDescriptor) -> _Check:
        name = field.name
        target = _message_type(field)
        plans = self._plans

        def inside(message: Message, path: str) -> Iterator[FieldViolation]:
            for check in plans[target]:
                yield from check(message, path)

        if _is_map(field):

            def check_map(message: Message, path: str) -> Iterator[FieldViolation]:
                for key, item in getattr(message, name).items():
                    yield from inside(item, f"{path}{name}[{key!r}].")

            return check_map
        if field.is_repeated:

            def check_list(message: Message, path: str) -> Iterator[FieldViolation]:
                for index, item in enumerate(getattr(message, name)):
                    yield from inside(item, f"{path}{name}[{index}].")

            return check_list

        def check_one(message: Message, path: str) -> Iterator[FieldViolation]:
            if message.HasField(name):
                yield from inside(getattr(message, name), f"{path}{name}.")

        return check_one


def _present(field: FieldDescriptor) -> _Check:
    name = field.name
    expected = f"expected {_expectation(field)}, and it is missing"
    presence = field.has_presence
    emptiable = field.cpp_type not in _NO_EMPTY_VALUE
    is_message = field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE and not field.is_repeated

    def check(message: Message, path: str) -> Iterator[FieldViolation]:
        if presence:
            missing = not message.HasField(name)
            if not missing and not is_message and emptiable:
                missing = not getattr(message, name)
        else:
            missing = (emptiable or field.is_repeated) and not getattr(message, name)
        if missing:
            yield FieldViolation(f"{path}{name}", expected, "REQUIRED")

    return check


def _expectation(field: FieldDescriptor) -> str:
    if field.is_repeated:
        return "at least one entry"
    if field.enum_type is not None:
        names = [value.name for value in field.enum_type.values if value.number != 0]
        return "one of " + ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    if field.message_type is not None:
        name = field.message_type.name
        return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return "a value that is not empty"
    return "a value"


def _is_required(field: FieldDescriptor) -> bool:
    behaviors = field.GetOptions().Extensions[field_behavior_pb2.field_behavior]
    return field_behavior_pb2.FieldBehavior.REQUIRED in behaviors


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _message_type(field: FieldDescriptor) -> Descriptor | None:
    target = field.message_type
    if target is not None and target.GetOptions().map_entry:
        return target.fields_by_name["value"].message_type
    return target


def _reachable(descriptor: Descriptor) -> set[Descriptor]:
    found: set[Descriptor] = set()
    pending = [descriptor]
    while pending:
        each = pending.pop()
        if each not in found:
            found.add(each)
            pending += [t for f in each.fields if (t := _message_type(f)) is not None]
    return found
