"""`extproc check` says what a configuration will do, in words that are there, and never a secret."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from extproc.cli import main

SECRETS = {"OPENAI_KEY": "s3cret-openai", "GUARD_KEY": "s3cret-guard"}
ONE = {"name": "gpt", "credential": "none"}
TWO = [
    {
        "name": "gpt",
        "model": "gpt-4o",
        "models": {"gpt-4o": None, "fast": "gpt-4o-mini"},
        "credential": {"env": "OPENAI_KEY"},
        "address": "https://api.openai.com",
        "default": True,
    },
    {
        "name": "claude",
        "models": ["claude-*"],
        "credential": "client",
        "cluster": "anthropic",
        "headers": {"anthropic-version": "s3cret-header"},
        "dialect": "anthropic",
    },
    {"name": "nokey"},
]
SERVICES = {
    "left": {"type": "ratelimit-check", "endpoint": "embedded"},
    "used": {"type": "ratelimit-report", "endpoint": "embedded"},
    "both": {"type": "ratelimit", "endpoint": "limits"},
    "far": {"type": "ratelimit-check", "endpoint": "limits"},
}
ENDPOINTS = {"limits": "limits.internal:8081"}
MODEL = {"host": "guard.example", "credential": {"env": "GUARD_KEY"}, "timeout": "2500ms", "onTimeout": "allow"}


def action_set(*services: str, **fields: Any) -> dict[str, Any]:
    actions = [{"service": service, "scope": "s"} for service in services]
    return {"name": "chat", "routeRuleConditions": {"hostnames": ["*"]}, "actions": actions, **fields}


CHARGED = {"services": SERVICES, "endpoints": ENDPOINTS, "actionSets": [action_set("left", "used")]}


@pytest.fixture
def explained(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Gives the page for a configuration, on one line."""
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)

    def explain(config: dict[str, Any]) -> str:
        path = tmp_path / "extproc.json"
        path.write_text(json.dumps(config))
        assert main(["check", str(path)]) == 0
        return " ".join(capsys.readouterr().out.split())

    return explain


class TestProviders:
    @pytest.mark.parametrize(
        ("fields", "sentence"),
        [
            ({}, "Providers, for requests to *: the first of these that says one"),
            ({}, "names in `x-arch-llm-provider-hint`, or `default`; an unknown one is refused (400)"),
            ({"routing": {"unknownHint": "default"}}, "an unknown one is as none"),
            ({}, "requests to /v1/chat/completions: gpt-4o, fast to gpt; claude-* to claude"),
            ({}, "otherwise: gpt"),
            (
                {},
                "gpt: at https://api.openai.com, with the credential of the variable OPENAI_KEY in `authorization`; "
                "fast becomes gpt-4o-mini; other models become gpt-4o",
            ),
            (
                {},
                "claude: by the name anthropic, wherever the gateway's route leads, with the client's own credential; "
                "models as they are asked for; anthropic-version set; answers are read as anthropic's",
            ),
            ({}, "nokey: refuses everything (400): it has no credential"),
            ({}, "the model is set, /metadata and /messages/*/model taken out; every other byte stays"),
            ({"routing": {"remove": []}}, "the model is set; every other byte stays"),
            (
                {"routing": {"rules": [{"when": "request.host == 'a'", "provider": "claude"}]}},
                "rule: claude where request.host == 'a' hint:",
            ),
            ({}, "A request that no action set matches has its provider all the same."),
            ({"onNoMatch": "deny"}, "A request that no action set matches is answered 404."),
            ({"actionSets": [action_set(routed=False)]}, "Not for requests of the action sets chat."),
        ],
    )
    def test_who_gets_what_and_what_is_changed(self, explained: Any, fields: dict[str, Any], sentence: str) -> None:
        assert sentence in explained({"providers": TWO, **fields})

    def test_one_alone_is_the_default(self, explained: Any) -> None:
        """S2.D21"""
        assert "otherwise: gpt gpt: wherever" in explained({"providers": [ONE]})

    def test_without_a_default_nobody_gets_the_rest(self, explained: Any) -> None:
        providers = [{**ONE, "models": ["a"]}, {**ONE, "name": "b"}]
        assert "otherwise: nobody: 400" in explained({"providers": providers})

    @pytest.mark.parametrize("source", ["file", "secret"])
    def test_credentials_of_files_are_named_by_their_place(self, explained: Any, tmp_path: Path, source: str) -> None:
        (tmp_path / "key").write_text("s3cret-file")
        secret = {"kind": "Secret", "metadata": {"name": "llm"}, "stringData": {"api_key": "s3cret-data"}}
        (tmp_path / "secret.json").write_text(json.dumps(secret))
        credential, words = {
            "file": ({"file": "key", "header": "x-api-key"}, f"the file {tmp_path}/key in `x-api-key`"),
            "secret": ({"secret": {"file": "secret.json", "name": "llm"}}, "`api_key` of the Secret default/llm in"),
        }[source]
        page = explained({"providers": [{**ONE, "credential": credential}]})
        assert words in page
        assert "s3cret" not in page


