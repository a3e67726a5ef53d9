"""A node's cache keeps within its limit, and what is in use."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cutset.bundles.cache import ShardCache
from cutset.bundles.file_entries import FileEntry
from cutset.bundles.manifest import manifest_file
from cutset.bundles.open import open_bundle
from cutset.errors import BundleError

_HOLDER = """
import sys
from pathlib import Path
from cutset.bundles.cache import ShardCache
cache = ShardCache(Path(sys.argv[1]))
cache.stage_folder(sys.argv[2], int(sys.argv[3]))
print("holds", flush=True)
sys.stdin.read()
"""


def _put(cache: ShardCache, entry: FileEntry, data: bytes) -> None:
    incoming = cache.receive(entry)
    incoming.append(data)
    incoming.finish()


def _some(letter: bytes, num_bytes: int) -> tuple[FileEntry, bytes]:
    data = letter * num_bytes
    digest = hashlib.sha256(data).hexdigest()
    return FileEntry(path=f"stage-0/{letter.decode()}", num_bytes=num_bytes, sha256=digest), data


def _put_stage(cache: ShardCache, bundle: Path, stage: int) -> Path:
    entries = [manifest_file(bundle)]
    files = open_bundle(bundle).manifest.files
    entries += [entry for entry in files if entry.path.startswith(f"stage-{stage}/")]
    for entry in cache.missing(entries):
        _put(cache, entry, (bundle / entry.path).read_bytes())
    return cache.stage_folder(manifest_file(bundle).sha256, stage)


def _use_bytes(root: Path) -> int:
    return sum(path.stat().st_size for path in (root / "objects").iterdir())


def test_the_stage_that_was_used_longest_ago_makes_room(tmp_path: Path, good_bundle: Path) -> None:
    root = tmp_path / "cache"
    first = _put_stage(ShardCache(root), good_bundle, 0)
    second = _put_stage(ShardCache(root), good_bundle, 1)
    os.utime(second, (1_000_000_000, 1_000_000_000))
    limit = _use_bytes(root)
    entry, data = _some(b"x", 10)
    _put(ShardCache(root, limit_bytes=limit), entry, data)
    assert first.is_dir()
    assert not second.exists()
    assert _use_bytes(root) <= limit
    assert ShardCache(root).missing([entry]) == ()
    assert list((root / "incoming").iterdir()) == []
    # It comes again when it is wanted again.
    _put_stage(ShardCache(root), good_bundle, 1)
    open_bundle(second, stages=(1,))


def test_a_loose_file_goes_before_any_stage(tmp_path: Path, good_bundle: Path) -> None:
    root = tmp_path / "cache"
    stage = _put_stage(ShardCache(root), good_bundle, 0)
    old, old_data = _some(b"o", 50)
    _put(ShardCache(root), old, old_data)
    new, new_data = _some(b"n", 50)
    cache = ShardCache(root, limit_bytes=_use_bytes(root))
    _put(cache, new, new_data)
    assert stage.is_dir()
    assert cache.missing([old, new]) == (old,)


def test_what_another_process_uses_stays_until_it_ends(tmp_path: Path, good_bundle: Path) -> None:
    root = tmp_path / "cache"
    stage = _put_stage(ShardCache(root), good_bundle, 0)
    command = [sys.executable, "-c", _HOLDER, str(root), manifest_file(good_bundle).sha256, "0"]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"holds\n"
    limit = _use_bytes(root)
    entry, data = _some(b"x", 10)
    cache = ShardCache(root, limit_bytes=limit)
    with pytest.raises(BundleError) as caught:
        cache.receive(entry)
    assert f"may take {limit:,} bytes, of which {limit:,} are in use" in str(caught.value)
    assert "CUTSET_CACHE_LIMIT" in str(caught.value)
    open_bundle(stage, stages=(0,))
    holder.kill()
    holder.communicate()
    _put(cache, entry, data)
    assert not stage.exists()


def test_what_a_stage_in_the_making_has_received_stays(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    entry, data = _some(b"a", 100)
    making, other = ShardCache(root, limit_bytes=150), ShardCache(root, limit_bytes=150)
    _put(making, entry, data)
    more, _ = _some(b"b", 100)
    with pytest.raises(BundleError, match="100 are in use"):
        other.receive(more)
    # A damaged file that came a second time is kept as the first one was.
    making.object_path(entry.sha256).write_bytes(b"A" * 100)
    assert making.missing([entry]) == (entry,)
    _put(making, entry, data)
    with pytest.raises(BundleError, match="100 are in use"):
        other.receive(more)
    assert other.missing([entry]) == ()


def test_the_limit_is_a_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUTSET_CACHE_LIMIT", "1 kB")
    entry, _ = _some(b"x", 1001)
    with pytest.raises(BundleError, match="may take 1,000 bytes"):
        ShardCache(tmp_path / "cache").receive(entry)
    monkeypatch.setenv("CUTSET_CACHE_LIMIT", "much")
    with pytest.raises(BundleError, match="CUTSET_CACHE_LIMIT says how large the cache may be"):
        ShardCache(tmp_path / "cache")
