# SPDX-License-Identifier: Apache-2.0
"""Headless Chromium for tests of pages.

Chromium is driven through ChromeDriver in the W3C WebDriver protocol, which is JSON
over HTTP. It reaches no other machine.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

needed = pytest.mark.skipif(
    not (shutil.which("chromium") and shutil.which("chromedriver")),
    reason="chromium and chromedriver are not installed; on Debian: apt-get "
    "install chromium chromium-driver",
)

SECONDS = 120.0  # Until everything in the browser must be done.

CHROMIUM = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--window-size=1500,4000",  # Charts are drawn once they are in the window.
)


class Clock:
    """One deadline for all waits."""

    def __init__(self, seconds: float):
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        return max(0.0, self._end - time.monotonic())

    def wait(self, what: str, look, accept=bool):
        """Calls `look` until its result passes `accept`; returns the result."""
        while not accept(result := look()):
            if time.monotonic() > self._end:
                pytest.fail(f"no {what} in time; last seen: {str(result)[:3000]}")
            time.sleep(0.1)
        return result


@contextlib.contextmanager
def server(command, log: pathlib.Path, announcement: str, clock: Clock, **env):
    """Starts a server on a free port of its choice; yields its address, then ends it.

    The server leads its own process group, so that its child processes end with it.
    """
    with log.open("w") as file:
        process = subprocess.Popen(
            list(map(str, command)),
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=os.environ | env,
        )

    def port():
        assert process.poll() is None, log.read_text()
        return re.search(announcement, log.read_text())

    try:
        match = clock.wait(f"port of {command[0]}", port)
        yield f"http://127.0.0.1:{match[1]}"
    finally:
        process.terminate()  # So that it removes its temporary files.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


class Browser:
    """A WebDriver session with headless Chromium."""

    def __init__(self, driver: str, profile: pathlib.Path, clock: Clock):
        self._clock = clock
        self._http = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        self._session = driver
        options = {
            "binary": shutil.which("chromium"),
            "args": [*CHROMIUM, f"--user-data-dir={profile}"],
        }
        logs = {"browser": "ALL", "performance": "ALL"}
        chrome = {"goog:chromeOptions": options, "goog:loggingPrefs": logs}
        capabilities = {"alwaysMatch": chrome}
        session = self._ask("POST", "/session", capabilities=capabilities)
        self._session += f"/session/{session['sessionId']}"

    def _ask(self, method: str, path: str, **values):
        request = urllib.request.Request(
            self._session + path,
            json.dumps(values).encode() if method == "POST" else None,
            {"Content-Type": "application/json"},
            method=method,
        )
        try:
            with self._http.open(request, timeout=self._clock.left() + 5) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode()) from error

    def open(self, url: str) -> None:
        self._ask("POST", "/url", url="about:blank")  # A new fragment loads nothing.
        self._ask("POST", "/url", url=url)

    def run(self, script: str):
        return self._ask("POST", "/execute/sync", script=script, args=[])

    def wait(self, what: str, script: str, accept):
        """Runs the script until its result passes `accept`; returns the result."""
        return self._clock.wait(what, lambda: self.run(script), accept)

    def devtools(self, command: str, **values):
        """Sends a command of Chromium's DevTools protocol; returns the answer."""
        return self._ask("POST", "/goog/cdp/execute", cmd=command, params=values)

    def console(self) -> list[str]:
        """The console's messages since the last call."""
        return [entry["message"] for entry in self._log("browser")]

    def requests(self) -> list[str]:
        """The addresses requested since the last call."""
        events = [json.loads(e["message"])["message"] for e in self._log("performance")]
        return [
            event["params"]["request"]["url"]
            for event in events
            if event["method"] == "Network.requestWillBeSent"
        ]

    def _log(self, kind: str) -> list[dict]:
        return self._ask("POST", "/se/log", type=kind)

    def close(self, picture: pathlib.Path) -> None:
        """Saves a picture of the last page and ends Chromium."""
        with contextlib.suppress(Exception):
            picture.write_bytes(base64.b64decode(self._ask("GET", "/screenshot")))
        with contextlib.suppress(Exception):
            self._ask("DELETE", "")


@contextlib.contextmanager
def opened(folder: pathlib.Path) -> Iterator[Browser]:
    """A browser that writes only to a folder; last_page.png there is its last page."""
    clock = Clock(SECONDS)
    homes = ("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME")
    with server(
        ("chromedriver", "--port=0"),
        folder / "chromedriver.log",
        r"started successfully on port (\d+)",
        clock,
        **dict.fromkeys(homes, str(folder)),
    ) as driver:
        browser = Browser(driver, folder / "profile", clock)
        try:
            yield browser
        finally:
            browser.close(folder / "last_page.png")
            shutil.rmtree(folder / "profile", ignore_errors=True)
