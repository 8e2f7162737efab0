"""Names, addresses and files that lead nowhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from extproc.config.errors import ConfigError
from extproc.config.load import Loaded

Load = Callable[[Any], Loaded]
SERVICE = {"type": "ratelimit", "endpoint": "limitador"}


def problems(load: Load, data: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(data)
    return [str(problem) for problem in caught.value.problems]


def warnings(load: Load, data: Any) -> list[str]:
    return [str(warning) for warning in load(data).warnings]


def test_a_clean_configuration_has_no_warnings(load: Load, document: Any) -> None:
    assert warnings(load, document) == []


def test_an_action_names_a_service(load: Load, document: Any) -> None:
    """S0.D19"""
    document["actionSets"][0]["actions"][1]["service"] = "ratelimit-report-servce"
    assert problems(load, document) == [
        "actionSets[0].actions[1].service: no service is named `ratelimit-report-servce`, "
        "did you mean `ratelimit-report-service`? known: `ratelimit-check-service`, `ratelimit-report-service`"
    ]


def test_an_action_without_any_service(load: Load, document: Any) -> None:
    document["services"] = {}
    document["endpoints"] = {}
    assert problems(load, document)[0].endswith("no service is named `ratelimit-check-service`, known: none")


def test_an_action_of_the_embedded_authenticator_names_rules_that_are_there(load: Load, document: Any) -> None:
    document["services"]["who"] = SERVICE | {"type": "auth"}
    document["endpoints"]["limitador"] = "embedded"
    document["actionSets"][0]["actions"][0] |= {"service": "who", "scope": "mass"}
    document["authConfigs"] = {"maas": {"authentication": {"tokens": {"jwt": {}}}}}
    assert problems(load, document)[0] == (
        "actionSets[0].actions[0].scope: `mass` is not in `authConfigs`, did you mean `maas`? known: `maas`"
    )
    document["actionSets"][0]["actions"][0]["scope"] = "maas"
    assert load(document)


def test_an_ext_authz_server_knows_its_rules_itself(load: Load, document: Any) -> None:
    document["services"]["authorino"] = {"type": "auth", "endpoint": "authorino"}
    document["endpoints"]["authorino"] = "authorino:50051"
    document["actionSets"][0]["actions"][0]["service"] = "authorino"
    assert load(document)


def test_a_service_names_an_endpoint(load: Load, document: Any) -> None:
    document["endpoints"]["other"] = "other:8081"
    document["services"]["ratelimit-check-service"]["endpoint"] = "limitadr"
    assert problems(load, document) == [
        "services.ratelimit-check-service.endpoint: `limitadr` is not in `endpoints` "
        "(known: `embedded`, `limitador`, `other`); "
        'write `endpoints: {"limitadr": "host:port"}`, or `embedded` as its address'
    ]


@pytest.mark.parametrize("address", ["limitador:8081", "[::1]:8081", "unix:/run/x.sock", "embedded"])
def test_endpoint_addresses(load: Load, document: Any, address: str) -> None:
    document["endpoints"]["limitador"] = address
    assert load(document)


@pytest.mark.parametrize(
    ("section", "value", "message"),
    [
        ("endpoints", {"limitador": "host"}, "endpoints.limitador.address: `host`: the port is missing"),
        (
            "endpoints",
            {"limitador": {"address": "h:0"}},
            "endpoints.limitador.address: `h:0`: the port is not a number",
        ),
        ("endpoints", {"limitador": "http://h:1"}, "endpoints.limitador.address: `http://h:1`: write `host:port`"),
        ("endpoints", {"limitador": "Embedded"}, "endpoints.limitador.address: `Embedded`: the port is missing"),
        ("listeners", [":50051"], "listeners[0].address: `:50051`: the host is missing"),
        ("listeners", ["embedded"], "listeners[0].address: `embedded`: the port is missing"),
        ("listeners", ["a:1", "a:1"], "listeners[1].address: `a:1` is taken by listeners[0].address"),
        ("listeners", ["127.0.0.1:9090"], "admin.address: `127.0.0.1:9090` is taken by listeners[0].address"),
        ("admin", {"address": "unix:/x"}, "admin.address: write `host:port`"),
        ("admin", {"address": "x"}, "admin.address: `x`: the port is missing"),
    ],
)
def test_addresses(load: Load, document: Any, section: str, value: Any, message: str) -> None:
    (problem,) = problems(load, document | {section: value})
    assert problem.startswith(message)


def test_free_ports_may_be_taken_many_times(load: Load, document: Any) -> None:
    assert load(document | {"listeners": ["127.0.0.1:0", "127.0.0.1:0"], "admin": {"address": "127.0.0.1:0"}})


def test_user_information_in_an_address_is_not_repeated(load: Load, document: Any) -> None:
    for address in ("admin:hunter2@redis:6379", "redis://admin:hunter2@redis:6379"):
        (problem,) = problems(load, document | {"endpoints": {"limitador": address}})
        assert "user information" in problem
        assert "hunter2" not in problem


@pytest.mark.parametrize(
    ("hostname", "message"),
    [
        ("example.com:8080", "a hostname has no port"),
        ("::1", "a hostname has no port; an IPv6 address is written in brackets"),
        ("https://example.com", "a hostname has no scheme"),
        ("*.*.com", "`*` stands alone or in front of the first dot"),
        ("a.*.com", "`*` stands alone or in front of the first dot"),
        ("*example.com", "`*` stands alone or in front of the first dot"),
        ("*.", "not a hostname"),
        ("", "not a hostname"),
        ("a b", "not a hostname"),
        ("münchen.example", "write an international name in its `xn--` form"),
        ("[::x]", "a hostname has no port; an IPv6 address is written in brackets"),
    ],
)
def test_hostnames(load: Load, document: Any, hostname: str, message: str) -> None:
    document["actionSets"][0]["routeRuleConditions"]["hostnames"] = ["*.example.com", hostname]
    (problem,) = problems(load, document)
    assert problem.startswith("actionSets[0].routeRuleConditions.hostnames[1]: `")
    assert message in problem


@pytest.mark.parametrize("twin", ["a.example", "A.Example", "a.example."])
def test_hostnames_are_compared_in_one_case(load: Load, document: Any, twin: str) -> None:
    """S0.D20"""
    document["actionSets"][0]["routeRuleConditions"]["hostnames"] = ["a.example", "b.example", twin]
    assert problems(load, document) == [
        "actionSets[0].routeRuleConditions.hostnames[2]: `a.example` is given twice, also as hostnames[0]"
    ]


def test_action_sets_have_names_of_their_own_and_may_share_hostnames(load: Load, document: Any) -> None:
    document["actionSets"].append(document["actionSets"][0] | {"name": "other"})
    assert load(document)
    document["actionSets"][1]["name"] = "basic"
    assert problems(load, document) == ["actionSets[1].name: `basic` is the name of actionSets[0] too"]


@pytest.mark.parametrize("place", ["top", "action set"])
@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({"x y": "1"}, 'denyWith.headers["x y"]: not the name of an HTTP header'),
        ({"": "1"}, 'denyWith.headers[""]: not the name of an HTTP header'),
        ({":status": "1"}, 'denyWith.headers[":status"]: not the name of an HTTP header'),
        ({"x": "1\r\ny: 2"}, "denyWith.headers.x: a header's value holds no line breaks"),
        ({"x": "\0"}, "denyWith.headers.x: a header's value holds no line breaks"),
    ],
)
def test_headers_of_an_answer(load: Load, document: Any, place: str, headers: Any, message: str) -> None:
    target, prefix = (document, "") if place == "top" else (document["actionSets"][0], "actionSets[0].")
    target["denyWith"] = {"headers": headers}
    (problem,) = problems(load, document)
    assert problem.startswith(prefix + message)


def test_the_header_for_request_ids_is_a_header(load: Load, document: Any) -> None:
    assert load(document | {"observability": {"httpHeaderIdentifier": "x-request-id"}})
    assert problems(load, document | {"observability": {"httpHeaderIdentifier": "x:\r\n"}}) == [
        "observability.httpHeaderIdentifier: not the name of an HTTP header"
    ]


class TestTls:
    @pytest.fixture(autouse=True)
    def _files(self, tmp_path: Path) -> None:
        for name in ("ca.pem", "cert.pem", "key.pem"):
            (tmp_path / name).write_text(name)

    def test_files_become_absolute_and_are_watched(self, load: Load, document: Any, tmp_path: Path) -> None:
        document["endpoints"]["limitador"] = {"address": "h:1", "tls": {"ca": "ca.pem"}}
        document["listeners"] = [
            {"address": "h:2", "tls": {"cert": "cert.pem", "key": str(tmp_path / "key.pem"), "clientCa": "ca.pem"}}
        ]
        loaded = load(document)
        tls = loaded.config.listeners[0].tls
        assert tls is not None
        assert tls.cert == str(tmp_path / "cert.pem")
        assert set(loaded.files) == {tmp_path / "ca.pem", tmp_path / "cert.pem", tmp_path / "key.pem"}

    def test_files_that_are_missing(self, load: Load, document: Any, tmp_path: Path) -> None:
        document["listeners"] = [{"address": "h:2", "tls": {"cert": "absent", "key": "key.pem", "clientCa": "."}}]
        assert problems(load, document) == [
            f"listeners[0].tls.cert: `{tmp_path}/absent`: cannot be read: no such file or directory",
            f"listeners[0].tls.clientCa: `{tmp_path}`: cannot be read: is a directory",
        ]

    @pytest.mark.parametrize("tls", [{"cert": "cert.pem"}, {"key": "key.pem"}])
    def test_a_certificate_has_a_key(self, load: Load, document: Any, tls: Any) -> None:
        document["endpoints"]["limitador"] = {"address": "h:1", "tls": tls}
        assert problems(load, document) == ["endpoints.limitador.tls: `cert` and `key` belong together"]

    def test_the_embedded_limiter_has_none(self, load: Load, document: Any) -> None:
        document["endpoints"]["limitador"] = {"address": "embedded", "tls": {}}
        assert problems(load, document) == [
            "endpoints.limitador.tls: the embedded limiter is not called over a network: remove `tls`"
        ]


def test_an_embedded_limiter_without_limits_is_a_warning(load: Load, document: Any) -> None:
    document["limits"] = []
    assert warnings(load, document) == [
        "endpoints.limitador: the embedded limiter has no `limits`, so it allows everything"
    ]


@pytest.mark.parametrize("endpoints", [{"limitador": "h:1"}, {"limitador": "h:1", "unused": "embedded"}])
def test_limits_may_wait_for_the_embedded_limiter(load: Load, document: Any, endpoints: Any) -> None:
    """So that one word is all there is to change; `extproc check` says that they are not used."""
    assert warnings(load, document | {"endpoints": endpoints}) == []


def test_a_source_without_a_key_lets_nobody_in(load: Load, document: Any, tmp_path: Path) -> None:
    """A file that was emptied by mistake is told, and not only by its 401s."""
    (tmp_path / "keys.yaml").write_text("keys: []")
    document["services"]["who"] = {"type": "auth", "endpoint": "embedded"}
    document["actionSets"][0]["actions"].insert(0, {"service": "who", "scope": "maas"})
    source = {"apiKeys": {"files": [str(tmp_path / "keys.yaml")]}}
    document["authConfigs"] = {"maas": {"authentication": {"users": source}}}
    assert warnings(load, document) == [
        "authConfigs.maas.authentication.users.apiKeys: no key is there: nobody is let in by it"
    ]


def test_a_message_is_as_large_as_grpc_can_count(load: Load, document: Any) -> None:
    document["bodies"] = {"message": 2**31}
    assert problems(load, document)[0].startswith("bodies.message: expected an integer below 2147483648")
