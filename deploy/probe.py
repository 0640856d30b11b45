"""Healthcheck of a container: `python -I -S probe.py URL`.

Prints what the URL answered, which the container engine keeps; exit status 0 for HTTP 200, 1 for
anything else. It runs often, so it imports nothing but what it needs.
"""

import http.client
import sys

TIMEOUT_SECONDS = 3.0
SHOWN_BYTES = 2000


def main(url: str) -> int:
    """Ask once and give the exit status."""
    address, _, path = url.removeprefix("http://").partition("/")
    connection = http.client.HTTPConnection(address, timeout=TIMEOUT_SECONDS)
    try:
        connection.request("GET", f"/{path}")
        answer = connection.getresponse()
        text = answer.read(SHOWN_BYTES).decode("utf-8", errors="replace")
    except (OSError, http.client.HTTPException) as error:
        print(f"{url} does not answer: {error!r}")
        return 1
    finally:
        connection.close()
    print(f"HTTP {answer.status}: {text}")
    return 0 if answer.status == 200 else 1


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("expected one argument, the URL to ask, such as http://127.0.0.1:9181/health")
    sys.exit(main(sys.argv[1]))
