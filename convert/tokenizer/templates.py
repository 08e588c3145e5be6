"""The chat templates of a checkpoint, from the files in which transformers looks for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from yarn_gguf.convert.tokenizer.files import CHAT_TEMPLATE_JSON, TokenizerFiles
from yarn_gguf.errors import ConversionError


def chat_templates(files: TokenizerFiles) -> dict[str, str]:
    """Return the templates by name; "default" is the one without a name.

    Templates in files of their own (chat_template.jinja, additional_chat_templates/NAME.jinja) override those
    in tokenizer_config.json, and these override chat_template.json, which is a processor's.

    Raises ConversionError for templates that are not texts.
    """
    whole = files.folder / "chat_template.jinja"
    named = sorted((files.folder / "additional_chat_templates").glob("*.jinja"))
    paths = {"default": whole} if whole.is_file() else {}
    paths |= {path.stem: path for path in named}
    if paths:
        return {name: _read(path) for name, path in paths.items()}
    for name, values in (
        ("tokenizer_config.json", files.config),
        (CHAT_TEMPLATE_JSON, files.chat_template_json),
    ):
        if (given := values.get("chat_template")) is not None:
            return _by_name(given, files.folder / name)
    return {}


# ----------------------------------------------------------------------------------------------


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConversionError(f"{path}: no UTF-8 text (byte {error.start}): download it again") from error


def _by_name(given: Any, path: Path) -> dict[str, str]:
    """Return templates from their JSON: a text, a list of objects with name and template, or an object."""
    if isinstance(given, list) and all(isinstance(each, dict) for each in given):
        given = {each.get("name"): each.get("template") for each in given}
    templates = {"default": given} if isinstance(given, str) else given
    if not isinstance(templates, dict) or not all(
        isinstance(each, str) for pair in templates.items() for each in pair
    ):
        raise ConversionError(f"{path}: chat_template is not a text, and not texts by name: mend it there")
    return templates
