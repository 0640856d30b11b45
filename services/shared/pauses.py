"""Keeps Python's garbage collector from stopping a process that has much in memory.

Reference counts free nearly everything at once; the collector only looks for cycles. As set by
default it looks so often that a server with 2,000 streams stands still for 150 ms now and then
(`benchmarks/fanout_latency.py`).
"""

import gc

__all__ = ["avoid_pauses"]

_YOUNG = 20_000
_MIDDLE = 20
_OLD = 50


def avoid_pauses() -> None:
    """Leave alone what was loaded so far, and look for cycles among the rest less often.

    Call it once a process, when everything is imported.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG, _MIDDLE, _OLD)
