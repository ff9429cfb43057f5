"""The page in a real browser: ghost text, its keys, and no suggestion that is late."""

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from tests.support.models import write_tokenizer
from tests.support.serving import Parrot, markov, running

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver"),
]
LINE = "the quick brown fox jumps over the lazy dog and runs away"
SLOW = "the quick br"  # typed so far, it takes a while


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    folder = tmp_path_factory.mktemp("profile")
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--disable-gpu",
        f"--user-data-dir={folder}",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = webdriver.Chrome(options, webdriver.ChromeService(str(DRIVER)))
    yield found
    found.quit()


@pytest.fixture(scope="module")
def parrot() -> Parrot:
    """It knows one line, and gives late answers all the same: the page has to drop them."""
    return Parrot(LINE, lambda text: 0.6 if text == SLOW else 0.0, heeds=False)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory, parrot: Parrot) -> Iterator[str]:
    tokenizer = write_tokenizer(tmp_path_factory.mktemp("tokenizer")).backend_tokenizer
    with running(markov(tokenizer), parrot) as (url, _):
        yield url


@pytest.fixture
def page(browser: webdriver.Chrome, address: str) -> "Page":
    browser.set_window_size(1280, 800)
    browser.get(address)
    return Page(browser)


class Page:
    """What a person sees and types."""

    def __init__(self, browser: webdriver.Chrome) -> None:
        self.browser, self.box = browser, browser.find_element(By.ID, "text")

    def type(self, *keys: str) -> None:
        self.box.send_keys(*keys)

    def press(self, *keys: str) -> None:
        chain = webdriver.ActionChains(self.browser)
        for key in keys[:-1]:
            chain.key_down(key)
        chain.send_keys(keys[-1])
        for key in keys[:-1]:
            chain.key_up(key)
        chain.perform()

    @property
    def text(self) -> str:
        return str(self.box.get_property("value"))

    @property
    def ghost(self) -> str:
        return str(self.browser.execute_script("return document.getElementById('ghost').textContent"))

    @property
    def status(self) -> str:
        return self.browser.find_element(By.ID, "status").text

    def shows(self, ghost: str) -> bool:
        """Whether this is the suggestion, now or soon."""
        try:
            return bool(WebDriverWait(self.browser, 5, 0.02).until(lambda _: self.ghost == ghost))
        except Exception:
            return False


def test_typing_shows_what_may_follow_and_the_keys_do_what_they_say(page: Page) -> None:
    page.type("the qui")
    assert page.shows("ck brown fox jumps")
    assert "ms" in page.status
    assert "25 %" in page.status
    assert page.browser.find_element(By.ID, "model").text == "tiny"
    page.press(Keys.CONTROL, Keys.ARROW_RIGHT)
    assert page.text == "the quick"
    assert page.ghost == " brown fox jumps", "the rest of it stays, and nothing is asked"
    page.press(Keys.TAB)
    assert page.text == "the quick brown fox jumps"
    assert page.shows(" over the lazy")
    page.press(Keys.ESCAPE)
    assert page.ghost == ""
    time.sleep(0.3)
    assert page.ghost == "", "what was dismissed does not come back by itself"
    page.type(" o")
    assert page.shows("ver the lazy dog")


def test_what_was_taken_can_be_undone(page: Page) -> None:
    page.type("the qui")
    assert page.shows("ck brown fox jumps")
    page.press(Keys.TAB)
    page.press(Keys.CONTROL, "z")
    assert page.text == "the qui"
    page.press(Keys.CONTROL, Keys.SHIFT, "z")
    assert page.text == "the quick brown fox jumps"


def test_a_character_of_the_suggestion_keeps_the_rest_and_another_one_drops_it(page: Page, parrot: Parrot) -> None:
    page.type("the qui")
    assert page.shows("ck brown fox jumps")
    asked = len(parrot.asked)
    page.type("c")
    assert page.ghost == "k brown fox jumps"
    page.type("k b")
    assert page.ghost == "rown fox jumps"
    time.sleep(0.3)
    assert len(parrot.asked) == asked, "nothing is asked for what is known"
    page.type("x")
    assert page.ghost == ""


