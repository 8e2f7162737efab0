"""The Grafana dashboard and the Prometheus rules ask for what /metrics has, and say it in PromQL that Prometheus reads.

`promtool` has the last word where it is installed; what can be checked without it always is.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast, get_args

import pytest
import yaml
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from extproc.telemetry import metrics as metrics_module
from extproc.telemetry.metrics import Metrics
from extproc.telemetry.nearness import LimitWatch, Near
from extproc.telemetry.spending import Rejection, Spending
from extproc.usage.usage import Ending, Source, Usage

DEPLOY = Path(__file__).parents[2] / "deploy"
DASHBOARD = DEPLOY / "grafana-dashboard.json"
RULES = DEPLOY / "prometheus-rules.yaml"
FUNCTIONS = frozenset(
    "sum max min topk rate increase changes histogram_quantile by on and group_left label_values".split()
)
PROMETHEUS = frozenset({"job", "instance"})
"""Labels that Prometheus adds to every series."""

Exported = Mapping[str, Mapping[str, frozenset[str]]]
"""Names of samples -> names of labels -> their values."""


def busy_metrics() -> Metrics:
    """Metrics in which everything has happened once."""
    spending = Spending(("user", "group"), 10)
    spending.allowed(("ann", "free"), "ns")
    spending.refused(("ann", "free"), "ns", "minute")
    usage = Usage(1, 2, 3, model="m", cost=4)
    spending.used(("ann", "free"), "ns", usage, 3)
    for rejection in get_args(Rejection):
        spending.rejected(rejection)
    tally: Any = SimpleNamespace(authorized_calls={"ns": 1}, limited_calls={("ns", "minute"): 1}, authorized_hits={})
    limits = cast(LimitWatch, SimpleNamespace(last=Near((), {("ns", "minute"): 1.0})))
    metrics = Metrics(spending=spending, tally=tally, limits=limits)
    for source in get_args(Source):
        for ending in get_args(Ending):
            metrics.used(usage._replace(source=source, ending=ending), "openai", 1.0, 0.5)
    for method in get_args(metrics_module.Method):
        for result in get_args(metrics_module.CallResult):
            metrics.limiter_call("limitador", method, result, 0.01)
    metrics.action_failed("set")
    return metrics


@pytest.fixture(scope="module")
def exported() -> Exported:
    text = busy_metrics().render("application/openmetrics-text")[0].decode()
    found: dict[str, dict[str, set[str]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = found.setdefault(sample.name, {})
            for name, value in sample.labels.items():
                labels.setdefault(name, set()).add(value)
    return {name: {label: frozenset(values) for label, values in labels.items()} for name, labels in found.items()}


def dashboard() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return loaded


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def alerts() -> dict[str, dict[str, Any]]:
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


RECORDS = {rule["record"]: rule["expr"] for rule in rules() if "record" in rule}


def queries() -> Iterator[tuple[str, str]]:
    """Where a query stands, and the query without Grafana's variables."""
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", ()):
            yield f"panel {panel['title']}", plain(target["expr"])
    for variable in dashboard()["templating"]["list"]:
        if variable["type"] == "query":
            yield f"variable {variable['name']}", variable["definition"]
    for annotation in dashboard()["annotations"]["list"]:
        yield f"annotation {annotation['name']}", plain(annotation["expr"])
    for rule in rules():
        yield f"rule {rule.get('alert') or rule['record']}", rule["expr"]


def plain(query: str) -> str:
    query = query.replace("$__rate_interval", "5m").replace("$__range", "1h")
    return re.sub(r'"\$\w+"', '".*"', query)


QUERIES = [pytest.param(query, id=where) for where, query in queries()]


