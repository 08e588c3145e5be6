"""Measurements kept as they come, so that an interrupted run goes on where it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yarn_gguf.disk.replace import replacing
from yarn_gguf.errors import YarnGGUFError


@dataclass(frozen=True)
class Results:
    """A folder with a JSON file for each measurement. None for a folder: nothing is kept.

    A measurement is known by what it depends on, its key: model, text, scaling and so on, in JSON's types.
    """

    folder: Path | None

    def get(self, key: dict[str, Any], measure: Callable[[], Any]) -> Any:
        """The value measured for `key`, in JSON's types; measured, and kept, if there is none yet.

        Raises YarnGGUFError for a damaged file, or one that cannot be written, and what `measure` raises.
        """
        if self.folder is None:
            return measure()
        path = self._path(key)
        if path.exists():
            return _read(path)
        value = measure()
        self.folder.mkdir(parents=True, exist_ok=True)
        data = json.dumps({"key": key, "value": value}).encode()
        with replacing(path, len(data), error=YarnGGUFError, elsewhere="take another folder") as file:
            file.write(data)
        return value

    def _path(self, key: dict[str, Any]) -> Path:
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        return self.folder / f"{key.get('kind', 'value')}-{digest[:24]}.json"


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())["value"]
    except (ValueError, KeyError, TypeError) as error:
        raise YarnGGUFError(f"{path} is damaged ({error}): delete it, and it is measured again") from error
