"""What was trained and what lies there now are tied together by digests: files, splits, configurations, scores."""

import json
import os
import time
from pathlib import Path

import pytest

from graft.runtime import digests
from graft.runtime.checkpoint import sha256


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("GRAFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def old(file: Path) -> None:
    """As if it had last been written an hour ago."""
    os.utime(file, (time.time() - 3600,) * 2)


def test_a_file_is_read_once_and_again_when_it_changes(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(digests, "YOUNG", -60.0)  # ctime cannot be set back
    read = []
    monkeypatch.setattr(digests, "sha256", lambda file: read.append(file.name) or sha256(file))
    files = [tmp_path / "a.bin", tmp_path / "b.bin"]
    for file in files:
        file.write_bytes(b"1" * 100)
        old(file)
    first = digests.of_files(files)
    assert first == [sha256(file) for file in files] and read == ["a.bin", "b.bin"]
    assert digests.of_files(files[::-1]) == first[::-1] and len(read) == 2
    before = files[0].stat()
    files[0].write_bytes(b"1" * 50 + b"2" + b"1" * 49)
    os.utime(files[0], ns=(before.st_atime_ns, before.st_mtime_ns))  # size and mtime as they were
    assert digests.of_files(files) == [sha256(files[0]), first[1]] and read[2:] == ["a.bin"]


def test_young_files_and_damaged_memories_are_read_again(tmp_path, cache, monkeypatch):
    file = tmp_path / "a.bin"
    file.write_bytes(b"1")
    assert digests.of_files([file]) == [sha256(file)]
    assert not list(cache.glob("digests/*.json")), "changed a moment ago: it could change again within the clock's tick"
    monkeypatch.setattr(digests, "YOUNG", -60.0)
    digests.of_files([file])
    memory, = cache.glob("digests/*.json")
    for text in ("{", "[]", json.dumps({"a.bin": 3}), json.dumps({"a.bin": [1, 2]})):
        memory.write_text(text)
        assert digests.of_files([file]) == [sha256(file)]
