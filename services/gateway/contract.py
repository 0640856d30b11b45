"""What the compiled contracts say of services, methods and REST paths."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from google.api import (  # type: ignore[import-untyped]  # the package ships no type stubs
    annotations_pb2,
    http_pb2,
)
from google.protobuf import descriptor_pb2
from google.protobuf.message import DecodeError

from services.shared.errors import StartupError

__all__ = [
    "Binding",
    "Contract",
    "Guard",
    "Method",
    "MethodSet",
    "Service",
    "allowed_methods",
    "guards",
    "load_contract",
]

_VERBS = ("get", "put", "post", "delete", "patch")


@dataclass(frozen=True, slots=True)
class Binding:
    """One REST form of a method."""

    verb: str
    """HTTP method in upper case."""

    template: str
    """Path as `google.api.http` writes it: `/api/v1/orderbook/{exchange}/{symbol}`."""

    body: str = ""
    """Field that the body is, `*` for the whole request, empty when it has none."""

    @property
    def variables(self) -> tuple[str, ...]:
        """Fields of the request that the path has."""
        return tuple(re.findall(r"\{([^}=]+)[^}]*\}", self.template))

    @property
    def segments(self) -> tuple[str, ...]:
        """The path's parts, `*` for a variable, `**` for one that spans the rest."""
        return _segments(self.template)

    @property
    def regex(self) -> str:
        """RE2 expression of the path."""
        return _regex(self.template)

    def overlaps(self, other: "Binding") -> bool:
        """Whether some path fits both."""
        ours, theirs = self.segments, other.segments
        for mine, its in zip(ours, theirs, strict=False):
            if "**" in (mine, its):
                return True
            if mine != its and not (mine.startswith("*") or its.startswith("*")):
                return False
        return len(ours) == len(theirs)


@dataclass(frozen=True, slots=True)
class Method:
    """One RPC."""

    service: str
    """Full name of its service."""

    name: str
    """Its own name."""

    client_streaming: bool
    """Whether the client sends many messages."""

    server_streaming: bool
    """Whether the service sends many messages."""

    bindings: tuple[Binding, ...]
    """Its REST forms; empty when REST cannot carry it."""

    request: str = ""
    """Full name of its request message."""

    @property
    def path(self) -> str:
        """Path of its gRPC requests."""
        return f"/{self.service}/{self.name}"

    @property
    def streaming(self) -> bool:
        """Whether it is a stream in any direction, and so without a time limit."""
        return self.client_streaming or self.server_streaming

    @property
    def repeatable(self) -> bool:
        """Whether a second call does no harm: REST carries it as GET, and as nothing else."""
        return bool(self.bindings) and all(item.verb == "GET" for item in self.bindings)


@dataclass(frozen=True, slots=True)
class Service:
    """One gRPC service of the contracts."""

    name: str
    """Full name: `marketprism.market.v1.MarketDataService`."""

    package: str
    """Its protobuf package."""

    methods: tuple[Method, ...]
    """Its RPCs, in the order of the contract."""


@dataclass(frozen=True, slots=True)
class MethodSet:
    """REST paths that take the same HTTP methods."""

    verbs: tuple[str, ...]
    """The methods they take, sorted."""

    regexes: tuple[str, ...]
    """RE2 expressions of the paths."""

    exceptions: tuple[str, ...] = ()
    """RE2 expressions of paths that may fit those and take other methods."""


@dataclass(frozen=True, slots=True)
class Guard:
    """A field that some paths have in them, and that their query must not have again.

    The transcoder would let the query win, and so serve another thing than the path names.
    """

    names: tuple[str, ...]
    """The field as a query may write it: its own name and that of JSON."""

    regexes: tuple[str, ...]
    """RE2 expressions of the paths."""

    exceptions: tuple[str, ...]
    """RE2 expressions of paths that fit those and do not have the field in them."""


@dataclass(frozen=True)
class Contract:
    """All services of the compiled contracts."""

    files: descriptor_pb2.FileDescriptorSet
    """The files with everything they import."""

    services: tuple[Service, ...]
    """All services, by name."""

    def of_packages(self, packages: Iterable[str]) -> tuple[Service, ...]:
        """Give the services of some packages."""
        wanted = set(packages)
        return tuple(service for service in self.services if service.package in wanted)

    @cached_property
    def packages(self) -> frozenset[str]:
        """All packages that have services."""
        return frozenset(service.package for service in self.services)


