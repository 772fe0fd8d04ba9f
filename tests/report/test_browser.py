"""The report in a real browser, on a wide and on a narrow window, by day and by night."""

import base64
import io
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
from PIL import Image

from detectkit.report import compare_reports, write_report

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
QUIET = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
QUIET += ["--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"]
LOOK = """
const root = document.documentElement;
return {
  width: root.scrollWidth, window: window.innerWidth, height: root.scrollHeight,
  pictures: document.images.length,
  blank: [...document.images].filter(item => !item.complete || !item.naturalWidth).length,
  charts: [...document.querySelectorAll("svg")].map(item => item.getBoundingClientRect().width),
  asked: performance.getEntriesByType("resource").map(item => item.name).filter(name => !name.startsWith("data:")),
  paper: getComputedStyle(document.body).backgroundColor,
  texts: Math.min(...[...document.querySelectorAll("svg text")].map(item => item.getBoundingClientRect().height)),
};
"""

pytestmark = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason="needs chromium and chromedriver: apt-get install chromium-driver"
)


class Browser:
    """A window of Chromium, spoken to as WebDriver does."""

    def __init__(self, port, folder):
        self.root = f"http://127.0.0.1:{port}/session"
        options = {"binary": BROWSER, "args": [*QUIET, f"--user-data-dir={folder}"]}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        answer = self._call("", {"capabilities": {"alwaysMatch": wanted}})
        self.root += f"/{answer['sessionId']}"

    def _call(self, path, body):
        request = urllib.request.Request(
            self.root + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def command(self, name, **parameters):
        return self._call("/goog/cdp/execute", {"cmd": name, "params": parameters})

    def open(self, path, width, scheme):
        """What LOOK finds in a page, the lines of the console, and a picture of its first screen."""
        narrow = width < 500
        self.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=narrow
        )
        self.command(
            "Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}]
        )
        self._call("/url", {"url": path.absolute().as_uri()})
        seen = self._call("/execute/sync", {"script": LOOK, "args": []})
        console = self._call("/se/log", {"type": "browser"})
        shot = base64.b64decode(self.command("Page.captureScreenshot")["data"])
        return seen, console, np.asarray(Image.open(io.BytesIO(shot)).convert("RGB"), dtype=int)

    def close(self):
        request = urllib.request.Request(self.root, method="DELETE")
        urllib.request.urlopen(request, timeout=60).close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([DRIVER, f"--port={port}"], **quiet)
    try:
        for _ in range(100):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/status", timeout=5).close()
                break
            except urllib.error.URLError:
                time.sleep(0.1)
        window = Browser(port, tmp_path_factory.mktemp("profile"))
        yield window
        window.close()
    finally:
        process.terminate()
        process.wait(timeout=30)


@pytest.fixture(scope="module")
def pages(whole_run, tmp_path_factory):
    """The report of a run, and that of two."""
    folder = tmp_path_factory.mktemp("pages")
    runs = [shutil.copytree(whole_run, folder / name) for name in ("one", "two")]
    return {"single": write_report(runs[0]), "several": compare_reports(runs, folder / "several.html")}


@pytest.mark.parametrize("width", [1600, 768, 390])
@pytest.mark.parametrize("name, pictures, charts", [("single", 6, 10), ("several", 0, 11)])
def test_a_page_fits_its_window(browser, pages, name, pictures, charts, width):
    seen, console, shot = browser.open(pages[name], width, "light")
    assert seen["window"] == width and seen["width"] <= width
    assert console == [] and seen["asked"] == []
    assert seen["pictures"] >= pictures and seen["blank"] == 0
    assert len(seen["charts"]) == charts
    assert all(300 < chart <= min(width, 600) for chart in seen["charts"])
    assert seen["texts"] > 8  # pixels
    assert shot.shape == (900, width, 3) and shot.std() > 10  # there is something to see
    assert (shot > 250).all(axis=2).mean() > 0.5  # on white


def test_a_page_is_dark_by_night(browser, pages):
    seen, _, shot = browser.open(pages["single"], 1600, "dark")
    assert seen["paper"] == "rgb(21, 24, 28)"
    assert (shot < 60).all(axis=2).mean() > 0.5 and shot.max() > 200
