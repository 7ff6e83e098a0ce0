"""Bytes that only this server's key can have made: states that clients keep, entries of a shared
cache. Their checksum is an HMAC, which is compared before a byte of them is read."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac

from .messages import ApiError

_MAC_BYTES = hashlib.sha256().digest_size


class Sealer:
    """Makes and opens what is sealed for an owner, such as an API key; another owner's is
    refused."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def name(self, *parts: bytes) -> bytes:
        """A name of 32 bytes that tells nothing of its parts to who lacks the key."""
        digest = hmac.new(self._key, digestmod=hashlib.sha256)
        for part in parts:
            digest.update(len(part).to_bytes(8, "big") + part)
        return digest.digest()

    def seal(self, data: bytes, *owner: bytes) -> bytes:
        return self.name(b"sealed", *owner, data) + data

    def open(self, sealed: bytes, *owner: bytes) -> bytes | None:
        """None: damaged, or sealed with another key or for another owner."""
        mac, data = sealed[:_MAC_BYTES], sealed[_MAC_BYTES:]
        return data if hmac.compare_digest(mac, self.name(b"sealed", *owner, data)) else None

    def seal_state(self, unfinished: bytes, state: bytes, api_key: bytes) -> str:
        """unfinished: the first bytes of a character, of which the text has none yet."""
        data = bytes([len(unfinished)]) + unfinished + state
        return base64.urlsafe_b64encode(self.seal(data, b"state", api_key)).decode()

    def open_state(self, text: str, api_key: bytes) -> tuple[bytes, bytes]:
        """What `seal_state` was given. Raises ApiError."""
        try:
            sealed = base64.b64decode(text.encode(), b"-_", validate=True)
        except (binascii.Error, ValueError):
            sealed = b""
        data = self.open(sealed, b"state", api_key)
        if not data:
            message = "The state is damaged, or of another server or API key"
            raise ApiError(400, message, param="state", code="invalid_state")
        return data[1 : 1 + data[0]], data[1 + data[0] :]
