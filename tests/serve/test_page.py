"""The page in a real browser: what it shows moves, and everyone can use it."""

from __future__ import annotations

import concurrent.futures
import os
import re
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser, Page, Request, expect, sync_playwright

from cutset.engines.local import LocalEngine, LocalWorker

from .held import HeldSession
from .running import Running, ask, running_server

CHROMIUM = shutil.which("chromium")
ARTIFACTS = Path(__file__).parents[2] / "build" / "test-artifacts" / "serve"
# The default, 5 s, was once too short for the first image on a busy machine.
expect.set_options(timeout=20_000)
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="needs Debian's chromium (apt-get install chromium)"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        yield browser
        browser.close()


@pytest.fixture
def problems() -> list[str]:
    """What the browser complained about; must stay empty."""
    return []


def _watch(page: Page, problems: list[str]) -> None:
    """Notes what the browser complains about, and every request that fails.

    The page asks for its numbers once a second. Who leaves it while it waits for an answer has the
    browser end that request itself, which is no failure; one that ends so on a page that stays is.
    """
    waiting: set[Request] = set()
    left: set[Request] = set()

    def begins(request: Request) -> None:
        if request.is_navigation_request():
            left.update(waiting)
        waiting.add(request)

    def fails(request: Request) -> None:
        waiting.discard(request)
        if request not in left or request.failure != "net::ERR_ABORTED":
            problems.append(f"{request.url}: {request.failure}")

    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", begins)
    page.on("requestfinished", lambda request: waiting.discard(request))
    page.on("requestfailed", fails)


@pytest.fixture
def page(browser: Browser, server: Running, problems: list[str]) -> Iterator[Page]:
    page = browser.new_page(viewport=DESKTOP)
    page.set_default_timeout(20_000)
    _watch(page, problems)
    # Playwright tells the browser to hand over file choosers once someone listens, and does not
    # wait until it has: too late for a key that is pressed at once.
    page.on("filechooser", lambda _chooser: None)
    page.goto(server.url)
    yield page
    page.close()


@pytest.fixture(scope="module")
def photograph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "noise.png"
    pixels = np.random.default_rng(1).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def _keep(page: Page, name: str) -> None:
    ARTIFACTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=ARTIFACTS / f"{name}.png", full_page=True)


def _violations(page: Page) -> list[str]:
    found = Axe().run(page).response["violations"]
    return [f"{each['id']}: {node['html']}" for each in found for node in each["nodes"]]


def _ask(server: Running, num_requests: int, photograph: Path) -> None:
    image = photograph.read_bytes()
    for _ in range(num_requests):
        assert ask(server, path="/classify", body=image)[0] == 200


def test_numbers_move(page: Page, server: Running, photograph: Path, problems: list[str]) -> None:
    stages = page.locator("[data-stage]")
    expect(stages).to_have_count(2)
    expect(page.locator("#state")).to_have_text("running")
    expect(stages.nth(0)).to_contain_text("cpu:0")
    before = int(page.locator("#answered").inner_text().replace(",", ""))
    _ask(server, 12, photograph)
    expect(page.locator("#answered")).to_have_text(f"{before + 12:,}")
    expect(page.locator("#rate")).not_to_have_text("0.0")
    for index in range(2):
        expect(stages.nth(index).locator("[data-field=time]")).to_contain_text("ms")
    expect(page.locator("#slowest")).to_contain_text("Stage")
    expect(page.locator("#slowest-note")).to_contain_text("predicted")
    assert problems == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("size", "viewport"), [("desktop", DESKTOP), ("phone", PHONE)])
def test_an_image_is_classified_on_any_screen(
    browser: Browser, server: Running, photograph: Path, scheme: str, size: str, viewport: dict
) -> None:
    page = browser.new_page(viewport=viewport, color_scheme=scheme)
    problems: list[str] = []
    _watch(page, problems)
    page.goto(server.url)
    page.locator("#file").set_input_files(photograph)
    labels = page.get_by_role("table", name="Labels")
    expect(labels).to_be_visible()
    expect(labels.get_by_role("row")).to_have_count(6)
    expect(labels).to_contain_text("class ")
    times = page.get_by_role("table", name="Time spent")
    expect(times).to_contain_text("Computing in stage 0")
    expect(times).to_contain_text("Computing in stage 1")
    # Nothing sticks out at the side.
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    _keep(page, f"page-{size}-{scheme}")
    assert _violations(page) == []
    assert problems == []
    page.close()


