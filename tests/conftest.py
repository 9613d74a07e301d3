"""Rules for every test: what it may need, what it must not leave behind, and how long it may take without a reason."""

from __future__ import annotations

import gc
import logging
import math
import os
import re
import socket
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import trio
import trio.testing

from tests import requirements
from tests.hangs import HANG
from tests.kernel.ahead import answers_of, asked_ahead, shared_folder
from warpgate_trio.host import RealHost
from warpgate_trio.plugin import load_plugins, plugin_registry

pytest_plugins = ["warpgate_trio.testing.pytest_plugin"]

SIMULATOR = Path(__file__).parent / "sim"
PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
OWN_NAMES = {None, "localhost", "", socket.gethostname()}
"""Host names that the machine resolves without a DNS query."""
SLOW = 0.25
"""Seconds that a test may take without saying why."""
QUIET = 0.005
"""Seconds without an event after which `jumping_clock` jumps."""

hypothesis.settings.register_profile("dev", deadline=None, print_blob=True)
# A CI run is the same every time: a chance find of Hypothesis should fail a developer's run, not an unrelated merge.
hypothesis.settings.register_profile("ci", deadline=None, print_blob=True, derandomize=True, database=None)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") == "true" else "dev")

_reports = pytest.StashKey[dict[str, pytest.TestReport]]()
_slow: list[tuple[float, str]] = []


def _ask_nobody_for_names() -> None:
    """Makes `socket.getaddrinfo` resolve the machine's own names only: how long a DNS query takes is not ours to bound.

    This is never undone, because the simulator wraps the function that it finds here, and does not undo that either.
    """
    getaddrinfo = socket.getaddrinfo

    def of_this_machine(
        host: Any, port: Any, family: int = 0, kind: int = 0, proto: int = 0, flags: int = 0, **more: int
    ) -> list[tuple[Any, ...]]:
        name = host.decode() if isinstance(host, bytes) else host
        if name not in OWN_NAMES:
            flags |= socket.AI_NUMERICHOST
        return getaddrinfo(host, port, family, more.get("type", kind), proto, flags)

    socket.getaddrinfo = of_this_machine  # type: ignore[assignment]


def pytest_configure(config: pytest.Config) -> None:
    """Refuses a WARPGATE_REQUIRE that would silently require nothing."""
    _ask_nobody_for_names()
    try:
        requirements.required()
    except ValueError as error:
        raise pytest.UsageError(str(error)) from None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrizes tests with the argument `question` by their module's QUESTIONS to the kernel."""
    if "question" in metafunc.fixturenames:
        metafunc.parametrize("question", metafunc.module.QUESTIONS, ids=str)


