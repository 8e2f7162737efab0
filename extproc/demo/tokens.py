"""Tokens signed by a key made on the spot, in the place of Keycloak or another issuer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm

_ALGORITHM = "RS256"


class Issuer:
    """`jwks` is its JSON Web Key Set, as text; `token` signs claims. Nobody else has the key, which is never stored."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        public = json.loads(RSAAlgorithm.to_jwk(self._key.public_key()))
        self.jwks = json.dumps({"keys": [{**public, "alg": _ALGORITHM, "use": "sig"}]})

    def token(self, **claims: Any) -> str:
        """A JWT with these claims and the issuer's name as `iss`, unless that is one of them."""
        return jwt.encode({"iss": self.name, **claims}, self._key, algorithm=_ALGORITHM)


def bearer(token: str) -> Mapping[str, str]:
    """The header that carries a token."""
    return {"authorization": f"Bearer {token}"}


def tampered(token: str, **claims: Any) -> str:
    """The token with some claims exchanged, under its old signature."""
    head, _, signature = token.split(".")
    known = jwt.decode(token, options={"verify_signature": False})
    forged = jwt.encode({**known, **claims}, "a key that no gateway knows: 32 bytes", algorithm="HS256").split(".")[1]
    return f"{head}.{forged}.{signature}"
