"""Writes Envoy's configuration: plan and settings in, YAML text out, no I/O but the templates."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import yaml

from services.gateway.plan import Address, EnvoyPlan
from services.gateway.settings import GatewaySettings
from services.shared.errors import StartupError

__all__ = ["render_endpoints", "render_envoy", "render_log_limit"]


def render_envoy(plan: EnvoyPlan, settings: GatewaySettings) -> str:
    """Give Envoy's bootstrap as YAML; raises `StartupError` when a template is wrong."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(settings.templates),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 - the result is YAML, and values are written with tojson
    )
    environment.filters["seconds"] = _seconds
    try:
        text = environment.get_template("envoy.yaml.j2").render(
            plan=plan,
            settings=settings,
            lua=_read(settings.templates / "envelope.lua"),
            lua_body=_read(settings.templates / "body.lua"),
        )
        yaml.safe_load(text)
    except jinja2.TemplateError as error:
        where = f"{getattr(error, 'name', None) or 'template'}:{getattr(error, 'lineno', '?')}"
        raise StartupError(
            f"expected valid templates in {settings.templates}, got: {where}: {error.message}",
            reason="ENVOY_TEMPLATE_INVALID",
        ) from error
    except yaml.YAMLError as error:
        raise StartupError(
            f"expected the templates in {settings.templates} to give YAML, got: {error}",
            reason="ENVOY_TEMPLATE_INVALID",
        ) from error
    return text


def render_endpoints(cluster: str, addresses: Sequence[Address]) -> str:
    """Give the endpoint file of one cluster; no addresses means that it is nowhere."""
    assignment: dict[str, Any] = {
        "@type": "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
        "cluster_name": cluster,
        "endpoints": [
            {
                "lb_endpoints": [
                    {
                        "endpoint": {
                            "address": {
                                "socket_address": {
                                    "address": address.host,
                                    "port_value": address.port,
                                }
                            }
                        }
                    }
                    for address in addresses
                ]
            }
        ],
    }
    text: str = yaml.safe_dump({"resources": [assignment]}, sort_keys=False)
    return text


def render_log_limit(settings: GatewaySettings) -> str:
    """Give the file of the limit on the access log's lines."""
    limit = {
        "@type": "type.googleapis.com/envoy.service.discovery.v3.Resource",
        "name": "access_log",
        "version": "1",
        "resource": {
            "@type": "type.googleapis.com/envoy.type.v3.TokenBucket",
            "max_tokens": settings.access_log_rate,
            "tokens_per_fill": settings.access_log_rate,
            "fill_interval": "1s",
        },
    }
    text: str = yaml.safe_dump({"resources": [limit]}, sort_keys=False)
    return text


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise StartupError(
            f"expected a readable file {path}, got: {error.strerror}",
            reason="ENVOY_TEMPLATE_INVALID",
        ) from error


def _seconds(value: float) -> str:
    return f"{value:.3f}s"
