"""GET /: a page on which a person tries the reward with one image.

The page is one response: style and script stand inside it, and the Content-Security-Policy admits
exactly these two and calls to this service. It holds nothing secret and is served without a token;
its calls carry the one that the person types. Which details it can draw: README.md beside this file.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from pathlib import Path

from fastapi import APIRouter, Response

_FOLDER = Path(__file__).parent
# One module scope: together they are the page's script.
_SCRIPTS = ("evidence.js", "snippets.js", "answer.js", "app.js")

router = APIRouter()


@router.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
async def page() -> Response:
    html, policy = _page()
    return Response(
        html,
        media_type="text/html; charset=utf-8",
        headers={
            "Content-Security-Policy": policy,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-cache",
        },
    )


@cache
def _page() -> tuple[str, str]:
    """The document and the policy that it runs under."""
    style = _read("style.css")
    script = "".join(map(_read, _SCRIPTS))
    html = _read("index.html").replace("/* style.css */", style).replace("/* scripts */", script)
    return html, "; ".join(
        (
            "default-src 'none'",
            f"script-src {_hash(script)}",
            f"style-src {_hash(style)}",
            "img-src data:",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    )


def _read(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
