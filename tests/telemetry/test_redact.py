"""S2.D17: no secret is ever readable in a log."""

from __future__ import annotations

import time

import pytest

from extproc.telemetry.redact import MASK, is_secret, mask


@pytest.mark.parametrize(
    "name",
    [
        "authorization",
        "Proxy-Authorization",
        "api_key",
        "x-api-key",
        "apiKey",
        "x-goog-api-key",
        "cookie",
        "Set-Cookie",
        "password",
        "db_passwd",
        "passphrase",
        "client_secret",
        "secretKey",
        "private_key",
        "accessKey",
        "aws-credentials",
        "token",
        "x-auth-token",
        "access_token",
        "accessToken",
        "id_token",
        "jwt",
    ],
)
def test_name_of_a_credential(name: str) -> None:
    assert is_secret(name)


@pytest.mark.parametrize(
    "name",
    [
        "hits",
        "hits_addend",
        "total_tokens",
        "prompt_tokens",
        "max_tokens",
        "tokens",
        "token_count",
        "tokenizer",
        "time_to_first_token",
        "seconds_per_token",
        "key",
        "request_id",
        "authority",
        "action_set",
        "limit",
        "user",
        "model",
    ],
)
def test_name_of_something_else(name: str) -> None:
    assert not is_secret(name)


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("Bearer s3cr3t.abc", "Bearer ***"),
        ("got 'bearer s3cr3t'", "got 'bearer ***'"),
        ("Authorization: Bearer s3cr3t\r\n", "Authorization: ***\r\n"),
        ("authorization: s3cr3t, next", "authorization: ***, next"),
        ("APIKEY s3cr3t", "APIKEY ***"),
        ("Basic dXNlcjpzM2NyM3Q=", "Basic ***"),
        ("sk-proj-s3cr3t_abc", "***"),
        ("Incorrect API key provided: sk-s3cr3t42.", "Incorrect API key provided: ***."),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJzM2NyM3QifQ.s3cr3t", "***"),
        ("/v1/models?key=1&api_key=s3cr3t&x=2", "/v1/models?key=1&api_key=***&x=2"),
        ("https://host/?access_token=s3cr3t", "https://host/?access_token=***"),
        ('{"password": "s3cr3t and more", "user": "ann"}', '{"password": ***, "user": "ann"}'),
        ("{'x-api-key': 's3cr3t', 'a': 'b'}", "{'x-api-key': ***, 'a': 'b'}"),
        ("[('x-api-key', 's3cr3t')]", "[('x-api-key', ***)]"),
        ("[(b'cookie', b's3cr3t')]", "[(b'cookie', b***)]"),
        ('key: "cookie" raw_value: "s3cr3t=1; b=2"', 'key: "cookie" raw_value: ***'),
        ("cookie: sid=s3cr3t; other=s3cr3t", "cookie: ***"),
        ('secret="s3c\\"r3t"', "secret=***"),
        ('"token": "s3cr3t without an end', '"token": ***'),
    ],
)
def test_credential_inside_text(text: str, masked: str) -> None:
    assert mask(text) == masked
    assert "s3cr3t" not in mask(text)


@pytest.mark.parametrize(
    "text",
    [
        "consumed",
        "total_tokens=42 prompt_tokens: 7",
        '"total_tokens": 42',
        "not enough tokens left",
        "time_to_first_token=12",
        "default/toystore/task-force-rule-0",
        "7b1c2f4e-aaaa-4c1d-9b9e-0123456789ab",
        "the key of a descriptor",
        "",
    ],
)
def test_text_without_credentials_is_left_alone(text: str) -> None:
    assert mask(text) == text


@pytest.mark.parametrize("piece", ["secret ", "a.b-", "token:", "bearer ", 'secret"', "cookie=a;", "sk-", "eyJa."])
def test_masking_takes_linear_time(piece: str) -> None:
    text = piece * (20_000 // len(piece))
    began = time.process_time()
    mask(text)
    assert time.process_time() - began < 1.0


def test_mask_is_what_replaces() -> None:
    assert mask("Bearer abc") == f"Bearer {MASK}"
