"""REST paths: every request goes to one method, and it is plain which."""

import itertools
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import pytest
from google.api import field_behavior_pb2

from tools.openapi import http_rules
from tools.openapi_schemas import Contracts, behaviors

VARIABLE = re.compile(r"\{([^}]+)\}")


@dataclass(frozen=True)
class Rule:
    verb: str
    template: str
    method: str
    request: str

    @property
    def segments(self) -> list[str]:
        """Path segments; "*" for a variable, its custom verb as a last segment of its own."""
        path, colon, verb = self.template.rpartition(":")
        if not colon:
            path, verb = verb, ""
        parts = ["*" if part.startswith("{") else part for part in path.split("/")]
        return [*parts, f":{verb}"]


@pytest.fixture(scope="module")
def rules(contracts: Contracts) -> list[Rule]:
    return [
        Rule(verb, path, f"{service.full_name}.{method.name}", method.input_type)
        for service in contracts.services
        for method in service.proto.method
        for verb, path, _ in http_rules(method)
    ]


def ambiguous(one: list[str], other: list[str]) -> bool:
    """Whether a path fits both, and nothing makes one of them the better match.

    Where both fit, the one that is literal at the first place where they differ is taken.
    """
    if len(one) != len(other):
        return False
    fits = all(a == b or "*" in (a, b) for a, b in zip(one, other, strict=True))
    return fits and one == other


def test_no_request_fits_two_methods_equally_well(rules: list[Rule]) -> None:
    clashes = [
        f"{a.verb.upper()} {a.template} ({a.method}) and {b.template} ({b.method})"
        for a, b in itertools.combinations(rules, 2)
        if a.verb == b.verb and ambiguous(a.segments, b.segments)
    ]
    assert clashes == []


def test_two_paths_of_one_shape_are_seen_as_ambiguous() -> None:
    a = Rule("get", "/api/v1/a/{x}:stop", "A", "")
    b = Rule("get", "/api/v1/a/{y}:stop", "B", "")
    c = Rule("get", "/api/v1/a/fixed:stop", "C", "")
    assert ambiguous(a.segments, b.segments)
    assert not ambiguous(a.segments, c.segments)


def test_words_that_overlap_a_variable_are_no_value_of_it(rules: list[Rule]) -> None:
    """`/runs/watch` hides the run "watch": such words must be ones that no id or symbol has."""
    reserved = {
        "watch",
        "status",
        "stream",
        "snapshot",
        "symbols",
        "series",
        "spreads",
        "depths",
        "days",
    }
    for a, b in itertools.permutations(rules, 2):
        if a.verb != b.verb or len(a.segments) != len(b.segments):
            continue
        pairs = list(zip(a.segments, b.segments, strict=True))
        if not all(x == y or "*" in (x, y) for x, y in pairs):
            continue
        hidden = {x for x, y in pairs if y == "*" and x != "*"}
        assert hidden <= reserved, f"{a.template} hides values of {b.template}: {hidden}"


def test_a_path_names_its_variables_alike_for_every_verb(rules: list[Rule]) -> None:
    names = defaultdict(set)
    for rule in rules:
        names["/".join(rule.segments)].add(tuple(VARIABLE.findall(rule.template)))
    assert {shape: found for shape, found in names.items() if len(found) > 1} == {}


def test_path_variables_are_required_fields(rules: list[Rule], contracts: Contracts) -> None:
    for rule in rules:
        for name in VARIABLE.findall(rule.template):
            field = contracts.message(rule.request).field(name)
            assert field_behavior_pb2.FieldBehavior.REQUIRED in behaviors(field), (
                f"{rule.template}: {name} is not REQUIRED in {rule.request}"
            )


def test_paths_are_written_alike(rules: list[Rule]) -> None:
    form = re.compile(
        r"/api/v1(/([a-z][a-z0-9]*(-[a-z0-9]+)*|\{[a-z][a-z0-9_]*\}))+(:[a-z][A-Za-z]*)?"
    )
    assert [rule.template for rule in rules if not form.fullmatch(rule.template)] == []


def test_every_path_of_the_market_is_documented(rules: list[Rule]) -> None:
    text = (Path(__file__).parents[3] / "docs" / "rest.md").read_text(encoding="utf-8")
    services = ("marketprism.market.v1.", "marketprism.collector.v1.")
    for rule in rules:
        if rule.method.startswith(services):
            shown = (rule.template, f"...{rule.template[rule.template.rfind('/') :]}")
            assert any(f"{path}`" in text for path in shown), f"{rule.template} is missing"
