"""Makes the pictures of the documentation with the tool itself: ``make pictures``.

The strips are drawn from multiply-adds and come out the same everywhere. The page's picture is a
photograph of a report in Chromium, with times that were measured on the machine at hand.
"""

from __future__ import annotations

import contextlib
import io
import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from cutset.cli import main

IMAGES = Path(__file__).parent / "images"
CLUSTER = Path(__file__).parents[1] / "examples" / "cluster.toml"
SIX = ("alexnet", "vgg16", "resnet18", "resnet50", "mobilenet_v2", "inception_v3")
SHOWN = "mobilenet_v2"
WIDTH, HEIGHT = 1280, 800


def cutset(*arguments: object) -> str:
    """What a command prints; ends this program where the command fails."""
    out = io.StringIO()
    sys.argv = ["cutset", *map(str, arguments)]
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        main()
    if not out.getvalue():
        sys.exit(f"failed: {' '.join(sys.argv)}")
    return out.getvalue()


def draw_strips(folder: Path) -> None:
    """The six models as strips, in two stages of equal work."""
    for name in SIX:
        plan = folder / f"{name}.json"
        plan.write_text(cutset("plan", name, "--stages", 2, "--cost", "flops", "--json"))
        cutset("report", plan, "--model", name, "--svg", folder / name, "--json")
        shutil.copy(folder / name / "strip.svg", IMAGES / f"strip-{name}.svg")


def draw_report(folder: Path) -> None:
    """A model on two equal devices: drawings, and a photograph of the page's first part.

    The front is that of the example's unequal devices behind links, which have something to trade.
    """
    profile, bundle = folder / "profile.json", folder / "shown.cutset"
    cutset("profile", SHOWN, "-o", profile, "--json")
    known = ("--weights", "random:0", "--profile", profile)
    cutset("split", SHOWN, *known, "--stages", 2, "-o", bundle, "--json")
    (folder / "v.json").write_text(cutset("verify", bundle, "--json"))
    bench = cutset("bench", bundle, "--seconds", 3, "--trace", folder / "t.json", "--json")
    (folder / "b.json").write_text(bench)
    page = folder / "page.html"
    documents = (
        *("--verification", folder / "v.json", "--profile", profile),
        *("--bench", folder / "b.json", "--trace", folder / "t.json"),
    )
    cutset("report", bundle, "-o", page, "--svg", folder / "svg", *documents, "--json")
    for name in ("load", "predicted", "measured"):
        shutil.copy(folder / "svg" / f"{name}.svg", IMAGES / f"report-{name}.svg")
    where = ("--profile", profile, "--cluster", CLUSTER)
    (folder / "unequal.json").write_text(cutset("plan", SHOWN, *where, "--json"))
    unequal = (folder / "unequal.json", "--model", SHOWN, *where)
    cutset("report", *unequal, "--svg", folder / "unequal", "--json")
    shutil.copy(folder / "unequal" / "front.svg", IMAGES / "report-front.svg")
    photograph(page)


def photograph(page: Path) -> None:
    """The top of a page, as it stands in the README."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        shot = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        shot.goto(page.as_uri())
        shot.wait_for_selector("html[data-drawn]")
        png = shot.screenshot()
        browser.close()
    with Image.open(io.BytesIO(png)) as image:
        few = image.convert("RGB").quantize(128, method=Image.Quantize.MAXCOVERAGE)
        few.save(IMAGES / "report.png", optimize=True)


if __name__ == "__main__":
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as made:
        draw_strips(Path(made))
        draw_report(Path(made))
    for picture in sorted(IMAGES.iterdir()):
        print(f"{picture.stat().st_size:8,} {picture.name}")
