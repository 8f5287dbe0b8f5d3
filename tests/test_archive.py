"""Zip archives from strangers: bombs, names that lead out, names that repeat, entries that overlap."""

from __future__ import annotations

import copy
import os
import zipfile

import pytest

from debride.errors import ModelError
from debride_adapters.archive import check_zip


def packed(path, entries):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries:
            archive.writestr(name, data)
    return path


def test_an_honest_archive_tells_its_names_in_order(tmp_path):
    path = packed(tmp_path / "m.zip", [("b/weights", os.urandom(1 << 16)), ("a", b"x" * (1 << 20))])
    assert check_zip(path) == ("b/weights", "a")


def test_what_would_unpack_to_far_more_than_it_holds_is_a_bomb(tmp_path):
    path = packed(tmp_path / "m.zip", [("weights", bytes(80 << 20))])
    with pytest.raises(ModelError, match=r"m\.zip: .* bytes that would unpack to 83,886,080; taken for a zip bomb"):
        check_zip(path)


def test_entries_that_share_their_bytes_count_once(tmp_path):
    # 4 MiB that shrink a hundredfold: harmless, unless a hundred names stand for the same bytes.
    data = os.urandom(40 << 10) + bytes(4 << 20)
    with zipfile.ZipFile(tmp_path / "m.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("weights", data)
        for number in range(100):
            twin = copy.copy(archive.infolist()[0])
            twin.filename = f"weights{number}"
            archive.filelist.append(twin)
    with pytest.raises(ModelError, match="taken for a zip bomb"):
        check_zip(tmp_path / "m.zip")


@pytest.mark.parametrize("name", ["../out", "/etc/out", "a/../../out", "a\\..\\out"])
def test_names_that_lead_out_are_refused(tmp_path, name):
    with pytest.raises(ModelError, match="leads out of it"):
        check_zip(packed(tmp_path / "m.zip", [(name, b"x")]))


def test_a_name_that_comes_twice_is_refused(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate name"):
        path = packed(tmp_path / "m.zip", [("config.json", b"x"), ("config.json", b"y")])
    with pytest.raises(ModelError, match="holds a file twice"):
        check_zip(path)


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"no archive"])
def test_what_is_no_archive_is_refused(tmp_path, data):
    (tmp_path / "m.zip").write_bytes(data)
    with pytest.raises(ModelError, match=r"m\.zip: a damaged archive"):
        check_zip(tmp_path / "m.zip")
