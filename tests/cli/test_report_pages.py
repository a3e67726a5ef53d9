"""The report of each of the six models in a real browser: every number is the plan's."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

import six_small
from cutset.cluster.cluster_file import load_cluster
from cutset.planning.plan import plan_to_json
from cutset.workflow import PlanRequest, plan_stages, prepare_model, split_model
from six_models import SIX

from .conftest import Cutset

CHROMIUM = shutil.which("chromium")
ARTIFACTS = Path(__file__).parents[2] / "build" / "test-artifacts" / "report"
MODELS = six_small.__file__
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
NUM_SHOWN = 10  # micro-batches in the timeline

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="needs Debian's chromium (apt-get install chromium)"
)

CLUSTER = """
[[device]]
name = "big"
memory_bytes = "2 GiB"
[[device]]
name = "small"
speed = 0.5
memory_bytes = "1 GiB"
[[device]]
name = "spare"
speed = 0.25
[link]
bandwidth = "1 Gbit/s"
latency = "1 ms"
"""


class Shown(NamedTuple):
    """A page that is open, and the documents it was made from."""

    page: Page
    plan: dict[str, Any]
    verification: dict[str, Any]

    @property
    def stages(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.plan["stages"]
        return found

    @property
    def cuts(self) -> list[str]:
        return [stage["last"] for stage in self.stages[:-1]]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cluster") / "cluster.toml"
    path.write_text(CLUSTER)
    return path


def _documents(
    cutset: Cutset, name: str, num_stages: int | None, cluster: Path | None, folder: Path
) -> dict[str, Any]:
    """Splits and draws a model; returns the plan's JSON and that of the verification."""
    prepared = prepare_model(f"{MODELS}:{name}")
    request = PlanRequest(num_stages=num_stages, cluster=cluster and load_cluster(cluster))
    plan = plan_stages(prepared, request)
    bundle = split_model(prepared, plan, folder / f"{name}.cutset")
    verification = bundle.verification.as_json()
    (folder / "verification.json").write_text(json.dumps(verification))
    report = cutset(
        *("report", bundle.directory, "-o", folder / "page.html"),
        *("--verification", folder / "verification.json"),
        *(("--cluster", cluster) if cluster else ()),
    )
    assert report.code == 0, report.err
    return {"plan": json.loads(plan_to_json(plan)), "verification": verification}


@pytest.fixture(scope="module", params=SIX)
def shown(
    request: pytest.FixtureRequest,
    cutset: Cutset,
    cluster: Path,
    browser: Browser,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Shown]:
    """One of the six, on equal devices or on unequal ones behind links; its page is open.

    At the end nothing may have been complained about, and nothing asked from a network.
    """
    name = request.param
    folder = tmp_path_factory.mktemp(name)
    if name in ("mobilenet_v2", "inception_v3"):
        documents = _documents(cutset, name, None, cluster, folder)
    else:
        documents = _documents(cutset, name, 3 if name == "resnet50" else 2, None, folder)
    page = browser.new_page(viewport=DESKTOP)
    page.set_default_timeout(30_000)
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda asked: problems.append(asked.url) if _is_remote(asked.url) else None)
    page.goto((folder / "page.html").as_uri())
    page.wait_for_selector("html[data-drawn]")
    ARTIFACTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=ARTIFACTS / f"{name}-desktop.png", full_page=True)
    yield Shown(page, **documents)
    page.close()
    assert problems == []


def _is_remote(url: str) -> bool:
    return not url.startswith(("file:", "data:"))


def _cells(page: Page, table: str) -> list[list[Locator]]:
    """The cells of every row of a table's body, row heading first."""
    rows = page.locator(f"#{table} tbody tr").all()
    return [row.locator("th, td").all() for row in rows]


def _number(cell: Locator) -> float:
    """The exact number behind what a cell says."""
    return float(cell.locator("data").get_attribute("value") or "nan")


def _answer(page: Page, start: str) -> str:
    return page.locator("#answers article", has_text=start).inner_text()


def _marks(page: Page, drawing: str, says: str) -> list[str]:
    """What the marks of a drawing say to a screen reader, those that say `says`."""
    found: list[str] = page.locator(f"#drawing-{drawing} [aria-label*='{says}']").evaluate_all(
        "marks => marks.map((mark) => mark.getAttribute('aria-label'))"
    )
    return found


def _chosen_on(page: Page, drawing: str) -> list[str]:
    marks = _marks(page, drawing, "chosen: true")
    return list(dict.fromkeys(re.findall(r"cut after: ([^;]*)", each)[0] for each in marks))


