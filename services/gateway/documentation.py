"""The OpenAPI document of what this gateway serves, and a page to read it.

Both are made once at the start and answered from memory. The page is one file without anything from
elsewhere, so that it works where there is no way out.
"""

import base64
import gzip
import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from aiohttp import web

from services.shared.errors import StartupError

__all__ = ["documentation_routes", "served_document"]

_PAGE = Path(__file__).with_name("docs.html")
_CACHE_CONTROL = "public, max-age=60"
_REFERENCE = re.compile(r'"#/components/([a-zA-Z]+)/([^"/]+)"')
_INLINE = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)


def served_document(path: Path, packages: Iterable[str]) -> dict[str, Any]:
    """Give the OpenAPI document at `path`, cut down to the services of some protobuf packages.

    Raises `StartupError` that says how to make one.
    """
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        kept = _cut(document, frozenset(packages))
    except OSError as error:
        raise _unusable(path, error.strerror or str(error)) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _unusable(path, repr(error)) from error
    return kept


def documentation_routes(document: dict[str, Any]) -> list[web.RouteDef]:
    """Give the routes of `/openapi.json` and `/docs`."""
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
    page = _PAGE.read_bytes()
    described = _Answer(text, "application/json").answer
    policy = {"Content-Security-Policy": _policy(page.decode())}
    read = _Answer(page, "text/html", policy).answer
    return [web.get("/openapi.json", described), web.get("/docs", read), web.get("/docs/", read)]


class _Answer:
    """An answer that is always the same, compressed once, and not sent again to who has it."""

    def __init__(self, body: bytes, content_type: str, headers: dict[str, str] | None = None):
        digest = base64.urlsafe_b64encode(hashlib.blake2s(body, digest_size=12).digest()).decode()
        # Each encoding is a representation of its own, and so has a tag of its own.
        self._plain = (body, digest)
        self._packed = (gzip.compress(body, mtime=0), f"{digest}-gzip")
        self._headers = {
            "Content-Type": f"{content_type}; charset=utf-8",
            "Cache-Control": _CACHE_CONTROL,
            "Vary": "Accept-Encoding",
            "X-Content-Type-Options": "nosniff",
            **(headers or {}),
        }

    async def answer(self, request: web.Request) -> web.Response:
        packs = "gzip" in request.headers.get("Accept-Encoding", "").lower()
        body, tag = self._packed if packs else self._plain
        headers = {**self._headers, "ETag": f'"{tag}"'}
        known = request.if_none_match or ()
        if any(each.value in (tag, "*") for each in known):
            del headers["Content-Type"]
            return web.Response(status=304, headers=headers)
        if packs:
            headers["Content-Encoding"] = "gzip"
        return web.Response(body=body, headers=headers)


def _cut(document: dict[str, Any], packages: frozenset[str]) -> dict[str, Any]:
    paths = {}
    tags = set()
    for path, operations in document["paths"].items():
        kept = {
            verb: operation
            for verb, operation in operations.items()
            if _package(operation) in packages or "x-grpc-method" not in operation
        }
        if kept:
            paths[path] = kept
            tags |= {tag for operation in kept.values() for tag in operation.get("tags", ())}
    cut = {
        **document,
        # Wherever it was read from.
        "servers": [{"url": "/"}],
        "tags": [tag for tag in document["tags"] if tag["name"] in tags],
        "paths": paths,
    }
    cut["components"] = _needed(paths, document["components"])
    return cut


def _package(operation: dict[str, Any]) -> str:
    service, _, _ = operation.get("x-grpc-method", "").partition("/")
    package, _, _ = service.rpartition(".")
    return str(package)


def _needed(paths: dict[str, Any], components: dict[str, Any]) -> dict[str, Any]:
    """Give the components that something refers to, and those that have no references."""
    found: dict[str, set[str]] = {}
    ahead: list[Any] = [paths]
    while ahead:
        for section, name in _REFERENCE.findall(json.dumps(ahead.pop())):
            if name not in found.setdefault(section, set()):
                found[section].add(name)
                ahead.append(components[section][name])
    return {
        section: {name: each for name, each in known.items() if name in found.get(section, ())}
        if section != "securitySchemes"
        else known
        for section, known in components.items()
    }


def _policy(page: str) -> str:
    """Give a policy that lets the page run what is in it, and nothing else."""
    hashes: dict[str, list[str]] = {"script": [], "style": []}
    for kind, text in _INLINE.findall(page):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        hashes[kind].append(f"'sha256-{digest}'")
    return (
        f"default-src 'none'; connect-src 'self'; script-src {' '.join(hashes['script'])}; "
        f"style-src {' '.join(hashes['style'])}; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )


def _unusable(path: Path, why: str) -> StartupError:
    return StartupError(
        f"expected the OpenAPI document at {path}, got: {why}; run `make gen`",
        reason="CONTRACTS_MISSING",
        metadata={"path": path},
    )
