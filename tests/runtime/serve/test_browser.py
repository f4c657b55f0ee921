"""The page in a real Chromium: it plays, changes, forks, and goes on after the server was killed.

It makes `build/serve.png`; a copy of it, as `docs/serve.png`, is the picture in the README. Needs
`apt-get install chromium`; run with `-m browser`.
"""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

pytestmark = pytest.mark.browser

ROOT = Path(__file__).parents[3]
RED, BLUE = "a red star bouncing on a navy background", "a blue ring orbiting on a gray background"
ENOUGH = 120_000
"""Milliseconds within which anything here happens."""
CORNER = """video => {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = 8;
  const context = canvas.getContext("2d");
  context.drawImage(video, 0, 0, 64, 64, 0, 0, 8, 8);
  return [...context.getImageData(1, 1, 1, 1).data].slice(0, 3);
}"""
"""The colour of a corner of the picture: of the background."""
WATCHED = """() => {
  addEventListener("click", () => { window.clicked ??= performance.now(); }, true);
  addEventListener("loadeddata", () => { window.shown ??= performance.now(); }, true);
}"""
"""Notes when the first click was, and when a player first had a frame to show."""


@pytest.fixture(scope="module")
def chromium():
    from playwright.sync_api import sync_playwright

    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert found, "these tests need a browser: apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


class Process:
    """`vmla-serve`, to be killed and started again at the same port."""

    def __init__(self, store):
        self.store, self.port = store, 0
        self.start()

    def start(self):
        command = [sys.executable, "-m", "runtime.cli.serve", "--store", self.store, "--threads", "1"]
        command += ["--port", self.port, "--engine", "eager"]
        self.log = (self.store.parent / "log").open("a")
        self.process = subprocess.Popen(
            [str(word) for word in command], cwd=ROOT, stdout=subprocess.PIPE, stderr=self.log, text=True
        )
        for line in self.process.stdout:
            if line.startswith("page: "):
                self.url = line.removeprefix("page: ").strip()
                break
        self.port = int(self.url.rstrip("/").rpartition(":")[2])
        end = time.monotonic() + ENOUGH / 1000
        while True:
            try:
                if httpx.get(f"{self.url}health/ready").status_code == 200:
                    return
            except httpx.TransportError:
                assert time.monotonic() < end
            time.sleep(0.1)

    def kill(self, number=signal.SIGKILL):
        self.process.send_signal(number)
        self.process.wait()
        self.process.stdout.close()
        self.log.close()


@pytest.fixture
def process(tmp_path):
    process = Process(tmp_path / "streams")
    yield process
    process.kill(signal.SIGTERM)


def share_of_a_core(seconds=0.5):
    """How much of a core a busy process gets here: all of it on a machine of its own."""
    began, used = time.perf_counter(), time.process_time()
    while (passed := time.perf_counter() - began) < seconds:
        pass
    return (time.process_time() - used) / passed


def begin(page, prompt, seed):
    page.get_by_label("What shall it show?").fill(prompt)
    page.get_by_label("Seed").fill(str(seed))
    page.get_by_role("button", name="Play").click()


def playing(page, video, *, beyond):
    page.wait_for_function(
        "([video, beyond]) => video.currentTime > beyond && !video.paused && video.readyState > 2",
        arg=[video, beyond], timeout=ENOUGH,
    )  # fmt: skip
    return video.evaluate("video => video.currentTime")


def test_it_plays_changes_forks_and_survives_its_server(chromium, process):
    page = chromium.new_page(viewport={"width": 1280, "height": 1240})
    troubles = []
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.goto(process.url)
    begin(page, RED, 7)
    card = page.get_by_role("article").first
    video = card.locator("video").element_handle()
    playing(page, video, beyond=0.1)
    playing(page, video, beyond=2.0)
    navy = video.evaluate(CORNER)

    card.get_by_label("From the next chunk on").fill(BLUE)
    card.get_by_label("forgotten").check()
    card.get_by_role("button", name="Change").click()
    card.get_by_text("In effect since chunk").wait_for(timeout=ENOUGH)
    assert card.locator(".shows").text_content() == BLUE
    playing(page, video, beyond=video.evaluate("video => video.currentTime") + 1.5)
    beige = video.evaluate(CORNER)
    assert sum(beige) - sum(navy) > 150, (navy, beige)

    card.get_by_label("From the next chunk on").fill("a green square spinning on a black background")
    card.get_by_role("button", name="Fork", exact=True).click()
    fork = page.get_by_role("article").nth(1)
    fork.get_by_text("The same past").wait_for(timeout=ENOUGH)
    other = fork.locator("video").element_handle()
    playing(page, other, beyond=video.evaluate("video => video.currentTime") - 3)
    fork.get_by_text("In effect since chunk").wait_for(timeout=ENOUGH)

    with page.expect_download(timeout=ENOUGH) as download:
        card.get_by_role("button", name="Download").click()
    assert Path(download.value.path()).read_bytes()[4:8] == b"ftyp"

    page.evaluate("scrollTo(0, 0)")
    page.wait_for_timeout(3000)
    page.screenshot(path=ROOT / "build" / "serve.png")

    process.kill()
    card.get_by_text("The server is away").wait_for(timeout=ENOUGH)
    process.start()
    at = video.evaluate("video => video.currentTime")
    playing(page, video, beyond=at + 3)
    playing(page, other, beyond=at + 1)
    assert card.locator(".state").text_content() == ""

    for _ in range(2):
        page.get_by_role("button", name="End").first.click()
    assert page.get_by_role("article").count() == 0
    assert not troubles


def test_a_typed_prompt_shows_its_first_frame_soon(chromium, process, record_property):
    """Within three seconds, or as many more as other programs take of the processor: they may take most."""
    share = share_of_a_core()
    page = chromium.new_page()
    page.goto(process.url)
    page.evaluate(WATCHED)
    begin(page, RED, 7)
    page.wait_for_function("() => window.shown", timeout=ENOUGH)
    seconds = page.evaluate("() => (window.shown - window.clicked) / 1000")
    record_property("seconds to the first frame", seconds)
    assert 0 < seconds < 3 / share, f"{seconds:.2f} s, with {share:.0%} of a core"


def test_it_can_be_used_with_the_keyboard_alone_and_loaded_again(chromium, process):
    page = chromium.new_page()
    page.goto(process.url)
    page.wait_for_function("() => document.activeElement.id === 'prompt'")  # the prompt has the focus
    page.keyboard.type(RED)
    page.keyboard.press("Enter")
    video = page.get_by_role("article").locator("video").element_handle()
    playing(page, video, beyond=1.0)
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.classList.contains('prompt')"):
            break
    page.keyboard.type(BLUE)
    page.keyboard.press("Enter")
    page.get_by_role("article").get_by_text("In effect since chunk").wait_for(timeout=ENOUGH)
    page.reload()  # the address names the stream
    article = page.get_by_role("article")
    video = article.locator("video").element_handle()
    playing(page, video, beyond=2.0)
    assert article.locator(".shows").text_content() == BLUE
    unnamed = page.evaluate("""() => [...document.querySelectorAll('button, input')].filter(
      one => one.checkVisibility() && !one.textContent.trim() && !one.labels?.length).length""")
    assert unnamed == 0
