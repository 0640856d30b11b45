"""The result for people: a table by fault and venue, and what went wrong."""

from collections import defaultdict
from collections.abc import Sequence

from conformance.cases import CASES
from conformance.runner import Outcome
from conformance.venues import VENUES

__all__ = ["failures", "line", "table"]


def line(outcome: Outcome) -> str:
    """Describe one run in one line, for the progress."""
    verdict = "ok  " if outcome.passed else "FAIL"
    parts = [f"{verdict} {outcome.venue}:{outcome.case}", outcome.symbol]
    if outcome.detected:
        parts.append(", ".join(outcome.detected))
    if outcome.recover_seconds is not None:
        parts.append(f"in step after {outcome.recover_seconds:.2f} s")
    parts += [f"{outcome.requests} requests", f"{outcome.compared} comparisons"]
    text = " | ".join(parts)
    for problem in (*outcome.wrong[:3], *outcome.missed[:3], *outcome.breaches[:3]):
        text += f"\n       {problem[:500]}"
    return text


def failures(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Give the runs in which something was wrong."""
    return [outcome for outcome in outcomes if not outcome.passed]


def table(outcomes: Sequence[Outcome]) -> str:
    """Give the table in Markdown: a row a fault, a column a venue."""
    runs: dict[tuple[str, str], list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        runs[outcome.case, outcome.venue].append(outcome)
    venues = [name for name in VENUES if any(outcome.venue == name for outcome in outcomes)]
    lines = [
        "| fault | " + " | ".join(VENUES[name].title for name in venues) + " |",
        "|---" * (len(venues) + 1) + "|",
    ]
    for case in CASES:
        if not any((case.name, name) in runs for name in venues):
            continue
        cells = [_cell(runs.get((case.name, name), [])) for name in venues]
        lines.append(f"| **{case.name}**: {case.title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(runs: Sequence[Outcome]) -> str:
    if not runs:
        return "–"  # noqa: RUF001 - a dash in a table
    parts = []
    detected = list(dict.fromkeys(_short(word) for run in runs for word in run.detected))
    if detected:
        parts.append(", ".join(detected))
    times = sorted(run.recover_seconds for run in runs if run.recover_seconds is not None)
    if times:
        middle, longest = times[(len(times) - 1) // 2], times[-1]
        told = f"{middle:.2f}" if len(times) == 1 else f"{middle:.2f} / {longest:.2f}"
        parts.append(f"{told} s")
    elif all(run.passed for run in runs):
        parts.append("goes on")
    if requests := max(run.requests for run in runs):
        weight = max(run.weight for run in runs)
        parts.append(f"{requests} REST" + (f" ({weight})" if weight > requests else ""))
    if any(not run.passed for run in runs):
        parts.append(f"**{sum(not run.passed for run in runs)} of {len(runs)} FAILED**")
    return "; ".join(parts)


def _short(word: str) -> str:
    return word.replace("RESYNCING:", "").replace("STALE:", "")
