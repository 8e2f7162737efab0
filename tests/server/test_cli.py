"""The command line: what each command prints and how it ends."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from support.harness import LIMITS, S0, configured
from support.pki import Pki
from support.processes import run, write

from extproc import __version__
from extproc.cli import main

REFUSAL = "extproc: failed to parse plugin config: "
COMMANDS = ["serve", "check", "schema", "limiter"]
LOCAL = {"listeners": ["127.0.0.1:0"], "admin": {"address": "127.0.0.1:0"}}


def unwarned() -> dict[str, Any]:
    """A configuration without anything to warn of."""
    text = json.dumps(configured(S0, **LIMITS, **LOCAL)).replace("request.path", "request.url_path")
    config: dict[str, Any] = json.loads(text)
    return config


@pytest.fixture
def taken() -> Iterator[str]:
    """An address that somebody listens on."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield f"127.0.0.1:{other.getsockname()[1]}"


# --- help


def test_help_names_every_command(capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    for command in [*COMMANDS, "demo", "simulator"]:
        assert command in shown


@pytest.mark.parametrize("command", [*COMMANDS, "demo", "simulator"])
def test_help_of_a_command(capsys, command: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert f"extproc {command}" in capsys.readouterr().out


def test_version(capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"extproc {__version__}\n"


@pytest.mark.parametrize(
    "words", [[], ["serv"], ["serve"], ["check", "a", "b"], ["limiter", "l.yaml", "--log-level", "loud"]]
)
def test_wrong_usage_is_status_2(capsys, words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert "usage: extproc" in capsys.readouterr().err


async def test_it_runs_as_a_module() -> None:
    status, out, err = await run("--version")
    assert (status, out, err) == (0, f"extproc {__version__}\n", "")


# --- schema


def test_schema_accepts_what_the_server_accepts(capsys) -> None:
    assert main(["schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    jsonschema.validate(unwarned(), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**unwarned(), "listenrs": []}, schema)


# --- check


def test_check_says_what_a_configuration_does(capsys, tmp_path: Path) -> None:
    assert main(["check", str(write(tmp_path / "c.json", unwarned()))]) == 0
    shown = capsys.readouterr()
    for words in ("*.example.com", "CheckRateLimit", "Report", "name_a: 100 in 60 s in `domain-a`", "429"):
        assert words in shown.out
    assert shown.err == ""


def test_warnings_fail_only_when_asked_to(capsys, tmp_path: Path) -> None:
    """S0.D9: `request.path ==` can be bypassed."""
    path = str(write(tmp_path / "c.json", configured(S0, **LIMITS)))
    assert main(["check", path]) == 0
    warned = capsys.readouterr().err
    assert warned.startswith("warning: actionSets[0].actions[0].conditionalData[0].predicates: ")
    assert "use `request.url_path`" in warned
    assert main(["check", path, "--strict"]) == 1


def test_check_of_a_good_configuration_passes_strictly(tmp_path: Path) -> None:
    assert main(["check", "--strict", str(write(tmp_path / "c.json", unwarned()))]) == 0


def test_check_connects_to_nobody(tmp_path: Path) -> None:
    with socket.socket() as limiter:
        limiter.bind(("127.0.0.1", 0))
        limiter.listen()
        limiter.setblocking(False)
        config = {**unwarned(), "endpoints": {"limitador": f"127.0.0.1:{limiter.getsockname()[1]}"}, "limits": []}
        assert main(["check", str(write(tmp_path / "c.json", config))]) == 0
        with pytest.raises(BlockingIOError):
            limiter.accept()


# --- what is refused, by `check` and by `serve` alike


def changed(path: str, value: Any) -> dict[str, Any]:
    """The configuration with one field set; `path` is dotted, numbers are indices."""
    config = deepcopy(unwarned())
    *way, last = [int(step) if step.isdecimal() else step for step in path.split(".")]
    place: Any = config
    for step in way:
        place = place[step]
    place[last] = value
    return config


ACTION = "actionSets.0.actions.0"
REFUSED = {
    "service type": (
        ("services.ratelimit-check-service.type", "xyz"),
        "services.ratelimit-check-service.type: unknown variant `xyz`, "
        "expected one of `auth`, `ratelimit`, `ratelimit-check`, `ratelimit-report`",
    ),
    "service name": (
        (f"{ACTION}.service", "ratelimit-chek-service"),
        "actionSets[0].actions[0].service: no service is named `ratelimit-chek-service`, did you mean",
    ),
    "expression": (
        (f"{ACTION}.conditionalData.0.predicates", ["request.url_path =="]),
        "actionSets[0].actions[0].conditionalData[0].predicates[0]: ",
    ),
    "duration": (
        ("services.ratelimit-check-service.timeout", "20 parsecs"),
        "services.ratelimit-check-service.timeout: expected a duration",
    ),
    "unknown field": (("reports", {}), "reports: unknown field, did you mean `report`"),
    "listener": (("listeners", ["127.0.0.1"]), "listeners[0].address: `127.0.0.1`: the port is missing"),
    "limits file": (("limits", "nowhere.yaml"), "limits: nowhere.yaml: cannot be read: no such file or directory"),
    "limit": (("limits.0.conditions", ["descriptors[0]["]), "limits[0]"),
}


@pytest.mark.parametrize("command", ["check", "serve"])
@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED)
def test_a_wrong_configuration(capsys, tmp_path: Path, command: str, change: tuple[str, Any], message: str) -> None:
    """S1.22, S0.D19: status 2, and the field that is wrong."""
    assert main([command, str(write(tmp_path / "c.json", changed(*change)))]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(REFUSAL + message)


@pytest.mark.parametrize("command", ["check", "serve"])
def test_no_such_file(capsys, tmp_path: Path, command: str) -> None:
    assert main([command, str(tmp_path / "no.yaml")]) == 2
    error = capsys.readouterr().err
    assert (
        error
        == f"extproc: failed to parse plugin config: {tmp_path}/no.yaml: cannot be read: no such file or directory\n"
    )


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    made = Pki(tmp_path_factory.mktemp("pki"))
    made.sign("server")
    return made


@pytest.mark.parametrize("command", ["check", "serve"])
async def test_tls_files_that_do_not_fit(pki: Pki, tmp_path: Path, command: str) -> None:
    """What `check` accepts, `serve` accepts: both look into the files."""
    tls = {"cert": pki / "ca.crt", "key": pki / "server.key"}
    mismatch = write(tmp_path / "c.json", {**unwarned(), "listeners": [{"address": "127.0.0.1:0", "tls": tls}]})
    status, _, error = await run(command, mismatch)
    assert (status, error) == (
        2,
        f"extproc: listeners[0].tls.cert, tls.key: cannot use `{tls['cert']}`, `{tls['key']}`: key values mismatch\n",
    )


@pytest.mark.parametrize("command", ["check", "serve"])
async def test_a_limiters_authority_that_is_none(pki: Pki, tmp_path: Path, command: str) -> None:
    endpoint = {"address": "127.0.0.1:1", "tls": {"ca": pki / "server.key"}}
    config = {**unwarned(), "endpoints": {"limitador": endpoint}, "limits": []}
    status, _, error = await run(command, write(tmp_path / "c.json", config))
    assert status == 2
    assert error.startswith(REFUSAL + "endpoints.limitador: tls.ca: cannot load ")
    assert error.count("\n") == 1


async def test_addresses_that_are_taken(tmp_path: Path, taken: str) -> None:
    """One sentence with the field, no traceback, no line of gRPC's own."""
    config = write(tmp_path / "c.json", {**unwarned(), "listeners": ["127.0.0.1:0", taken]})
    assert await run("serve", config) == (
        2,
        "",
        f"extproc: listeners[1].address: cannot listen on `{taken}`: address already in use\n",
    )
    config = write(tmp_path / "c.json", {**unwarned(), "admin": {"address": taken}})
    status, _, error = await run("serve", config)
    assert (status, error) == (2, f"extproc: admin.address: cannot listen on {taken}: Address already in use\n")


# --- limiter


def test_limits_that_are_wrong(capsys, tmp_path: Path) -> None:
    path = write(tmp_path / "limits.json", [{"namespace": "d", "seconds": 60}])
    assert main(["limiter", str(path)]) == 2
    assert capsys.readouterr().err.startswith(f"extproc: failed to parse limits file: {path}: [0].max_value: missing")


@pytest.mark.parametrize(
    ("listen", "message"),
    [("8081", "--listen: `8081`: the port is missing"), ("127.0.0.1:99999", "--listen: `127.0.0.1:99999`: the port")],
)
async def test_where_a_limiter_cannot_listen(tmp_path: Path, listen: str, message: str) -> None:
    status, _, error = await run("limiter", write(tmp_path / "limits.json", []), "--listen", listen)
    assert status == 2
    assert error.startswith(f"extproc: {message}")


async def test_a_limiters_port_that_is_taken(tmp_path: Path, taken: str) -> None:
    assert await run("limiter", write(tmp_path / "limits.json", []), "--listen", taken) == (
        2,
        "",
        f"extproc: --listen: cannot listen on `{taken}`: address already in use\n",
    )
