"""The command line: which cases, on what, how often, and how the result is told."""

import argparse
import asyncio
import fnmatch
import json
import logging
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import structlog

from conformance.cases import CASES, Case
from conformance.collectors import PROFILES
from conformance.report import failures, line, table
from conformance.rig import Attached, RigError, attached_rig, own_rig
from conformance.runner import Outcome, run_cases
from conformance.venues import VENUES, VenueFacts

__all__ = ["Job", "main", "plan", "run"]


class Job:
    """Cases of one venue that run one after the other on one rig."""

    def __init__(self, facts: VenueFacts, profile: str, cases: Sequence[Case]) -> None:
        self.facts = facts
        self.profile = profile
        self.cases = list(cases)

    @property
    def slow(self) -> bool:
        """Whether it mostly waits."""
        return any(case.slow for case in self.cases)

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"{self.facts.name}-{self.profile}{'-slow' if self.slow else ''}"


def plan(only: Sequence[str] = (), *, fast: bool = False) -> list[Job]:
    """Share the wanted cases out among rigs, those that take longest first.

    `only` has `VENUE:CASE`, either of which may be a pattern or left out; `fast` leaves the cases
    out that take a minute.
    """
    jobs = []
    groups = [(profile, False) for profile in PROFILES] + [("plain", True)]
    for profile, slow in sorted(groups, key=lambda group: not group[1]):
        for facts in VENUES.values():
            cases = [
                case
                for case in CASES
                if case.profile == profile
                and case.slow is slow
                and not (slow and fast)
                and case.applies(facts)
                and _wanted(facts, case, only)
            ]
            if cases:
                jobs.append(Job(facts, profile, cases))
    return jobs


def _wanted(facts: VenueFacts, case: Case, only: Sequence[str]) -> bool:
    for pattern in only:
        venue, colon, name = pattern.partition(":")
        if not colon and venue not in VENUES:
            venue, name = "*", venue
        if fnmatch.fnmatchcase(facts.name, venue or "*") and fnmatch.fnmatchcase(
            case.name, name or "*"
        ):
            return True
    return not only


async def run(
    jobs: Sequence[Job],
    directory: Path,
    *,
    repeat: int = 1,
    at_once: int = 3,
    command: str = "",
    attached: dict[str, Attached] | None = None,
    compare_every: int = 2,
    tell: "Teller | None" = None,
) -> list[Outcome]:
    """Run jobs, `at_once` of them at the same time but never two on one attached collector."""
    teller = tell or Teller(sum(len(job.cases) for job in jobs) * repeat, quiet=True)
    # Those that wait for minutes do not keep the others waiting.
    quick = asyncio.Semaphore(1 if attached else at_once)
    patient = quick if attached else asyncio.Semaphore(at_once)

    async def one(job: Job) -> list[Outcome]:
        async with patient if job.slow else quick:
            if attached:
                rig = attached_rig(
                    job.facts, attached[job.facts.name], job.profile, compare_every=compare_every
                )
            else:
                rig = own_rig(
                    job.facts, PROFILES[job.profile], directory / job.name,
                    command=command, compare_every=compare_every,
                    depth_rate=4.0 if job.slow else 10.0,
                )  # fmt: skip
            try:
                async with rig as ready:
                    return await run_cases(
                        ready, job.cases, repeat=repeat, on_outcome=teller.outcome
                    )
            except RigError as error:
                outcome = Outcome(job.facts.name, job.cases[0].name, "", job.profile)
                outcome.missed.append(str(error))
                teller.outcome(outcome)
                return [outcome]

    found = await asyncio.gather(*(one(job) for job in jobs))
    return [outcome for outcomes in found for outcome in outcomes]


