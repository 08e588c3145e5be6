"""One self-contained page, and pictures, of what evaluations have measured."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from yarn_gguf.disk.replace import replacing
from yarn_gguf.errors import YarnGGUFError
from yarn_gguf.evaluate.show.plots import picture_of
from yarn_gguf.evaluate.show.tables import percent, table_of

_TEMPLATE = Path(__file__).with_name("report.html.jinja")
_TITLES = {
    "perplexity": "Perplexity",
    "passkey": "Pass keys",
    "tasks": "Short tasks",
    "advise": "Advice",
}
_FACTS = {"kind", "command", "version", "model", "rows", "lead_error"}
_WORDS = {
    "trained_context": "trained context, tokens",
    "context": "context, tokens",
    "advice": "advised",
    "best": "best score",
    "lead": "the advised one's score, above the best",
    "extend": "written into the file by",
    "documents": "documents that the finalists have read",
    "seconds": "seconds of reading",
    "keys": "keys in each prompt",
    "chat": "in the chat template",
}


def dump(result: dict[str, Any]) -> bytes:
    """JSON, as `read_results` reads it; a number that there is not (NaN, infinity) is null."""
    return json.dumps(_finite(result), indent=1, allow_nan=False).encode()


def read_results(paths: Sequence[str | Path]) -> list[dict[str, Any]]:
    """What `--json` of the evaluations has written. Raises YarnGGUFError for anything else, OSError."""
    return [_read(Path(path)) for path in paths]


def write_report(results: Sequence[dict[str, Any]], output: str | Path) -> None:
    """An HTML page: the models' facts, and of each result its command, picture and table.

    It needs no other file. Raises GGUFError where it cannot be written; then there is no new file.
    """
    import jinja2  # where it is used

    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        models=_models(results), sections=[_section(each) for each in results]
    )
    data = page.encode()
    with replacing(Path(output), len(data)) as file:
        file.write(data)


def write_pictures(results: Sequence[dict[str, Any]], folder: str | Path) -> list[Path]:
    """A PNG file for each, numbered and named after its kind. Raises OSError."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i}-{each['kind']}.png" for i, each in enumerate(results, 1)]
    for each, path in zip(results, paths, strict=True):
        path.write_bytes(picture_of(each, "png"))
    return paths


# ----------------------------------------------------------------------------------------------


def _read(path: Path) -> dict[str, Any]:
    remedy = "give files that yarn-gguf eval … --json has written"
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # no JSON, or no UTF-8
        raise YarnGGUFError(f"{path} is no JSON ({error}): {remedy}") from error
    if not (isinstance(result, dict) and result.get("kind") in _TITLES and result.get("rows")):
        raise YarnGGUFError(f"{path} has no results of an evaluation: {remedy}")
    try:
        result["rows"] = [{name: _number(value) for name, value in row.items()} for row in result["rows"]]
        _section(result)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise YarnGGUFError(f"{path} is not as an evaluation writes it ({error!r}): {remedy}") from error
    return result


def _number(value: Any) -> Any:
    return math.nan if value is None else value


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _models(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each model once."""
    models = {json.dumps(each["model"], sort_keys=True): each["model"] for each in results}
    return [
        {name.replace("_", " "): _text(value) for name, value in model.items()} for model in models.values()
    ]


def _section(result: dict[str, Any]) -> dict[str, Any]:
    return {
        "title": _TITLES[result["kind"]],
        "model": result["model"]["file"],
        "command": result["command"],
        "version": result["version"],
        "settings": _settings(result),
        "table": table_of(result),
        "picture": base64.b64encode(picture_of(result, "svg")).decode(),
    }


def _settings(result: dict[str, Any]) -> dict[str, str]:
    """What is true of all rows, in words; what is empty is left out."""
    lead = percent(result["lead"], _number(result.get("lead_error"))) if result.get("lead") else None
    settings = {name: value for name, value in result.items() if name not in _FACTS} | {"lead": lead}
    words = {name: _WORDS.get(name, name.replace("_", " ")) for name in settings}
    return {words[name]: _text(value) for name, value in settings.items() if value not in (None, "")}


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list):  # the texts
        return ", ".join(f"{each['name']} ({each['tokens']:,} tokens)" for each in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
