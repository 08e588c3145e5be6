"""One self-contained page, and pictures, from the results of evaluations."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yarn_gguf.disk.replace import replace_file
from yarn_gguf.errors import YarnGGUFError
from yarn_gguf.evaluate.show.plots import picture_of
from yarn_gguf.evaluate.show.tables import TextTable, percent, table_of

_TEMPLATE = Path(__file__).with_name("report.html.jinja")
_TITLES = {
    "perplexity": "Perplexity",
    "passkey": "Pass keys",
    "tasks": "Short tasks",
    "advise": "Advice",
}
_ELSEWHERE = {"kind", "command", "version", "model", "rows", "lead_error"}  # fields with another place
_WORDS = {
    "trained_context": "trained context, tokens",
    "context": "context, tokens",
    "advice": "advised",
    "best": "best score",
    "lead": "score of the advised scaling, above the best",
    "extend": "written into the file by",
    "documents": "documents that the finalists have read",
    "seconds": "seconds of reading",
    "keys": "keys in each prompt",
    "chat": "in the chat template",
}


@dataclass(frozen=True)
class Section:
    """The section of a page for one result: its words, its table, and its picture (SVG in base64)."""

    result: dict[str, Any]
    title: str
    model: str
    command: str
    version: str
    settings: dict[str, str]
    table: TextTable
    picture: str

    @classmethod
    def of(cls, result: dict[str, Any]) -> Section:
        """Return the section of a result, as `--json` writes it. Draws the picture."""
        return cls(
            result=result,
            title=_TITLES[result["kind"]],
            model=result["model"]["file"],
            command=result["command"],
            version=result["version"],
            settings=_settings(result),
            table=table_of(result),
            picture=base64.b64encode(picture_of(result, "svg")).decode(),
        )


def dump(result: dict[str, Any]) -> bytes:
    """Return a result as JSON, as read_sections reads it. A number that is not finite becomes null."""
    return json.dumps(_finite(result), indent=1, allow_nan=False).encode()


def read_sections(paths: Sequence[str | Path]) -> list[Section]:
    """Return the sections of results that evaluations wrote with `--json`.

    Raises YarnGGUFError for other files, OSError.
    """
    return [_read(Path(path)) for path in paths]


def write_report(sections: Sequence[Section], output: str | Path) -> None:
    """Write an HTML page: the models' facts, and for each result its command, picture and table.

    The page needs no other file. Raises GGUFError if it cannot be written; then an older file stays.
    """
    import jinja2  # slow to import

    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        models=_models(sections), sections=sections
    )
    replace_file(Path(output), page.encode())


def write_pictures(
    sections: Sequence[Section], folder: str | Path, inputs: Iterable[Path] = ()
) -> list[Path]:
    """Write a PNG file for each section, numbered and named after its kind.

    inputs: files that must not be replaced. Raises YarnGGUFError, OSError.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i}-{each.result['kind']}.png" for i, each in enumerate(sections, 1)]
    for each, path in zip(sections, paths, strict=True):
        picture = picture_of(each.result, "png")
        replace_file(path, picture, inputs, error=YarnGGUFError, elsewhere="take another folder")
    return paths


# ----------------------------------------------------------------------------------------------


def _read(path: Path) -> Section:
    remedy = "give files that yarn-gguf eval … --json has written"
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # not JSON, or not UTF-8
        raise YarnGGUFError(f"{path} is not JSON ({error}): {remedy}") from error
    if not (isinstance(result, dict) and result.get("kind") in _TITLES and result.get("rows")):
        raise YarnGGUFError(f"{path} has no results of an evaluation: {remedy}")
    try:
        result["rows"] = [{name: _number(value) for name, value in row.items()} for row in result["rows"]]
        return Section.of(result)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise YarnGGUFError(f"{path} is not as an evaluation writes it ({error!r}): {remedy}") from error


def _number(value: Any) -> Any:
    return math.nan if value is None else value


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _models(sections: Sequence[Section]) -> list[dict[str, str]]:
    """Return the facts of each model, once."""
    models = [each.result["model"] for each in sections]
    distinct = {json.dumps(each, sort_keys=True): each for each in models}.values()
    return [{name.replace("_", " "): _text(value) for name, value in each.items()} for each in distinct]


def _settings(result: dict[str, Any]) -> dict[str, str]:
    """Return the facts about all rows, in words, without the empty ones."""
    lead = percent(result["lead"], _number(result.get("lead_error"))) if result.get("lead") else None
    settings = {name: value for name, value in result.items() if name not in _ELSEWHERE} | {"lead": lead}
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