def allowed_methods(services: Iterable[Service]) -> tuple[MethodSet, ...]:
    """Group the REST paths of services by the HTTP methods that they take.

    A request that also fits another path with other methods is an exception: nothing is said of it.
    """
    bindings = [
        binding for service in services for method in service.methods for binding in method.bindings
    ]
    verbs_of: dict[str, set[str]] = {}
    for binding in bindings:
        verbs_of.setdefault(binding.regex, set()).add(binding.verb)
    groups: dict[tuple[str, ...], tuple[dict[str, None], dict[str, None]]] = {}
    for binding in bindings:
        verbs = verbs_of[binding.regex]
        regexes, exceptions = groups.setdefault(tuple(sorted(verbs)), ({}, {}))
        regexes[binding.regex] = None
        for other in bindings:
            if not verbs_of[other.regex] <= verbs and binding.overlaps(other):
                exceptions[other.regex] = None
    return tuple(
        MethodSet(verbs, tuple(regexes), tuple(exceptions))
        for verbs, (regexes, exceptions) in sorted(groups.items())
    )


def guards(services: Iterable[Service]) -> tuple[Guard, ...]:
    """Give the fields that REST paths have in them."""
    bindings = [
        binding for service in services for method in service.methods for binding in method.bindings
    ]
    found = []
    for variable in sorted({name for binding in bindings for name in binding.variables}):
        with_it = [binding for binding in bindings if variable in binding.variables]
        without = [
            binding
            for binding in bindings
            if variable not in binding.variables and any(map(binding.overlaps, with_it))
        ]
        head, *rest = variable.split("_")
        json_name = head + "".join(part.capitalize() for part in rest)
        found.append(
            Guard(
                tuple(dict.fromkeys((variable, json_name))),
                tuple(dict.fromkeys(binding.regex for binding in with_it)),
                tuple(dict.fromkeys(binding.regex for binding in without)),
            )
        )
    return tuple(found)


def load_contract(path: Path) -> Contract:
    """Read a descriptor set; raises `StartupError` that says how to make one."""
    try:
        files = descriptor_pb2.FileDescriptorSet.FromString(path.read_bytes())
    except OSError as error:
        raise StartupError(
            f"expected the compiled contracts at {path}, got: {error.strerror}; run `make gen`",
            reason="CONTRACTS_MISSING",
            metadata={"path": path},
        ) from error
    except DecodeError as error:
        raise StartupError(
            f"expected a FileDescriptorSet in {path}, got: {error}; run `make gen`",
            reason="CONTRACTS_MISSING",
            metadata={"path": path},
        ) from error
    services = sorted(_services(files), key=lambda service: service.name)
    if not services:
        raise StartupError(
            f"expected services in the contracts at {path}, found none; run `make gen`",
            reason="CONTRACTS_MISSING",
            metadata={"path": path},
        )
    return Contract(files, tuple(services))


# Every path is held against every other.
@cache
def _segments(template: str) -> tuple[str, ...]:
    path = re.sub(r"\{[^}=]+\}", "*", template)
    path = re.sub(r"\{[^}=]+=([^}]+)\}", r"\1", path)
    return tuple(path.removeprefix("/").split("/"))


@cache
def _regex(template: str) -> str:
    parts = []
    for segment in _segments(template):
        stem, colon, verb = segment.partition(":")
        part = {"*": "[^/]+", "**": ".+"}.get(stem, re.escape(stem).replace(r"\-", "-"))
        parts.append(part + colon + re.escape(verb))
    return "/" + "/".join(parts)


def _services(files: descriptor_pb2.FileDescriptorSet) -> Iterator[Service]:
    for file in files.file:
        for service in file.service:
            name = f"{file.package}.{service.name}"
            yield Service(name, file.package, tuple(_methods(name, service)))


def _methods(name: str, service: descriptor_pb2.ServiceDescriptorProto) -> Iterator[Method]:
    for method in service.method:
        yield Method(
            service=name,
            name=method.name,
            client_streaming=method.client_streaming,
            server_streaming=method.server_streaming,
            bindings=tuple(_bindings(method.options.Extensions[annotations_pb2.http])),
            request=method.input_type.removeprefix("."),
        )


def _bindings(rule: http_pb2.HttpRule) -> Iterator[Binding]:
    verb = rule.WhichOneof("pattern")
    if verb in _VERBS:
        yield Binding(verb.upper(), getattr(rule, verb), rule.body)
    elif verb == "custom":
        yield Binding(rule.custom.kind, rule.custom.path, rule.body)
    for further in rule.additional_bindings:
        yield from _bindings(further)
