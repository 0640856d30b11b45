"""`python -m benchmarks [NAME [OPTION ...]]`: runs all benchmarks, or one with its options.

The soak takes ten minutes, and `store_queries` makes a hundred million trades: these are run by
their names only.
"""

import subprocess
import sys

_ALL = (
    "collector",
    "venues",
    "fanout",
    "book_views",
    "rest",
    "end_to_end",
    "store_ingest",
    "store_bytes",
    "history_book",
    "history_replay",
)
_NAMED = (*_ALL, "soak", "store_queries")


def main() -> int:
    """Run what was named and return the exit status."""
    name, *options = sys.argv[1:] or [""]
    if name and name not in _NAMED:
        print(f"no benchmark {name!r}; there are: {', '.join(_NAMED)}", file=sys.stderr)
        return 2
    status = 0
    for each in (name,) if name else _ALL:
        print(f"=== {each}", flush=True)
        status |= subprocess.call([sys.executable, "-m", f"benchmarks.{each}", *options])
    return status


if __name__ == "__main__":
    sys.exit(main())
