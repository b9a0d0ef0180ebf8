"""Who may call: the bearer token, the same for both ports."""

from __future__ import annotations

import hmac

from reward_api.errors import AuthenticationFailed, Reason


class TokenCheck:
    def __init__(self, token: str) -> None:
        self._expected = b"Bearer " + token.encode("ascii")

    def failure(self, authorization: bytes) -> AuthenticationFailed | None:
        """None when the Authorization header is right; compared in constant time."""
        if hmac.compare_digest(authorization, self._expected):
            return None
        what = "wrong token" if authorization else "no token"
        return AuthenticationFailed(
            Reason.AUTH, f"{what}: send the header 'Authorization: Bearer <token>'"
        )
