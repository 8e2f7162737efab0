"""Loads envoy-data-plane, whose modules use a deprecated feature of pydantic, before warnings are errors."""

from __future__ import annotations

import warnings
from importlib import import_module

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    for package in (
        "config.core",
        "extensions.common.ratelimit",
        "extensions.filters.http.ext_proc",
        "service.auth",
        "service.ext_proc",
        "service.ratelimit",
        "type",
    ):
        import_module(f"envoy_data_plane.envoy.{package}.v3")
