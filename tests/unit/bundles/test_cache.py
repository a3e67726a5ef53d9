from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import pytest

from cutset.bundles.cache import ShardCache, default_cache_folder
from cutset.bundles.file_entries import FileEntry
from cutset.bundles.open import open_bundle
from cutset.bundles.strict_json import MANIFEST_NAME
from cutset.errors import BundleError, ChecksumMismatch


def _entry(data: bytes, path: str = "stage-0/model.onnx") -> FileEntry:
    return FileEntry(path=path, num_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def _files_of(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def cache(tmp_path: Path) -> ShardCache:
    return ShardCache(tmp_path / "cache")


def _put(cache: ShardCache, entry: FileEntry, data: bytes) -> None:
    incoming = cache.receive(entry)
    for start in range(0, len(data), 7):
        incoming.append(data[start : start + 7])
    incoming.finish()


def test_a_file_is_kept_by_its_hash_and_is_missing_until_then(cache: ShardCache) -> None:
    entry = _entry(b"some weights and more")
    assert cache.missing([entry]) == (entry,)
    _put(cache, entry, b"some weights and more")
    assert cache.missing([entry]) == ()
    assert cache.object_path(entry.sha256).read_bytes() == b"some weights and more"


@pytest.mark.parametrize("sent", [b"some weight", b"SOME WEIGHTS", b"some weights, too many"])
def test_what_does_not_arrive_whole_leaves_nothing(
    cache: ShardCache, tmp_path: Path, sent: bytes
) -> None:
    entry = _entry(b"some weights")
    incoming = cache.receive(entry)

    def send() -> None:
        incoming.append(sent)
        incoming.finish()

    with pytest.raises(ChecksumMismatch) as caught:
        send()
    assert caught.value.expected == entry.sha256
    incoming.abandon()
    assert _files_of(tmp_path / "cache") == set()


def test_a_damaged_file_is_missing_again(cache: ShardCache) -> None:
    entry = _entry(b"some weights")
    _put(cache, entry, b"some weights")
    cache.object_path(entry.sha256).write_bytes(b"SOME WEIGHTS")
    assert cache.missing([entry]) == (entry,)


@pytest.mark.parametrize("name", ["../../etc/passwd", "AB" * 32, "", "0" * 63])
def test_a_hash_that_is_none_is_no_path(cache: ShardCache, name: str) -> None:
    with pytest.raises(BundleError, match="is no sha256"):
        cache.receive(FileEntry(path="x", num_bytes=1, sha256=name))


def test_no_room_is_said_before_anything_is_sent(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "cache", limit_bytes=1 << 62)
    entry = FileEntry(path="stage-0/model.onnx", num_bytes=1 << 60, sha256="0" * 64)
    with pytest.raises(BundleError, match=r"make room there, or name another folder"):
        cache.receive(entry)
    assert _files_of(tmp_path / "cache") == set()


def test_a_stage_folder_is_a_bundle_of_one_stage(
    cache: ShardCache, good_bundle: Path, tmp_path: Path
) -> None:
    manifest = (good_bundle / MANIFEST_NAME).read_bytes()
    own = _entry(manifest, MANIFEST_NAME)
    _put(cache, own, manifest)
    opened = open_bundle(good_bundle)
    files = [entry for entry in opened.manifest.files if entry.path.startswith("stage-1/")]
    with pytest.raises(BundleError, match="is not in the cache"):
        cache.stage_folder(own.sha256, 1)
    for entry in files:
        _put(cache, entry, (good_bundle / entry.path).read_bytes())
    folder = cache.stage_folder(own.sha256, 1)
    assert open_bundle(folder, stages=(1,)).manifest == opened.manifest
    assert _files_of(folder) == {MANIFEST_NAME, *(Path(entry.path).name for entry in files)}
    assert cache.stage_folder(own.sha256, 1) == folder
    # Spoilt from outside, it is made anew.
    shutil.rmtree(folder / "stage-1")
    assert cache.stage_folder(own.sha256, 1) == folder
    open_bundle(folder, stages=(1,))
    with pytest.raises(BundleError, match="no stage 9"):
        cache.stage_folder(own.sha256, 9)
    assert list((tmp_path / "cache" / "incoming").iterdir()) == []


def test_leftovers_of_yesterday_are_removed(cache: ShardCache, tmp_path: Path) -> None:
    old = tmp_path / "cache" / "incoming" / "old"
    new = tmp_path / "cache" / "incoming" / "new"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    ShardCache(tmp_path / "cache")
    assert not old.exists()
    assert new.exists()


def test_what_is_being_received_outlives_a_clock_that_jumps(
    cache: ShardCache, tmp_path: Path
) -> None:
    entry = _entry(b"some weights")
    incoming = cache.receive(entry)
    incoming.append(b"some ")
    (path,) = (tmp_path / "cache" / "incoming").iterdir()
    for jumped_s in (0, 2**32):  # the clock went on, or back, by decades
        os.utime(path, (jumped_s, jumped_s))
        ShardCache(tmp_path / "cache")
        assert path.exists()
    incoming.append(b"weights")
    incoming.finish()
    assert cache.missing([entry]) == ()


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("XDG_CACHE_HOME", "CUTSET_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(BundleError, match="has no home; name one in CUTSET_CACHE_DIR"):
        default_cache_folder()


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("CUTSET_CACHE_DIR", raising=False)
    assert default_cache_folder() == tmp_path / "cutset"
    monkeypatch.setenv("CUTSET_CACHE_DIR", str(tmp_path / "other"))
    assert default_cache_folder() == tmp_path / "other"


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(BundleError, match="takes no more"):
        ShardCache(tmp_path / "file" / "cache")


@pytest.mark.parametrize("inside", ["", "objects", "stages", "incoming"])
def test_a_folder_that_others_can_fill_is_refused(tmp_path: Path, inside: str) -> None:
    root, elsewhere = tmp_path / "cache", tmp_path / "elsewhere"
    ShardCache(root)
    (root / inside).chmod(0o777)
    with pytest.raises(BundleError, match="written to by everybody") as caught:
        ShardCache(root)
    assert caught.value.path == str(root / inside)
    (root / inside).chmod(0o700)
    (root / inside).rename(elsewhere)
    (root / inside).symlink_to(elsewhere)
    with pytest.raises(BundleError, match="is a symbolic link"):
        ShardCache(root)


def test_a_link_that_leads_nowhere_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    ShardCache(root)
    (root / "stages").rmdir()
    (root / "stages").symlink_to(tmp_path / "nothing")
    with pytest.raises(BundleError, match="is a symbolic link"):
        ShardCache(root)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no users")
def test_another_users_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ShardCache(tmp_path / "cache")
    owner = (tmp_path / "cache").stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    if owner == 0:
        os.chown(tmp_path / "cache", 12345, -1)
    with pytest.raises(BundleError, match="belongs to user"):
        ShardCache(tmp_path / "cache")


def test_it_is_made_for_its_user_alone(tmp_path: Path) -> None:
    ShardCache(tmp_path / "a" / "cache")
    assert (tmp_path / "a" / "cache").stat().st_mode & 0o777 == 0o700