def test_the_strip_is_the_plan(shown: Shown) -> None:
    page = shown.page
    answer = _answer(page, "Where is it cut")
    assert all(f"after {cut}" in answer for cut in shown.cuts)
    assert "proven the best" in answer
    assert _chosen_on(page, "strip") == shown.cuts

    rows = _cells(page, "stages")
    assert len(rows) == len(shown.stages)
    for cells, stage in zip(rows, shown.stages, strict=True):
        words = [cell.inner_text() for cell in cells]
        assert words[1:4] == [stage["device"], stage["first"], stage["last"]]
        assert [_number(cells[k]) for k in (4, 5, 6, 7)] == [
            stage["compute_s"],
            stage["output_bytes_per_sample"],
            stage["weight_bytes"],
            stage["flops"],
        ]

    page.locator("summary", has_text="parts and the").click()
    parts = _cells(page, "parts")
    flops = [0] * len(shown.stages)
    for cells in parts:
        flops[int(cells[1].inner_text())] += int(_number(cells[7]))
    assert flops == [stage["flops"] for stage in shown.stages]
    page.locator("summary", has_text="refused places").click()
    expect(page.locator("#refused tbody tr").first).to_be_visible()


def test_pointing_tells_names_and_reasons(shown: Shown) -> None:
    page = shown.page
    tip = page.locator("#vg-tooltip-element")
    strip = page.locator("#drawing-strip")
    strip.scroll_into_view_if_needed()
    strip.locator("[aria-label*='multiply-adds:']").first.hover()
    expect(tip).to_contain_text("multiply-adds")
    expect(tip).to_contain_text("parameters")
    strip.locator("[aria-label*='because:']").first.hover(force=True)
    expect(tip).to_contain_text("because")
    strip.locator("[aria-label*='chosen: true']").first.hover(force=True)
    expect(tip).to_contain_text(shown.cuts[0])


def test_the_load_is_the_plan(shown: Shown) -> None:
    page = shown.page
    rows = _cells(page, "loads")
    slowest = max(shown.stages, key=lambda stage: stage["compute_s"])
    for cells, stage in zip(rows, shown.stages, strict=True):
        assert ("slowest" in cells[0].inner_text()) == (stage is slowest)
        keys = ("receive_s", "compute_s", "send_s")
        assert [_number(cells[k]) for k in (2, 3, 4)] == [stage.get(key, 0.0) for key in keys]
        assert _number(cells[6]) == stage["memory_bytes"]
        limit = stage.get("memory_limit_bytes")
        if limit is None:
            assert cells[7].inner_text() == "no limit"
        else:
            assert _number(cells[7]) == limit
    assert f"Stage {slowest['index']} on {slowest['device']}" in _answer(page, "slowest")

    lines = [mark for mark in _marks(page, "load", "line: ") if "stage:" not in mark]
    found = {
        name: float(value)
        for value, name in (re.findall(r"ms: ([\d.]+); line: (\w+)", line)[0] for line in lines)
    }
    assert found["period"] == pytest.approx(1e3 * shown.plan["period_s"], rel=1e-6)
    assert found["bound"] == pytest.approx(1e3 * shown.plan["bound_s"], rel=1e-6)

    by_count = {each["num_stages"]: each for each in shown.plan["alternatives"]}
    count = len(shown.stages) + 1
    answer = _answer(page, "device bring")
    assert {3: "third", 4: "fourth"}[count] in answer
    if "period_s" in by_count[count]:
        assert all(cut in answer for cut in by_count[count]["last"][:-1])
    assert f"Not split, on {by_count[1]['devices'][0]}" in answer
    bars = _marks(page, "devices", "rows a second: ")
    shown_plans = sum(each.get("period_s") is not None for each in by_count.values()) + 1
    assert len([bar for bar in bars if "plan:" in bar]) == shown_plans


def test_every_other_plan_can_be_seen_on_the_strip(shown: Shown) -> None:
    page = shown.page
    for alternative in shown.plan["alternatives"]:
        row = page.locator(f"#plans tr[data-plan='stages-{alternative['num_stages']}']")
        if alternative.get("period_s") is not None:
            numbers = [float(d.get_attribute("value") or "nan") for d in row.locator("data").all()]
            assert numbers[0] == alternative["period_s"]
            assert numbers[-1] == alternative["latency_s"]
    groups = _marks(page, "front", "kind: ")
    for kind in ("this plan", "even by layers", "even by parameters", "accelerate"):
        assert any(f"kind: {kind}" in mark for mark in groups), kind

    for button in page.locator("button[data-plan]").all():
        button.click()
        expect(button).to_have_attribute("aria-pressed", "true")
        row = page.locator(f"#plans tr[data-plan='{button.get_attribute('data-plan')}']")
        cut = row.locator("td").first.inner_text()
        expect(page.locator("#shown")).to_contain_text(
            "not cut" if cut == "nowhere" else f"cut after {cut}"
        )
        assert _chosen_on(page, "choice") == ([] if cut == "nowhere" else cut.split(", "))

    # A point of the drawing does the same as its button; where several coincide, the innermost.
    point = page.locator("#drawing-front path[aria-label*='plan: Do not split']")
    point.scroll_into_view_if_needed()
    box = point.bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    expect(page.locator("#shown")).to_contain_text("not cut")
    assert _chosen_on(page, "strip") == shown.cuts