def selectors(query: str) -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    """Every metric that a query names, with what it asks of its labels: name, operator and value."""
    asked: list[list[tuple[str, str, str]]] = []

    def taken(found: re.Match[str]) -> str:
        asked.append(re.findall(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"', found[0]))
        return f"\x00{len(asked) - 1}\x00"

    rest = re.sub(r"\{[^}]*\}", taken, query)
    rest = re.sub(r"\b(?:by|on|group_left)\s*\([^)]*\)", " ", rest)
    rest = re.sub(r"label_values\((\w+), \w+\)", r"\1", rest)
    rest = re.sub(r"\[\w+\]", " ", rest)
    for name, number in re.findall(r"([a-zA-Z_:][\w:]*)(?:\x00(\d+)\x00)?", rest):
        if name not in FUNCTIONS and not re.fullmatch(r"e\d+", name):
            yield name, asked[int(number)] if number else []


class TestQueries:
    @pytest.mark.parametrize("query", QUERIES)
    def test_every_metric_and_label_is_there(self, query: str, exported: Exported) -> None:
        """A renamed metric must not leave an empty panel, or an alert that never fires."""
        found = list(selectors(query))
        assert found
        for name, asked in found:
            if name in RECORDS or name == "up":
                continue
            assert name in exported, name
            for label, operator, value in asked:
                if label in PROMETHEUS:
                    continue
                assert label in exported[name], f"{name} has no label {label}"
                if label in {"namespace", "group", "limit", "user"}:
                    continue
                matching = [each for each in exported[name][label] if re.fullmatch(value, each)]
                assert matching, f"{label}{operator}{value} of {name}"
                if "|" in value and operator == "=~":
                    assert set(value.split("|")) <= exported[name][label]

    @pytest.mark.parametrize("query", QUERIES)
    def test_labels_to_sum_by_are_there(self, query: str, exported: Exported) -> None:
        known = {label for labels in exported.values() for label in labels} | PROMETHEUS
        for grouping in re.findall(r"\b(?:by|on|group_left)\s*\(([^)]*)\)", query):
            assert {label.strip() for label in grouping.split(",") if label.strip()} <= known

    @pytest.mark.parametrize("query", QUERIES)
    def test_brackets_and_ranges(self, query: str) -> None:
        closing = {")": "(", "]": "[", "}": "{"}
        opened: list[str] = []
        for character in re.sub(r'"[^"]*"', "", query):
            if character in "([{":
                opened.append(character)
            elif character in closing:
                assert opened
                assert opened.pop() == closing[character]
        assert opened == []
        for function, inner in re.findall(r"\b(rate|increase|changes)\(([^()]*)\)", query):
            assert re.search(r"\[\d+[smhd]\]$", inner), f"{function} needs a range: {inner}"

    def test_a_typing_error_would_be_found(self, exported: Exported) -> None:
        assert list(selectors('sum by (a) (rate(x_total{b=~"c|d"}[5m])) / 1e6 > y')) == [
            ("x_total", [("b", "=~", "c|d")]),
            ("y", []),
        ]
        assert "extproc_reports_total" in exported
        assert exported["extproc_reports_total"]["result"] == {"sent", "failed", "dropped"}


class TestDashboard:
    def test_any_grafana_can_import_it(self) -> None:
        assert dashboard()["schemaVersion"] >= 39
        assert "id" not in dashboard()
        (source, *_) = dashboard()["templating"]["list"]
        assert (source["name"], source["type"], source["query"]) == ("DS_PROMETHEUS", "datasource", "prometheus")
        sources = re.findall(r'"uid": "([^"]*)"', DASHBOARD.read_text())
        assert set(sources) == {"${DS_PROMETHEUS}", dashboard()["uid"]}

    def test_panels_do_not_overlap(self) -> None:
        taken: set[tuple[int, int]] = set()
        for panel in dashboard()["panels"]:
            place = panel["gridPos"]
            cells = {
                (place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])
            }  # fmt: skip
            assert not cells & taken, panel["title"]
            assert max(x for x, _ in cells) < 24
            taken |= cells
        numbers = [panel["id"] for panel in dashboard()["panels"]]
        assert len(set(numbers)) == len(numbers)


class TestAlerts:
    @pytest.mark.parametrize("name", alerts())
    def test_each_says_what_it_means_and_waits_for_it(self, name: str) -> None:
        alert = alerts()[name]
        assert alert["for"]
        assert alert["labels"]["severity"] in {"page", "ticket"}
        assert 15 < len(alert["annotations"]["summary"]) < 120
        assert len(alert["annotations"]["description"]) > 60

    @pytest.mark.parametrize("rule", RECORDS)
    def test_records_are_of_use(self, rule: str) -> None:
        """By level, metric and operation, as Prometheus recommends."""
        assert re.fullmatch(r"[a-z_]+:extproc_[a-z_]+:[a-z0-9_]+", rule)

    def test_they_name_alerts_once(self) -> None:
        names = [rule["alert"] for rule in rules() if "alert" in rule]
        assert len(names) == len(set(names)) >= 9


promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")


def run_promtool(*arguments: object) -> None:
    done = subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stdout + done.stderr


@promtool
class TestPromtool:
    def test_rules_and_configuration(self) -> None:
        run_promtool("check", "config", DEPLOY / "prometheus.yaml")

    def test_queries_of_the_dashboard(self, tmp_path: Path) -> None:
        found = [query for where, query in queries() if not where.startswith(("rule", "variable"))]
        recorded = [{"record": f"panel_{number}", "expr": query} for number, query in enumerate(found)]
        (tmp_path / "panels.yaml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": recorded}]}))
        run_promtool("check", "rules", tmp_path / "panels.yaml")

    def test_metrics_page(self) -> None:
        """What Prometheus itself says of the page. Names that others chose are not its taste."""
        page = busy_metrics().render()[0]
        done = subprocess.run(["promtool", "check", "metrics"], input=page, capture_output=True, timeout=30)
        remarks = [
            line for line in (done.stdout + done.stderr).decode().splitlines()
            if not re.match(r"(kuadrant_|authorized_|limited_|ratelimited_rq|python_gc|process_|extproc_build)", line)
        ]  # fmt: skip
        assert remarks == []

    @pytest.mark.parametrize(
        ("alert", "series", "labels", "at"),
        [
            ("ExtprocAway", {"up{}": "1x3 0x20"}, {}, 6),
            ("ExtprocReportsLost", {'extproc_reports_total{result="failed"}': "0x10 3x10"}, {}, 13),
            (
                "ExtprocLimiterAway",
                {
                    'extproc_limiter_calls_total{endpoint="l",method="check",result="ok"}': "0+90x30",
                    'extproc_limiter_calls_total{endpoint="l",method="check",result="deadline"}': "0+10x30",
                },
                {"endpoint": "l"},
                10,
            ),
            (
                "ExtprocEverythingDenied",
                {
                    'extproc_exchanges_total{ending="denied"}': "0+100x40",
                    'extproc_exchanges_total{ending="complete"}': "0+1x40",
                },
                {},
                20,
            ),
            (
                "ExtprocModelsFail",
                {
                    'extproc_exchanges_total{ending="error"}': "0+60x40",
                    'extproc_exchanges_total{ending="complete"}': "0+40x40",
                },
                {},
                20,
            ),
            (
                "ExtprocActionsFail",
                {
                    'extproc_exchanges_total{ending="complete"}': "0+60x40",
                    'extproc_action_failures_total{action_set="set"}': "0+30x40",
                },
                {"action_set": "set"},
                20,
            ),
            ("ExtprocConfigRejected", {'extproc_reloads_total{result="rejected"}': "0x5 1x20"}, {"instance": "i"}, 8),
            (
                "ExtprocUsageEstimated",
                {
                    'extproc_usage_total{source="estimated"}': "0+30x90",
                    'extproc_usage_total{source="reported"}': "0+70x90",
                },
                {},
                75,
            ),
            (
                "ExtprocOvershoot",
                {'extproc_limit_used_ratio{namespace="n",limit="minute"}': "1.6x20"},
                {"namespace": "n", "limit": "minute"},
                10,
            ),
            (
                "ExtprocUsersBeyondCap",
                {"extproc_users{}": "2000x40", "extproc_users_max{}": "2000x40"},
                {"instance": "i"},
                20,
            ),
        ],
    )
    def test_alerts_fire(
        self, alert: str, series: dict[str, str], labels: dict[str, str], at: int, tmp_path: Path
    ) -> None:
        """Each on what it is for, and no other does; a minute before `for` is over it does not."""
        expected = {"exp_labels": {"severity": alerts()[alert]["labels"]["severity"], "job": "extproc", **labels}}
        if alert == "ExtprocAway":
            expected["exp_labels"]["instance"] = "i"
        inputs = [
            {"series": name.replace("{", '{job="extproc",instance="i",').replace(",}", "}"), "values": values}
            for name, values in series.items()
        ]
        tests = [
            {"eval_time": f"{at}m", "alertname": name, "exp_alerts": [expected] if name == alert else []}
            for name in alerts()
        ]
        tests.append({"eval_time": "1m", "alertname": alert, "exp_alerts": []})
        self.check(tmp_path, {"interval": "1m", "input_series": inputs, "alert_rule_test": tests})

    def test_bills_work_unchanged(self, tmp_path: Path) -> None:
        """S1.20: dashboards that price tiers, on what the family `maas` exports."""
        name = "token_usage_with_user_and_group"
        usage = {("freeuser1", "free"): 200, ("premiumuser1", "premium"): 1000, ("premiumuser2", "premium"): 500}
        inputs = [
            {"series": f'{name}{{user="{user}",group="{group}",namespace="llm"}}', "values": f"{tokens}x5"}
            for (user, group), tokens in usage.items()
        ]
        query = f'sum({name}{{group="premium"}})*0.008 + sum({name}{{group="free"}})*0.005'
        test = {"expr": query, "eval_time": "1m", "exp_samples": [{"value": 13}]}
        self.check(tmp_path, {"interval": "1m", "input_series": inputs, "promql_expr_test": [test]})

    def check(self, folder: Path, test: dict[str, Any]) -> None:
        # What an alert says is checked above; here it would have to be repeated to the letter.
        bare = yaml.safe_load(RULES.read_text())
        for group in bare["groups"]:
            for rule in group["rules"]:
                rule.pop("annotations", None)
        (folder / "rules.yaml").write_text(yaml.safe_dump(bare))
        document = {"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": [test]}
        (folder / "test.yaml").write_text(yaml.safe_dump(document))
        run_promtool("test", "rules", folder / "test.yaml")
