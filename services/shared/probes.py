"""Readiness probes: whether something answers at an address, now."""

import asyncio
import contextlib
from urllib.parse import urlsplit

__all__ = ["http_ready", "tcp_ready"]


async def tcp_ready(host: str, port: int) -> bool:
    """Tell whether somebody accepts connections."""
    try:
        _, writer = await asyncio.open_connection(host, port)
    except OSError:
        return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True


async def http_ready(url: str) -> bool:
    """Tell whether a GET of this http:// URL answers 2xx."""
    parts = urlsplit(url)
    try:
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port or 80)
    except OSError:
        return False
    try:
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        writer.write(f"GET {target} HTTP/1.0\r\nHost: {parts.netloc}\r\n\r\n".encode())
        status_line = await reader.readline()
        words = status_line.split()
        return len(words) > 1 and words[1].startswith(b"2")
    except (OSError, ValueError):
        return False
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
