"""A recording is printed as the events that the collector told."""

from pathlib import Path

import pytest

from services.cli.events import print_events
from services.shared.errors import InvalidArgument


def test_a_file_without_a_recording_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"kind":"ws","data":"{}","url":"wss://x","conn":"1","ts":1.0}\n')
    with pytest.raises(InvalidArgument, match="no recording of a collector"):
        print_events([tmp_path], ())
