"""The documentation site builds without a warning, and no link inside it is dead."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from cutset.serve.settings import ServeSettings

ROOT = Path(__file__).parents[2]


class _Links(HTMLParser):
    """The targets and anchors of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.anchors: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.anchors |= {values[key] or "" for key in ("id", "name") if key in values}
        self.targets += [values[key] or "" for key in ("href", "src") if key in values]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stderr, done.stderr
    return folder


def test_no_link_inside_is_dead(site: Path) -> None:
    pages: dict[Path, _Links] = {}
    for path in site.rglob("*.html"):
        pages[path] = _Links()
        pages[path].feed(path.read_text(encoding="utf-8"))
    assert len(pages) > 10
    dead = []
    for path, links in pages.items():
        if path.name == "404.html":  # its links begin at the site's root, wherever that is
            continue
        for target in links.targets:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            file = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if file.is_dir():
                file /= "index.html"
            anchors = pages[file].anchors if file in pages else {unquote(parts.fragment)}
            if not file.is_file() or (parts.fragment and unquote(parts.fragment) not in anchors):
                dead.append(f"{path.relative_to(site)}: {target}")
    assert dead == []


def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    loaded = re.compile(r"<(?:script|img|link)[^>]+(?:src|href)=\"?(https?://[^\s\">]+)")
    found = {
        match
        for path in site.rglob("*.html")
        for match in loaded.findall(path.read_text(encoding="utf-8"))
    }
    assert found == set()


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"])
def test_no_link_of_a_page_outside_the_site_is_dead(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", text) + re.findall(r'(?:src|href)="([^"#]+)', text)
    dead = [each for each in targets if "://" not in each and not (ROOT / each).exists()]
    assert dead == []
    for page, anchor in re.findall(r"\]\(([^)#]+\.md)#([^)]+)\)", text):
        titles = re.findall(r"^#+ (.+)$", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE)
        anchors = {re.sub(r"[^a-z0-9 -]", "", each.lower()).replace(" ", "-") for each in titles}
        assert anchor in anchors, page


def test_the_server_listens_where_the_security_policy_says() -> None:
    settings = ServeSettings()
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    assert f"`cutset serve` listens on {settings.host}:{settings.port};" in text
