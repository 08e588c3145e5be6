"""Measurements that are kept in a folder, so that an interrupted run continues; and the keys to find them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yarn_gguf import _version
from yarn_gguf.disk import fingerprint
from yarn_gguf.disk.replace import replace_file
from yarn_gguf.errors import YarnGGUFError
from yarn_gguf.native.library import library_folder
from yarn_gguf.rope.names import as_json

if TYPE_CHECKING:
    from yarn_gguf.run.llama import Llama

_SETTINGS = ("n_ctx", "n_batch", "n_ubatch", "type_k", "type_v", "flash_attn_type")


@dataclass(frozen=True)
class Results:
    """A folder with a JSON file for each measurement. Nothing is kept if the folder is None.

    The key of a measurement holds all that its value depends on, in JSON's types: model, text, scaling, ….
    """

    folder: Path | None

    def get(self, key: dict[str, Any], measure: Callable[[], Any]) -> Any:
        """Return the value kept for `key`. If there is none, measure it and keep it.

        Values are of JSON's types. Raises YarnGGUFError for a damaged file, or one that cannot be written,
        and what `measure` raises.
        """
        if self.folder is None:
            return measure()
        path = self.folder / f"{key.get('kind', 'value')}-{_digest(key)[:24]}.json"
        if path.exists():
            return _read(path)
        value = measure()
        self.folder.mkdir(parents=True, exist_ok=True)
        data = json.dumps({"key": key, "value": value}).encode()
        replace_file(path, data, error=YarnGGUFError, elsewhere="take another folder")
        return value


def model_key(llama: Llama, results: Results) -> dict[str, Any]:
    """Return the part of a key that names model, library and settings. Empty if nothing is kept.

    Scaling and text are not part of it.
    """
    if results.folder is None:
        return {}
    settings = {name: getattr(llama.context_params, name) for name in _SETTINGS}
    library = [fingerprint.digest(each) for each in sorted(library_folder().iterdir()) if each.is_file()]
    return {
        "model": fingerprint.digests(llama.model_path),
        "version": _version.__version__,
        "library": fingerprint.text_digest(*library),
        "n_gpu_layers": llama.model_params.n_gpu_layers,
        **settings,
    }


def scaling_key(llama: Llama) -> dict[str, Any]:
    """Return the part of a key that names the scaling in force."""
    return {"scaling": llama.rope_scaling and as_json(llama.rope_scaling)}


# ----------------------------------------------------------------------------------------------


def _digest(key: dict[str, Any]) -> str:
    return fingerprint.text_digest(json.dumps(key, sort_keys=True))


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())["value"]
    except (ValueError, KeyError, TypeError) as error:
        raise YarnGGUFError(f"{path} is damaged ({error}): delete it, and it is measured again") from error