@pytest.fixture(autouse=True)
def no_gateway(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hides the real network's gateways, so that no test asks them for anything; those of the kernel lab are ours."""
    if "kernel" not in request.path.parts:
        monkeypatch.setattr(RealHost, "gateways", lambda _self: ())


@pytest.hookimpl(trylast=True)  # after the tests were shuffled
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Checks the markers' arguments, so that a typo is an error and not a test that never runs.

    Tests that need the kernel's answers come last, when the answers are there.
    """
    items.sort(key=lambda item: isinstance(item, pytest.Function) and "question" in item.fixturenames)
    for item in items:
        for marker in item.iter_markers("needs"):
            unknown = set(marker.args) - set(requirements.REQUIREMENTS)
            if unknown or not marker.args:
                raise pytest.UsageError(f"{item.nodeid}: needs(…) wants names of tests/requirements.py, not {unknown}")
        for marker in item.iter_markers("slow"):
            if not (marker.args or marker.kwargs.get("reason")):
                raise pytest.UsageError(f"{item.nodeid}: mark a test as slow with the reason, slow('…')")
            if SIMULATOR in item.path.parents:
                item.add_marker("no_cover")  # its whole walks reach code that other tests cover piece by piece


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Freezes the objects that stay to the end, all modules and all tests, so that garbage collection skips them.

    Otherwise each full collection, and there are many, would spend a quarter of a second on them.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


@pytest.hookimpl(tryfirst=True)  # before pytest looks at the skip markers
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips a test whose needs are not met, before its fixtures start anything."""
    names = dict.fromkeys(name for marker in item.iter_markers("needs") for name in marker.args)
    reasons = dict.fromkeys(reason for name in names if (reason := requirements.unmet(name)))
    if reasons:
        item.add_marker(pytest.mark.skip(reason="; ".join(reasons)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Keeps each phase's report for the fixtures, and turns a skip into a failure where that was asked for."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and requirements.required():
        report.outcome = "failed"
        report.longrepr = f"skipped, under WARPGATE_REQUIRE: {_reason(report)}"
    item.stash.setdefault(_reports, {})[report.when] = report
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Turns the skip of a whole module into a failure where that was asked for."""
    report = yield
    if report.skipped and requirements.required():
        report.outcome = "failed"
        report.longrepr = f"skipped, under WARPGATE_REQUIRE: {_reason(report)}"
    return report


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return reason.removeprefix("Skipped: ")


def _sockets() -> dict[str, str]:
    """The open sockets of this process, descriptor -> inode; empty where there is no /proc."""
    found: dict[str, str] = {}
    try:
        names = os.listdir("/proc/self/fd")
    except OSError:
        return found
    for name in names:
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue  # the descriptor that listed the folder
        if target.startswith("socket:"):
            found[name] = target
    return found


def _close(descriptors: Iterable[str]) -> None:
    """Closes sockets that a test left open, so that no later test is blamed for them."""
    for thing in gc.get_objects():
        if isinstance(thing, socket.socket) and str(thing.fileno()) in descriptors:
            thing.close()


def _threads() -> set[threading.Thread]:
    """The running threads, without the idle ones that Trio caches for `to_thread` (it renames them while they work)."""
    return {thread for thread in threading.enumerate() if not re.fullmatch(r"Trio thread \d+", thread.name)}


@pytest.fixture(autouse=True)
def _leaves_nothing_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails a test that leaves a socket open or a thread running.

    The garbage collection here closes sockets that only a reference cycle still holds. Python then emits a
    ResourceWarning, which also fails this test.
    """
    sockets_before, threads_before = _sockets().items(), _threads()
    yield
    sockets = _sockets().items() - sockets_before
    call = request.node.stash.get(_reports, {}).get("call")
    if call is None or not call.passed:
        _close(dict(sockets))  # the traceback of the failure still holds the test's locals
        return
    if sockets:
        gc.collect()
        sockets = _sockets().items() - sockets_before
    threads = _threads() - threads_before
    if sockets:
        _close(dict(sockets))
        pytest.fail(f"{request.node.nodeid} left {len(sockets)} socket(s) open: {sorted(sockets)}", pytrace=False)
    if threads:
        pytest.fail(f"{request.node.nodeid} left threads running: {sorted(t.name for t in threads)}", pytrace=False)


@pytest.fixture
def no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """The surroundings of an arbitrary uid in a container: no HOME, and no entry in the user database."""
    pwd = pytest.importorskip("pwd", reason="POSIX's")

    def getpwuid(uid: int) -> object:
        raise KeyError(f"uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", getpwuid)
    for name in list(os.environ):
        if name == "HOME" or name.startswith("XDG_"):
            monkeypatch.delenv(name)


@pytest.fixture
def own_plugins() -> Iterator[None]:
    """Removes the plugins that a test registers; the built-in ones, registered at their first import, stay."""
    load_plugins()
    before = dict(plugin_registry)
    yield
    plugin_registry.clear()
    plugin_registry.update(before)


@pytest.fixture
def own_logging() -> Iterator[None]:
    """Restores the package's loggers, which commands configure, for other tests."""
    loggers = [logging.getLogger(name) for name in ("warpgate_trio", "warpgate_strategies")]
    before = [(logger, logger.level, logger.propagate, logger.handlers[:]) for logger in loggers]
    yield
    for logger, level, propagate, handlers in before:
        logger.setLevel(level)
        logger.propagate = propagate
        logger.handlers[:] = handlers


@pytest.fixture
def jumping_clock(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> trio.testing.MockClock:
    """A clock that jumps to the next deadline when nothing happens for 5 ms, and stands still otherwise.

    A slow machine thus uses up no time limit.

    It is for tests whose every party is in this thread, over real sockets.  On loopback, data has arrived when `send`
    returns.  So when nothing happens, nothing is under way either, however long the process waits for a processor.
    The clock stands still while a thread of Trio works, at a name lookup for instance.

    It is not for tests that wait for another process, a thread that is not Trio's, or a timer of the kernel: these work
    on while nothing happens here, and the clock would jump past the limit of the wait.  Nor is it for tests that
    measure a time.  A module or a test takes it as an argument or by `usefixtures`.
    """
    clock = trio.testing.MockClock(autojump_threshold=QUIET)
    run_sync = trio.to_thread.run_sync
    working = 0

    async def standing_still(*args: Any, **options: Any) -> Any:
        nonlocal working
        working += 1
        clock.autojump_threshold = math.inf
        try:
            return await run_sync(*args, **options)
        finally:
            working -= 1
            if not working:
                clock.autojump_threshold = QUIET

    def run(main: Callable[..., Any], **options: Any) -> Any:
        return trio.run(main, **(options | {"clock": clock}))

    monkeypatch.setattr(trio.to_thread, "run_sync", standing_still)
    if request.node.get_closest_marker("trio") is not None:  # pytest-trio sees the arguments of the test only
        request.node.add_marker(pytest.mark.trio(run=run), append=False)
    return clock


@pytest.fixture
async def bounded(nursery: trio.Nursery) -> None:
    """Fails the test with TooSlowError after `HANG` seconds: nothing on loopback takes so long."""

    async def alarm() -> None:
        await trio.sleep(HANG)
        raise trio.TooSlowError

    nursery.start_soon(alarm)


@pytest.fixture(autouse=True, scope="session")
def _own_surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keeps the developer's own key, configuration, proxies and WARPGATE_* settings apart from the tests."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if (name.startswith("WARPGATE_") and name != "WARPGATE_REQUIRE") or name.lower() in PROXY_VARIABLES:
                patch.delenv(name)
        home = tmp_path_factory.mktemp("home")
        for name in ("XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME"):
            patch.setenv(name, str(home / name.lower()))
        yield


@pytest.fixture(autouse=True, scope="session")
def _kernel_is_asked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Starts the programs whose answers the selected tests need (`tests.kernel.ahead`)."""
    with asked_ahead(request.session.items, shared_folder(tmp_path_factory)):
        yield


@pytest.fixture(scope="module")
def answers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The kernel's answers to the module's questions."""
    return answers_of(request.module.PROGRAM, shared_folder(tmp_path_factory))


@pytest.fixture
def answer(answers: dict[str, Any], question: object) -> Any:
    """The kernel's answer to the test's question."""
    assert str(question) in answers, answers.get("stderr", "the lab did not answer")
    return answers[str(question)]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Records slow tests; with xdist this runs in the process that writes the summary."""
    if report.when == "call" and report.passed and report.duration > SLOW and "slow" not in report.keywords:
        _slow.append((report.duration, report.nodeid))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Lists the tests that should be faster or give a reason, without failing them."""
    if _slow:
        terminalreporter.write_line(f"{len(_slow)} test(s) over {SLOW} s without @pytest.mark.slow(reason):")
        for seconds, name in sorted(_slow, reverse=True):
            terminalreporter.write_line(f"  {seconds:6.2f} s  {name}")
