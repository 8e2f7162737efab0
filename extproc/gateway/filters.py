"""Envoy's own filters that stand before ours: who has a valid token, and whose claims let them in.

Both take dicts of plain values and give dicts that Envoy reads as JSON, for `filters_before` of `bootstrap`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from extproc.gateway.bootstrap import HEALTH_PATH

Json = dict[str, Any]

JWT_AUTHN = "envoy.filters.http.jwt_authn"
"""Name of the filter, and of the dynamic metadata in which it leaves claims."""
PAYLOAD = "principal"
"""Key of the claims in that metadata; `payload` of a `jwt` source of the server."""
_RBAC = "envoy.filters.http.rbac"
_TYPES = "type.googleapis.com/envoy.extensions.filters.http"


def jwt_authn_filter(
    *,
    issuer: str,
    jwks: str,
    audiences: Iterable[str] = (),
    require_expiration: bool = False,
    optional: bool = False,
) -> Json:
    """Requests need a token of `issuer`, signed by a key of `jwks` (the text of a JSON Web Key Set); others get a 401.

    `Authorization: Bearer` carries it; the model never sees it. With `optional`, requests without a token pass too,
    for those who authenticate in another way; a wrong token is a 401 all the same. HEALTH_PATH needs none.
    """
    provider: Json = {
        "issuer": issuer,
        "local_jwks": {"inline_string": jwks},
        "audiences": list(audiences),
        "forward": False,
        "require_expiration": require_expiration,
        "payload_in_metadata": PAYLOAD,
    }
    name = "tokens"
    needed: Json = {"provider_name": name}
    if optional:
        needed = {"requires_any": {"requirements": [needed, {"allow_missing": {}}]}}
    return {
        "name": JWT_AUTHN,
        "typed_config": {
            "@type": f"{_TYPES}.jwt_authn.v3.JwtAuthentication",
            "providers": {name: provider},
            "rules": [{"match": {"path": HEALTH_PATH}}, {"match": {"prefix": "/"}, "requires": needed}],
        },
    }


def rbac_filter(claims: Mapping[str, str]) -> Json:
    """Requests whose verified claims have all these values pass; others get a 403 `RBAC: access denied`.

    A dot leads into a claim that is an object (`llms.openai`); of a claim that is a list one item has to be the value.
    Stands behind `jwt_authn_filter`. HEALTH_PATH is for everybody. Raises ValueError without any claim.
    """
    if not claims:
        raise ValueError("claims: at least one is needed, or nobody is let in")
    health = {"url_path": {"path": {"exact": HEALTH_PATH}}}
    return {
        "name": _RBAC,
        "typed_config": {
            "@type": f"{_TYPES}.rbac.v3.RBAC",
            "rules": {
                "action": "ALLOW",
                "policies": {
                    "health": {"permissions": [health], "principals": [{"any": True}]},
                    "claims": {
                        "permissions": [{"any": True}],
                        "principals": [{"and_ids": {"ids": [_has(*claim) for claim in claims.items()]}}],
                    },
                },
            },
        },
    }


def _has(claim: str, value: str) -> Json:
    """A principal: the claim is the value, or a list in which it is."""
    exact = {"string_match": {"exact": value}}
    matcher = {
        "filter": JWT_AUTHN,
        "path": [{"key": key} for key in (PAYLOAD, *claim.split("."))],
        "value": {"or_match": {"value_matchers": [exact, {"list_match": {"one_of": exact}}]}},
    }
    return {"sourced_metadata": {"metadata_matcher": matcher}}
