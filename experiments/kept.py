"""Results kept one by one in a run folder, so that a run that is killed goes on with what is missing."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

Result = dict[str, object]  # what JSON holds


@dataclass(frozen=True)
class Kept:
    """One JSON file for each result, with the settings it was computed with."""

    folder: Path

    @classmethod
    def open(cls, folder: Path, resume: bool) -> Kept:
        """The folder, made if need be. FileExistsError: it holds something, and this is not to resume."""
        if folder.exists() and any(folder.iterdir()) and not resume:
            raise FileExistsError(f"{folder} is not empty; choose another --out, or --resume")
        folder.mkdir(parents=True, exist_ok=True)
        return cls(folder)

    def load(self, name: str, settings: str) -> Result | None:
        """The result of that name, None where there is none; ValueError: it is of other settings."""
        file = self._file(name)
        if not file.exists():
            return None
        result = json.loads(file.read_text())
        if result.pop("settings", None) != settings:
            raise ValueError(f"{file} was computed with other settings; remove it, or choose another --out")
        return result

    def save(self, name: str, settings: str, result: Mapping[str, object]) -> None:
        """Keep a result; killed at any moment, its file is whole or not there."""
        file = self._file(name)
        part = file.with_suffix(".part")
        part.write_text(json.dumps({"settings": settings, **result}, indent=1))
        os.replace(part, file)

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.json"