def test_a_dropped_file_that_is_no_image_is_explained(page: Page) -> None:
    page.evaluate(
        """() => {
        const data = new DataTransfer();
        data.items.add(new File(["not a picture"], "words.png", {type: "image/png"}));
        document.getElementById("drop").dispatchEvent(
            new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true}));
    }"""
    )
    expect(page.locator("#result")).to_contain_text("is no image")


def test_keyboard_reaches_everything(page: Page, photograph: Path) -> None:
    expect(page.locator("#file")).to_be_attached()
    expect(page.locator("#try")).to_be_visible()
    reached = []
    for _ in range(2):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
    assert reached == ["A", "file"]
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(photograph)
    expect(page.get_by_role("table", name="Labels")).to_be_visible()


def test_a_killed_worker_is_seen_and_seen_to_come_back(
    page: Page, server: Running, photograph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    was_seen, start = threading.Event(), LocalEngine.start

    def once_seen(engine: LocalEngine, *arguments: Any) -> LocalWorker:
        # The page looks once a second; a worker may be back by then.
        was_seen.wait(30)
        return start(engine, *arguments)

    monkeypatch.setattr(LocalEngine, "start", once_seen)
    stage = page.locator("[data-stage='1']")
    restarts = stage.locator("[data-field=restarts]")
    expect(restarts).to_have_text(re.compile(r"\d+"))
    before = int(restarts.inner_text())
    expect(page.locator("#state")).to_have_text("running")
    seen = page.evaluate_handle(
        """() => {
        const states = [];
        const look = () => {
            const text = document.getElementById("state").textContent;
            if (states.at(-1) !== text) states.push(text);
        };
        look();
        new MutationObserver(look).observe(document.body,
            {childList: true, characterData: true, subtree: true});
        return states;
    }"""
    )
    victim = server.session.worker_pids[1]
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        os.kill(victim, signal.SIGKILL)
        asking = pool.submit(_ask, server, 4, photograph)
        try:
            expect(stage).to_contain_text("restarting")
            _keep(page, "page-restarting")
        finally:
            was_seen.set()
        expect(restarts).to_have_text(str(before + 1), timeout=30_000)
        asking.result(60)
    expect(page.locator("#state")).to_have_text("running")
    expect(stage).not_to_contain_text("restarting")
    assert seen.json_value() == ["running", "recovering", "running"]


def test_the_api_page(page: Page, problems: list[str]) -> None:
    # Left while it waits for its numbers, as happens now and then to whoever clicks.
    with page.expect_request("**/status"):
        page.route("**/status", lambda _never_answered: None)
    page.get_by_role("link", name="API").click()
    expect(page.get_by_role("heading", name="POST /v2/models/{model}/infer")).to_be_visible()
    _keep(page, "docs")
    assert _violations(page) == []
    assert problems == []


@pytest.mark.parametrize("reason", ["aborted", "connectionreset"])
def test_a_request_that_fails_on_a_page_that_stays_is_a_problem(
    page: Page, problems: list[str], reason: str
) -> None:
    page.route("**/status", lambda route: route.abort(reason))
    expect(page.locator("#state")).to_have_text("not reachable")
    ended = {"aborted": "net::ERR_ABORTED", "connectionreset": "net::ERR_CONNECTION_RESET"}
    assert f"{page.url}status: {ended[reason]}" in problems


def test_a_token_is_asked_for_and_remembered(browser: Browser) -> None:
    token = "0123456789abcdef"
    with running_server(HeldSession(), token=token) as running:  # type: ignore[arg-type]
        page = browser.new_page(viewport=PHONE)
        page.goto(running.url)
        page.get_by_label("This server asks for a token").fill("not the token at all")
        page.get_by_role("button", name="Enter").click()
        expect(page.locator("#door-error")).to_have_text("That is not the token.")
        expect(page.get_by_role("heading", name="Stages")).to_be_hidden()
        _keep(page, "page-token")
        assert _violations(page) == []
        page.get_by_label("This server asks for a token").fill(token)
        page.get_by_role("button", name="Enter").click()
        expect(page.locator("#state")).to_have_text("running")
        page.reload()
        expect(page.locator("#state")).to_have_text("running")
        page.close()
