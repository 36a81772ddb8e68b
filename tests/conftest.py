"""Rules for every test: no network beyond this machine, and in CI no skips.

Needs nothing but pytest and the standard library, because `make test-sdk` loads it in environments that
hold only an SDK and the test tools.
"""

import os
import signal
import sys
from collections.abc import Generator
from ipaddress import ip_address
from typing import Any

import pytest

IN_CI = bool(os.environ.get("CI"))


def pytest_configure() -> None:
    sys.addaudithook(_stay_on_this_machine)
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1"  # servers of tests are not behind anybody's proxy
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A shell starts what runs in its background so, and every program that a test starts would be deaf to Ctrl-C.
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    return _no_skip(report)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    return _no_skip(report)


@pytest.fixture(scope="session", autouse=True)
def _nothing_in_the_users_home(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Servers keep files there, unless DATA_DIR says otherwise."""
    os.environ["XDG_STATE_HOME"] = str(tmp_path_factory.mktemp("state"))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print what tests have measured (`record_property("figure", …)`), also when they pass."""
    reports = [report for found in terminalreporter.stats.values() for report in found]
    figures = [
        value for report in reports for name, value in getattr(report, "user_properties", []) if name == "figure"
    ]
    if figures:
        terminalreporter.section("figures")
    for figure in dict.fromkeys(figures):
        terminalreporter.write_line(figure)


class NetworkBlockedError(RuntimeError):
    """A test tried to reach another machine."""


def _stay_on_this_machine(event: str, args: tuple[Any, ...]) -> None:
    match event, args:
        case (("socket.connect" | "socket.sendto" | "socket.sendmsg"), (_, (str() | bytes() as host, _, *_))):
            _demand_loopback(host)
        case "socket.getaddrinfo", (str() | bytes() as host, *_):
            _demand_loopback(host)


def _demand_loopback(host: str | bytes) -> None:
    host = host.decode() if isinstance(host, bytes) else host
    if host in ("localhost", "", "0.0.0.0", "::"):
        return
    try:
        allowed = ip_address(host).is_loopback
    except ValueError:
        allowed = False
    if not allowed:
        raise NetworkBlockedError(f"tests stay on this machine, but something wants {host}")


def _no_skip(report: Any) -> Any:
    if IN_CI and report.outcome == "skipped" and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, which is a failure in CI: {report.longrepr}"
    return report