class TestPromptLimits:
    LIMITS = ({"model": "gpt-4", "selector": "x-team", "tokens": 50}, {"model": "gpt-4", "tokens": 1, "per": "day"})

    @pytest.mark.parametrize(
        ("fields", "sentence"),
        [
            ({}, "estimated tokens, asked of the embedded limiter gpt-4, each value of x-team: 50 tokens a minute"),
            ({}, "gpt-4, all requests together: 1 token a day Other models are not limited."),
            (
                {
                    "limits": [
                        *LIMITS,
                        {"model": "GPT-4", "selector": {"header": "x-team", "value": "red"}, "tokens": 9},
                    ]
                },
                "gpt-4, each other value of x-team than red: 50 tokens a minute",
            ),
            (
                {"limits": [{"model": "a", "selector": {"header": "authorization", "value": "s3cret"}, "tokens": 9}]},
                "a, authorization: sha256:1ec1c26b50d5d3c5: 9 tokens a minute",
            ),
            ({}, "Buckets that fill steadily (gcra)"),
            ({"algorithm": "fixed"}, "Windows from their first request on (fixed)."),
            ({"service": "both"}, "asked of `both`"),
            ({"service": "both"}, "How they are counted is that service's own business"),
            ({}, "A request without the header shares one count"),
            ({"onMissingSelector": "deny"}, "A request without the header is refused (403)."),
            ({"trustSelectorHeader": True}, "Clients say in `x-arch-ratelimit-selector`"),
            ({"legacyErrorBody": True}, "Plano's text, which shows the selector's value"),
            ({}, "Limits of the embedded limiter: gpt-4 x-team 50/minute: 50 in 60 s (gcra)"),
        ],
    )
    def test_what_is_limited_and_how(self, explained: Any, fields: dict[str, Any], sentence: str) -> None:
        limits = {"limits": self.LIMITS, **fields}
        config = {"providers": [ONE], "services": SERVICES, "endpoints": ENDPOINTS, "promptLimits": limits}
        assert sentence in explained(config)


class TestPrecharge:
    @pytest.mark.parametrize(
        ("fields", "sentence"),
        [
            ({"precharge": "prompt"}, "charges the estimated prompt at once; the report charges the rest of a call"),
            ({"precharge": "prompt"}, "that stays; of a request that is refused later it is given back"),
            ({"precharge": {"onFailure": "refund"}}, "of a call that fails, or takes less, that is given back"),
            (
                {"precharge": "prompt", "actionSets": [action_set("far", "used")]},
                "that stays; of a request that is refused later it stays too",
            ),
        ],
    )
    def test_what_is_charged_when(self, explained: Any, fields: dict[str, Any], sentence: str) -> None:
        assert sentence in explained({**CHARGED, **fields})

    def test_nothing_is_said_of_what_is_not_done(self, explained: Any) -> None:
        assert "at once" not in explained(CHARGED)