def test_no_suggestion_is_shown_for_a_text_that_is_no_longer_there(page: Page, parrot: Parrot) -> None:
    """Every ghost text that the page shows while keys come fast belongs to the text beneath it at that moment."""
    page.browser.execute_script(
        """window.wrong = []; window.seen = 0;
        new MutationObserver(() => {
          const ghost = document.getElementById("ghost").textContent;
          if (!ghost) return;
          window.seen += 1;
          const whole = document.getElementById("text").value + ghost;
          if (!arguments[0].startsWith(whole)) window.wrong.push(whole);
        }).observe(document.getElementById("under"), {childList: true, characterData: true, subtree: true});""".replace(
            "arguments[0]", f"{LINE!r}"
        )
    )
    page.browser.execute_script("document.getElementById('wait').value = 0")
    page.type(SLOW)
    time.sleep(0.15)  # its answer is on the way, and late
    assert page.ghost == ""
    page.type("o")
    assert page.shows("wn fox jumps over")
    time.sleep(0.7)
    assert page.ghost == "wn fox jumps over", "the late answer is dropped"
    for char in LINE[len(SLOW) + 1 :]:
        page.type(char)
    assert page.browser.execute_script("return window.wrong") == []
    assert page.browser.execute_script("return window.seen") > 3
    assert SLOW in parrot.asked


def test_nothing_is_stored_and_nothing_else_is_loaded(page: Page) -> None:
    page.type("the qui<b>&amp;")
    stored = "return [localStorage.length, sessionStorage.length, document.cookie]"
    assert page.browser.execute_script(stored) == [0, 0, ""]
    names = page.browser.execute_script(
        "return performance.getEntriesByType('resource').map((e) => new URL(e.name).pathname)"
    )
    assert {*names} <= {"/v1/models", "/complete"}
    assert page.browser.execute_async_script(
        """const done = arguments[0], script = document.createElement("script");
        script.textContent = "window.injected = 1"; document.body.append(script);
        setTimeout(() => done(window.injected === undefined));"""
    ), "the policy lets no other script run"


def test_markup_in_a_suggestion_is_text(browser: webdriver.Chrome, tmp_path: Path) -> None:
    parrot = Parrot("say <img src=x onerror=alert(1)><b>bold</b> & more")
    tokenizer: Any = write_tokenizer(tmp_path).backend_tokenizer
    with running(markov(tokenizer), parrot) as (url, _):
        browser.get(url)
        page = Page(browser)
        page.type("say ")
        assert page.shows("<img src=x onerror=alert(1)><b>bold</b> &")
        assert not browser.find_elements(By.CSS_SELECTOR, "#under img, #under b")


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_and_the_ghost_lies_behind_the_text(page: Page, width: int, scheme: str) -> None:
    """LIGHTGPT2_SCREENSHOTS names a folder to look at them."""
    browser = page.browser
    features = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", features)
    size = {"width": width, "height": 700, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    page.type(f"{LINE}\n" * 2 + "the quick brown f")
    assert page.shows("ox jumps over the")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    lines = "return [text.scrollHeight, document.getElementById('under').scrollHeight, text.clientWidth,"
    text, under, *widths = browser.execute_script(f"{lines} document.getElementById('under').clientWidth]")
    assert abs(text - under) <= 1
    assert widths[0] == widths[1], "both break their lines at the same places"
    if folder := os.environ.get("LIGHTGPT2_SCREENSHOTS"):
        browser.save_screenshot(str(Path(folder, f"{width}-{scheme}.png")))
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_key_is_asked_for_where_one_is_needed(browser: webdriver.Chrome, tmp_path: Path) -> None:
    tokenizer: Any = write_tokenizer(tmp_path).backend_tokenizer
    with running(markov(tokenizer), Parrot(LINE), key="secret") as (url, _):
        browser.get(url)
        page = Page(browser)
        field = browser.find_element(By.ID, "key")
        WebDriverWait(browser, 5).until(lambda _: field.is_displayed())
        field.send_keys("secret")
        page.type("the qui")
        assert page.shows("ck brown fox jumps")
