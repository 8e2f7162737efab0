"""The configuration that Envoy is given."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from extproc.gateway import bootstrap, ext_proc_filter, find_envoy

pytestmark = pytest.mark.e2e

DEAD = "127.0.0.1:1"
RBAC: dict[str, Any] = {
    "name": "rbac",
    "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC",
        "rules": {
            "action": "DENY",
            "policies": {"all": {"permissions": [{"any": True}], "principals": [{"any": True}]}},
        },
    },
}


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"extproc": None}, id="without us"),
        pytest.param({"extproc": DEAD}, id="one worker"),
        pytest.param({"extproc": "localhost:50051", "upstream": "model.internal:80"}, id="names"),
        pytest.param({"extproc": [DEAD, "127.0.0.1:2"]}, id="several workers"),
        pytest.param({"extproc": ["unix:/run/a.sock", "unix:/run/b.sock"]}, id="sockets"),
        pytest.param({"extproc": "[::1]:50051", "listen": "[::1]:0"}, id="IPv6"),
        pytest.param({"extproc": DEAD, "access_log": Path("/dev/null")}, id="access log"),
        pytest.param({"extproc": DEAD, "filters_before": [RBAC]}, id="another filter"),
        pytest.param({"extproc": DEAD, "processing_mode": {"response_body_mode": "STREAMED"}}, id="modes"),
        pytest.param({"extproc": DEAD, "message_timeout": "0.2s", "failure_mode_allow": True}, id="fail open"),
    ],
)
def test_envoy_accepts_every_variant(options: dict[str, Any], tmp_path: Path) -> None:
    config = tmp_path / "envoy.json"
    config.write_text(json.dumps(bootstrap(**{"upstream": DEAD, **options})))
    command = [find_envoy(), "--mode", "validate", "--log-level", "error", "--config-path", config]
    checked = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize("option", ["upstream", "extproc", "listen", "admin"])
@pytest.mark.parametrize("address", ["", "model", "model:", ":80", "model:http", "model:65536", "http://model:80"])
def test_an_address_that_cannot_be_read_is_refused_by_its_name(option: str, address: str) -> None:
    with pytest.raises(ValueError, match=f"^{option}: "):
        bootstrap(**{"upstream": DEAD, "extproc": None, option: address})


def test_the_filter_asks_for_headers_only() -> None:
    """G8: bodies are switched on request by request."""
    settings = ext_proc_filter()["typed_config"]
    sent = {field: mode for field, mode in settings["processing_mode"].items() if mode not in ("NONE", "SKIP")}
    assert sent == {"request_header_mode": "SEND", "response_header_mode": "SEND"}
    assert settings["allow_mode_override"] is True