class TestGuards:
    @pytest.mark.parametrize(
        ("guard", "sentence"),
        [
            ({"deny": ["a", "b"]}, "Guard `g`: requests to * It looks at what is said by user; a body that it cannot"),
            ({"deny": ["a"]}, "a body that it cannot read is refused. Refused is what matches any of 1 pattern."),
            ({"allow": ["a", "b"], "onUnparsable": "allow"}, "is let pass. Refused is what matches none of 2 patterns"),
            ({"checkRoles": ["user", "tool"], "checkLastUserMessageOnly": True}, "by user and tool, of `user` only"),
            ({"checkRoles": ["*"]}, "said by everybody"),
            ({"mode": "shadow", "deny": ["a"]}, "Only logged and counted (shadow): everything passes."),
            ({}, "It refuses nothing of what it can read"),
            ({"model": MODEL}, "qwen-turbo is asked, at https://guard.example:443/compatible-mode/v1/chat/completions"),
            ({"model": MODEL}, "with the credential of the variable GUARD_KEY in `authorization`, within 2500ms"),
            (
                {"model": MODEL},
                "no answer in time lets it pass, no connection or another status than 200 refuses the request",
            ),
            ({"model": {**MODEL, "cache": {"entries": 0}}}, "no verdict is remembered"),
            (
                {"model": {**MODEL, "report": {"service": "used", "scope": "guards", "labels": {"h": "request.host"}}}},
                "its tokens are charged in `guards` through `used`: guard = g, h = `request.host`",
            ),
            ({"webhook": {"url": "https://hook.example/a?key=s3cret"}}, "Then https://hook.example/... is asked"),
            ({"deny": ["a"]}, "A refused request gets 403, worded as `denyWith` where that is JSON, else as `asm`."),
            ({"denyWith": {"profile": "openai", "status": 400}}, "gets 400, as `openai` words it."),
            ({"denyWith": {"body": "no"}}, "gets 403, 'no'."),
            ({"deny": ["a"], "answers": {}}, "Answers too: what matches any of 1 pattern is not shown."),
            ({"answers": {"deny": ["a", "b"], "maxBody": 9}}, "any of 2 patterns is not shown. JSON and text are held"),
            ({"answers": {"maxBody": 9, "lookBehind": 7}}, "up to 9 bytes, and refused as a whole"),
            ({"answers": {"lookBehind": 7}}, "begin up to 7 characters back one that it cannot read is refused"),
            ({"answers": {"onUnparsable": "allow"}}, "one that it cannot read is let pass"),
        ],
    )
    def test_what_they_look_at_and_what_follows(self, explained: Any, guard: dict[str, Any], sentence: str) -> None:
        page = explained({"services": SERVICES, "endpoints": ENDPOINTS, "guards": {"g": {"hosts": ["*"], **guard}}})
        assert sentence in page
        assert "s3cret" not in page
        assert "every request passes" not in page

    def test_action_sets_name_theirs(self, explained: Any) -> None:
        page = explained({"guards": {"g": {"deny": ["a"]}}, "actionSets": [action_set(guards=["g"])]})
        assert "Guard `g`: those of the action set chat" in page
        assert "It is guarded by g, besides guards of its hosts." in page

    def test_one_that_is_bound_to_nothing_is_found_out(self, explained: Any) -> None:
        page = explained({"guards": {"g": {"deny": ["a"]}}, "actionSets": []})
        assert "Guard `g`: of no host and no action set, so it is never asked" in page


class TestGateway:
    def test_a_guard_needs_more_time_than_envoy_gives_by_itself(self, explained: Any) -> None:
        """G2"""
        page = explained({"guards": {"g": {"hosts": ["*"], "deny": ["a"], "model": MODEL}}})
        assert (
            "Envoy's `message_timeout` has to be 6s at least: guards.g.deny 2s, guards.g.model.timeout 2500ms, "
            "report.wait 100ms"
        ) in page
        assert "`extproc envoy-config` prints" in page

    def test_without_them_the_usual_second_does(self, explained: Any) -> None:
        page = explained(CHARGED)
        assert "Envoy's `message_timeout` has to be 1s at least" in page
        assert "envoy-config" not in page


def test_no_secret_is_on_the_page(explained: Any) -> None:
    """S2.D17"""
    guards = {"g": {"hosts": ["*"], "model": MODEL}}
    page = explained({"providers": TWO, "guards": guards})
    assert not [secret for secret in (*SECRETS.values(), "s3cret") if secret in page]
