"""GET /docs: the HTTP protocol as one page, from the same document as /openapi.json. Nothing is loaded from
elsewhere, so that it is there without the internet too."""

from __future__ import annotations

import json
from html import escape
from typing import Any

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "pre{background:#8881;padding:.8rem;overflow:auto}code{font-size:.95em}h2{margin-top:2rem}"
)
HEADERS = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}


def reference_page(document: dict[str, Any]) -> str:
    """HTML of an OpenAPI document: every route with its parameters and answers, then the schemas."""
    about = document["info"]
    routes = [
        _route(path, method, route)
        for path, methods in document["paths"].items()
        for method, route in methods.items()
    ]
    schemas = [
        f'<h3 id="{escape(name)}">{escape(name)}</h3><pre>{escape(json.dumps(schema, indent=2))}</pre>'
        for name, schema in document.get("components", {}).get("schemas", {}).items()
    ]
    title = escape(f"{about['title']} {about['version']}")
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style><h1>{title}</h1><p>{escape(about.get('description', ''))} "
        'For programs: <a href="openapi.json">openapi.json</a>.</p>'
        f"{''.join(routes)}<h2>Schemas</h2>{''.join(schemas)}</html>"
    )


def _route(path: str, method: str, route: dict[str, Any]) -> str:
    parameters = "".join(
        f"<li><code>{escape(one['name'])}</code>: {escape(one.get('description', ''))}</li>"
        for one in route.get("parameters", ())
    )
    answers = "".join(
        f"<li>{escape(status)}: {escape(answer.get('description', ''))}</li>"
        for status, answer in route.get("responses", {}).items()
    )
    body = route.get("requestBody", {}).get("content", {})
    forms = "".join(
        f"<li>body as <code>{escape(kind)}</code>: {escape(json.dumps(form.get('schema', {})))}</li>"
        for kind, form in body.items()
    )
    text = escape(route.get("description") or route.get("summary") or "")
    return (
        f"<h2><code>{method.upper()} {escape(path)}</code></h2><p>{text}</p>"
        f"<ul>{parameters}{forms}{answers}</ul>"
    )
