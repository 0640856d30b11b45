"""The garbage collector is asked to keep out of the way, in a process of its own."""

import subprocess
import sys

_SCRIPT = """
import gc
from services.shared.pauses import avoid_pauses
before = gc.get_threshold()[0]
avoid_pauses()
assert gc.get_threshold()[0] > before and gc.get_freeze_count() > 1000
class Cycle:
    def __init__(self): self.itself = self
for _ in range(1_000_000): Cycle()
assert len(gc.get_objects()) < 500_000, "expected cycles still to be found"
"""


def test_less_is_looked_for_and_cycles_are_still_found() -> None:
    subprocess.run([sys.executable, "-c", _SCRIPT], check=True)