def test_the_timeline_is_the_simulated_plan(shown: Shown) -> None:
    page = shown.page
    plan = shown.plan
    total_s = plan["latency_s"] + (NUM_SHOWN - 1) * plan["period_s"]
    shares = [
        float(d.get_attribute("value") or "nan") for d in page.locator("#timeline data").all()
    ]
    assert shares == pytest.approx(
        [NUM_SHOWN * stage["compute_s"] / total_s for stage in shown.stages], rel=1e-6
    )
    computing = _marks(page, "predicted", "kind: compute")
    assert len(computing) == NUM_SHOWN * len(shown.stages)
    bubbles = [
        float(re.findall(r"; for ms: ([\d.]+)", mark)[0])
        for mark in _marks(page, "predicted", "nothing to do on: stage 0")
    ]
    idle_s = total_s - NUM_SHOWN * shown.stages[0]["compute_s"]
    assert sum(bubbles) == pytest.approx(1e3 * idle_s, rel=1e-2, abs=1e-6)


def test_the_proof_is_what_verify_found(shown: Shown) -> None:
    page = shown.page
    checks = shown.verification["checks"]
    expect(page.locator(".verdict")).to_have_text(
        f"Verified: {len(checks)} of {len(checks)} checks passed."
    )
    assert f"Yes: all {len(checks)} checks passed" in _answer(page, "correct")
    words = [[cell.inner_text() for cell in cells] for cells in _cells(page, "checks")]
    assert words == [[check["name"], "ok", check["detail"]] for check in checks]
    boundaries = _cells(page, "boundaries")
    assert [cells[1].inner_text() for cells in boundaries] == [s["last"] for s in shown.stages]
    assert all("float32[batch" in cells[3].inner_text() for cells in boundaries)
    assert all("bit for bit" in cells[5].inner_text() for cells in boundaries)
    gain = page.locator("#gain data").get_attribute("value")
    assert 0 <= float(gain or "nan") < 1
    page.locator("summary", has_text="Files and versions").click()
    hashes = page.locator("#files code").all_inner_texts()
    assert hashes
    assert all(re.fullmatch("[0-9a-f]{64}", each) for each in hashes)


def test_a_phone_has_no_sideways_scroll(shown: Shown, request: pytest.FixtureRequest) -> None:
    page = shown.page
    page.set_viewport_size(PHONE)
    page.reload()
    page.wait_for_selector("html[data-drawn]")
    name = request.node.callspec.params["shown"]
    page.screenshot(path=ARTIFACTS / f"{name}-phone.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    for drawing in page.locator(".drawing svg").all():
        box = drawing.bounding_box()
        assert box is not None
        assert box["x"] + box["width"] <= PHONE["width"]
    page.set_viewport_size(DESKTOP)


@pytest.fixture(scope="module")
def measured_page(
    cutset: Cutset, small_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """A small bundle's page with a bench run and its trace, and what bench said."""
    folder = tmp_path_factory.mktemp("measured")
    bench = cutset(
        *("bench", small_bundle, "--seconds", 0.5, "--backend", "onnxruntime"),
        *("--trace", folder / "trace.json", "--json"),
    )
    assert bench.code == 0, bench.err
    (folder / "bench.json").write_text(bench.out)
    report = cutset(
        *("report", small_bundle, "-o", folder / "page.html"),
        *("--bench", folder / "bench.json", "--trace", folder / "trace.json"),
    )
    assert report.code == 0, report.err
    return folder / "page.html", json.loads(bench.out)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_what_was_measured_stands_below_what_was_predicted(
    browser: Browser, measured_page: tuple[Path, dict[str, Any]], scheme: str
) -> None:
    path, bench = measured_page
    page = browser.new_page(viewport=DESKTOP, color_scheme=scheme)  # type: ignore[arg-type]
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text))
    page.goto(path.as_uri())
    page.wait_for_selector(f"html[data-drawn={scheme}]")
    above, below = (page.locator(f"#drawing-{each}").bounding_box() for each in _TIMELINES)
    assert above is not None
    assert below is not None
    assert above["y"] + above["height"] <= below["y"]
    assert len(_marks(page, "measured", "kind: compute")) >= 2 * NUM_SHOWN
    measured_s = [_number(cells[6]) for cells in _cells(page, "loads")]
    assert measured_s == pytest.approx(
        [stage["busy"] * bench["period_s"] for stage in bench["stages"]]
    )
    found = Axe().run(page).response["violations"]
    assert [f"{each['id']}: {node['html']}" for each in found for node in each["nodes"]] == []
    page.screenshot(path=ARTIFACTS / f"measured-{scheme}.png", full_page=True)
    page.close()
    assert problems == []


_TIMELINES = ("predicted", "measured")
