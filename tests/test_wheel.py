"""The wheel holds every module of both roots, and each can be imported where only the wheel holds debride."""

from __future__ import annotations

import subprocess
import sysconfig
import venv
import zipfile

from conftest import ROOTS

IMPORT_ALL = """
import importlib, sys
home, *modules = sys.argv[1:]
for name in modules:
    module = importlib.import_module(name)
    if not module.__file__.startswith(home):
        sys.exit(f"{name} came from {module.__file__}")
"""


DATA = (ROOTS["debride"] / "debride/py.typed", *(ROOTS["debride"] / "debride/serve/http/static").glob("*"))


def source_files() -> list[str]:
    """The Python files of both roots, as a wheel names them."""
    return sorted(
        path.relative_to(root).as_posix() for package, root in ROOTS.items() for path in (root / package).rglob("*.py")
    )


def test_the_wheel_holds_every_module_the_type_marker_the_page_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    packed = [name for name in names if ".dist-info/" not in name]
    assert sorted(packed) == sorted(
        [*source_files(), *(path.relative_to(ROOTS["debride"]).as_posix() for path in DATA)]
    )


def test_the_wheel_declares_the_command_and_the_adapters(wheel):
    archive = zipfile.ZipFile(wheel)
    (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/entry_points.txt"))
    text = archive.read(name).decode()
    assert "debride = debride.cli:main" in text
    assert "[debride.adapters]" in text


def test_every_module_of_the_wheel_imports_in_a_clean_environment(wheel, tmp_path):
    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    zipfile.ZipFile(wheel).extractall(site)
    # Third-party packages come from the running environment. Paths named in a .pth file come after this site, and
    # .pth files there are not followed: an editable install of debride stays out of sight.
    (site / "third_party.pth").write_text("\n".join({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}))
    modules = [name.removesuffix(".py").replace("/", ".").removesuffix(".__init__") for name in source_files()]
    run = subprocess.run(
        [tmp_path / "venv/bin/python", "-I", "-c", IMPORT_ALL, str(site), *modules],
        check=False, cwd=tmp_path, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
