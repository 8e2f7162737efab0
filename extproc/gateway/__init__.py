"""A real Envoy with our filter in it: for the demo, the tests and the benchmark."""

from extproc.gateway.binary import find_envoy
from extproc.gateway.bootstrap import HEALTH_PATH, bootstrap, ext_proc_filter, extproc_cluster
from extproc.gateway.errors import EnvoyFailed, EnvoyNotFound, GatewayError, PortInUse
from extproc.gateway.filters import jwt_authn_filter, rbac_filter
from extproc.gateway.ports import ensure_free, free_port
from extproc.gateway.process import EnvoyProcess

__all__ = [
    "HEALTH_PATH",
    "EnvoyFailed",
    "EnvoyNotFound",
    "EnvoyProcess",
    "GatewayError",
    "PortInUse",
    "bootstrap",
    "ensure_free",
    "ext_proc_filter",
    "extproc_cluster",
    "find_envoy",
    "free_port",
    "jwt_authn_filter",
    "rbac_filter",
]
