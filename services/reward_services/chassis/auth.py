"""Who may call: the bearer token, the same for both ports.

Clients that can set nothing but a URL send it as the password of HTTP Basic: `http://any:TOKEN@host`.
"""

from __future__ import annotations

import base64
import binascii
import hmac

from reward_api.errors import AuthenticationFailed, Reason


class TokenCheck:
    def __init__(self, token: str) -> None:
        self._expected = token.encode("ascii")

    def failure(self, authorization: bytes) -> AuthenticationFailed | None:
        """None when the Authorization header is right; compared in constant time."""
        given = _given_token(authorization)
        if given is not None and hmac.compare_digest(given, self._expected):
            return None
        what = "wrong token" if authorization else "no token"
        return AuthenticationFailed(
            Reason.AUTH,
            f"{what}: send the header 'Authorization: Bearer <token>', or the token as the password "
            "of the URL (http://any:TOKEN@host)",
        )


def _given_token(authorization: bytes) -> bytes | None:
    """The token of either scheme; None where the header has another form."""
    scheme, _, value = authorization.partition(b" ")
    if scheme == b"Bearer":
        return value
    if scheme != b"Basic":
        return None
    try:
        _, colon, password = base64.b64decode(value, validate=True).partition(b":")
    except (binascii.Error, ValueError):
        return None
    return password if colon else None
