"""The HTTP server of `commands.demo`: a page that sends photos, for one person on this machine.

The only module that needs the packages of requirements-demo.txt. A photo is the body of a POST; it
is kept in memory until it is answered, and never stored. Photos are classified one at a time, so
that two at once need no more memory than one.
"""

import asyncio
import secrets
from collections.abc import Callable
from io import BytesIO
from typing import Any

from jinja2 import Template
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

Answer = dict[str, Any]

LOOPBACK_NAMES = ["127.0.0.1", "localhost"]
"""Accepted host names: not one that a foreign DNS server resolves to this machine."""

DRAINED_MULTIPLE = 8
"""An upload is read, and discarded, up to this multiple of the size limit: most clients read the
answer only once they have sent everything."""


class RefusedError(Exception):
    """A photo that cannot be classified; the message says why."""


def demo_app(
    page: Template,
    content: dict[str, Any],
    answer: Callable[[BytesIO, bool], Answer],
    max_bytes: int,
) -> Starlette:
    """Make an app with the page at / and the answers to photos at /classify.

    Args:
        page: rendered with `content`, and with a `nonce` for its scripts and styles.
        answer: takes a photo, and whether to classify one without a face. It is called in a thread,
            never twice at once, and may raise `RefusedError`.
        max_bytes: a larger photo is refused while it is received.
    """
    one_at_a_time = asyncio.Lock()

    async def get_page(_: Request) -> Response:
        nonce = secrets.token_urlsafe(16)
        html = page.render(content=content, nonce=nonce)
        return HTMLResponse(html, headers=_security_headers(f"'nonce-{nonce}'"))

    async def classify(request: Request) -> Response:
        own_origin = f"http://{request.headers['host']}"
        if request.headers.get("origin", own_origin) != own_origin:
            return _error(403, "only this server's own page may send photos")
        body, size = BytesIO(), 0
        try:
            async for part in request.stream():
                size += len(part)
                if size <= max_bytes:
                    body.write(part)
                elif size > DRAINED_MULTIPLE * max_bytes:
                    break
        except ClientDisconnect:  # another photo was dropped, or the page was closed
            return Response(status_code=499)
        if size > max_bytes:
            return _error(413, f"the photo is larger than {max_bytes / 1e6:g} MB")
        try:
            async with one_at_a_time:
                fallback = request.query_params.get("fallback") == "1"
                result = await run_in_threadpool(answer, body, fallback)
        except RefusedError as error:
            return _error(422, str(error))
        return JSONResponse(result, headers=_security_headers("'none'"))

    return Starlette(
        routes=[Route("/", get_page), Route("/classify", classify, methods=["POST"])],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=LOOPBACK_NAMES)],
    )


def _error(status: int, message: str) -> Response:
    headers = {**_security_headers("'none'"), "Connection": "close"}
    return JSONResponse({"error": message}, status, headers)


def _security_headers(inline: str) -> dict[str, str]:
    """Headers that forbid the browser to load anything from elsewhere and to store the response.

    Args:
        inline: the policy's source for scripts and styles.
    """
    return {
        "Content-Security-Policy": (
            f"default-src 'none'; script-src {inline}; style-src {inline}; img-src blob: data:; "
            "media-src blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
            "frame-ancestors 'none'"
        ),
        "Cache-Control": "no-store",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "Cross-Origin-Resource-Policy": "same-origin",
    }
