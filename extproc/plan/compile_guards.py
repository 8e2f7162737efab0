"""Guards of a configuration, bound to hosts and with what they report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from extproc.config.guards import Guard as GuardConfig
from extproc.config.guards import GuardReport
from extproc.expressions import Expression
from extproc.guards.guard import Guard
from extproc.plan.action import Phase, Service
from extproc.plan.guarding import GuardMeter, Guards, PlannedGuard
from extproc.plan.hosts import HostTable
from extproc.plan.labels import Labels
from extproc.plan.needs import phase_of, scope_of
from extproc.plan.sources import Sources


def compile_guards(
    configs: Mapping[str, GuardConfig], guards: Sequence[Guard], services: Mapping[str, Service], sources: Sources
) -> Guards:
    """`guards` are those of `configs`. Problems go to `sources`."""
    return Guards([_planned(configs[guard.name], guard, services, sources) for guard in guards])


def _planned(config: GuardConfig, guard: Guard, services: Mapping[str, Service], sources: Sources) -> PlannedGuard:
    hosts = HostTable(dict.fromkeys(config.hosts, True)) if config.hosts else None
    report = None if config.model is None else config.model.report
    meter = None if report is None else _meter(guard.name, report, services, sources)
    return PlannedGuard(guard, hosts, config.deny_with, meter)


def _meter(name: str, report: GuardReport, services: Mapping[str, Service], sources: Sources) -> GuardMeter | None:
    labels: dict[str, list[Expression]] = {}
    for key, source in report.labels.items():
        path = f"guards.{name}.model.report.labels.{key}"
        found = sources.value(source, path)
        if found is None:
            continue
        if phase_of(found) is not Phase.REQUEST_HEADERS:
            sources.problem(path, "a label is known before any body is")
        labels[key] = [found]
    service = services.get(report.service)
    if service is None:
        return None
    return GuardMeter(service, report.scope, Labels(labels, lambda expression: scope_of([expression])))