class Teller:
    """Writes a line for each run that ends."""

    def __init__(self, total: int, *, quiet: bool = False) -> None:
        self._total = total
        self._done = 0
        self._quiet = quiet
        self._began = time.monotonic()

    def outcome(self, outcome: Outcome) -> None:
        """Tell that a run has ended."""
        self._done += 1
        if not self._quiet:
            passed = time.monotonic() - self._began
            print(
                f"[{self._done:>3}/{self._total} {passed:5.0f} s] {line(outcome)}",
                file=sys.stderr,
                flush=True,
            )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the suite; 0 when everything is as it must be, 1 when not, 2 for a bad command line."""
    parser = _parser()
    given = parser.parse_args(arguments)
    for name in ("repeat", "jobs", "compare_every"):
        if getattr(given, name) < 1:
            parser.error(f"--{name.replace('_', '-')}: expected at least 1")
    jobs = plan(given.only, fast=given.fast)
    if given.list:
        for job in jobs:
            for case in job.cases:
                print(f"{job.facts.name}:{case.name}  ({job.profile})  {case.title}")
        return 0
    attached = _attached(parser, given)
    if attached:
        wanted = [job for job in jobs if job.facts.name in attached]
        jobs = [job for job in wanted if job.profile == given.profile]
        for job in wanted:
            if job.profile != given.profile:
                print(
                    f"left out: {len(job.cases)} cases of {job.facts.name} for a collector of the "
                    f"profile {job.profile} ({PROFILES[job.profile].summary})",
                    file=sys.stderr,
                )
    if not jobs:
        parser.error("no case is left to run; --list names all")
    logging.basicConfig(level=logging.ERROR)
    _quiet_log()
    directory = Path(given.directory or tempfile.mkdtemp(prefix="conformance-"))
    total = sum(len(job.cases) for job in jobs) * given.repeat
    began = time.monotonic()
    outcomes = asyncio.run(
        run(
            jobs,
            directory,
            repeat=given.repeat,
            at_once=given.jobs,
            command=given.command,
            attached=attached,
            compare_every=given.compare_every,
            tell=Teller(total),
        )
    )
    bad = failures(outcomes)
    text = table(outcomes)
    if given.json:
        told = {
            "seconds": round(time.monotonic() - began, 1),
            "passed": not bad,
            "runs": [outcome.as_dict() for outcome in outcomes],
        }
        Path(given.json).write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    print(text)
    print(
        f"\n{len(outcomes)} runs, {sum(each.compared for each in outcomes)} comparisons, "
        f"{sum(len(each.wrong) for each in outcomes)} wrong books, {len(bad)} runs failed, "
        f"{time.monotonic() - began:.0f} s"
    )
    for outcome in bad:
        print(line(outcome))
    if bad or given.directory:
        print(f"logs: {directory}")
    else:
        shutil.rmtree(directory, ignore_errors=True)
    return 1 if bad else 0


def _quiet_log() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))


def _attached(parser: argparse.ArgumentParser, given: argparse.Namespace) -> dict[str, Attached]:
    if not given.collector:
        if given.venue or given.nats:
            parser.error("--venue and --nats go with --collector")
        return {}
    if not given.nats or not given.venue:
        parser.error("--collector needs --nats URL and at least one --venue NAME=URL")
    found = {}
    for text in given.venue:
        name, equals, url = text.partition("=")
        if not equals or name not in VENUES:
            parser.error(f"--venue: expected NAME=URL of {', '.join(VENUES)}, got {text!r}")
        found[name] = Attached(given.collector, given.nats, url)
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m conformance",
        description="Drives every fault on every venue, and holds what a collector serves against "
        "the venue's true book at the same id.",
    )
    parser.add_argument(
        "--only", action="append", default=[], metavar="VENUE:CASE",
        help="only these; either part may be a pattern or left out, and the option repeated",
    )  # fmt: skip
    parser.add_argument("--repeat", type=int, default=1, help="runs of each case")
    parser.add_argument("--fast", action="store_true", help="without the cases of a minute")
    parser.add_argument("--list", action="store_true", help="name the cases and end")
    parser.add_argument("--json", metavar="FILE", help="write everything measured there")
    parser.add_argument("--jobs", type=int, default=3, help="rigs at the same time")
    parser.add_argument(
        "--compare-every", type=int, default=2, metavar="N", help="compare every Nth update"
    )
    parser.add_argument("--directory", help="where logs and stores go, and stay")
    other = parser.add_argument_group("another collector")
    other.add_argument("--command", default="", help="starts it; see docs/conformance.md")
    other.add_argument("--collector", metavar="HOST:PORT", help="one that runs: its gRPC address")
    other.add_argument("--nats", metavar="URL", help="the broker that it publishes to")
    other.add_argument(
        "--venue", action="append", default=[], metavar="NAME=URL",
        help="REST address of the simulated venue that it collects",
    )  # fmt: skip
    other.add_argument("--profile", default="plain", choices=sorted(PROFILES))
    return parser
