"""Compare everything that cached keys and values depend on with what it was when a session was saved."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from yarn_gguf.errors import RopeScalingError, SessionError
from yarn_gguf.rope.dynamic import Scaling
from yarn_gguf.rope.names import from_json, name_of
from yarn_gguf.run.handles import llama_cpp
from yarn_gguf.run.identity import identity_of
from yarn_gguf.run.llama import Llama
from yarn_gguf.session.file import Contents

AS_IT_WAS = "open the model as it was then, or with rebuild (--rebuild) read the text anew"


def scaling_of(contents: Contents) -> Scaling | None:
    """Return the scaling under which a session was read; None if the model's file decided."""
    values = contents.identity["rope scaling"]
    if "method" not in values:  # nothing, or llama_cpp.Llama's own arguments
        return None
    try:
        return from_json(values)
    except RopeScalingError:  # of another version
        return None


def facts_of(llama: Llama) -> dict[str, Any]:
    """Return facts for people, for the next n_ctx, and for a later reading of the tokens."""
    return {
        "model": Path(llama.model_path).name,
        "n_ctx": llama.n_ctx(),
        "factor": llama.dynamic_state.factor,
        "vocabulary": vocabulary_digest(llama),
    }


def vocabulary_digest(llama: Llama) -> str:
    """Return a digest of sampled token texts. It is equal where tokens mean the same."""
    vocabulary = llama.vocabulary.vocab
    digest = hashlib.sha256(str(llama.n_vocab()).encode())
    has_texts = llama_cpp.llama_vocab_type(vocabulary) != llama_cpp.LLAMA_VOCAB_TYPE_NONE
    for token in range(0, llama.n_vocab() if has_texts else 0, llama.n_vocab() // 1000 + 1):
        digest.update(llama_cpp.llama_vocab_get_text(vocabulary, token) + b"\0")
    return digest.hexdigest()


def check_identity(path: Path, contents: Contents, llama: Llama) -> None:
    """Raise SessionError, with the differences, if the session was saved under another identity."""
    now, then = identity_of(llama), contents.identity
    if now == then:
        return
    if now["model"] != then.get("model"):
        other = contents.facts["model"]
        raise SessionError(f"{path}: saved by another model ({other}) than {llama.model_path}: {AS_IT_WAS}")
    differences = [
        f"{key} {_shown(then.get(key), now.get(key))}, and not {_shown(now.get(key), then.get(key))}"
        for key in sorted({*now, *then})
        if now.get(key) != then.get(key)
    ]
    raise SessionError(f"{path}: saved with {'; with '.join(differences)}: {AS_IT_WAS}")


# ----------------------------------------------------------------------------------------------


def _shown(value: Any, other: Any) -> Any:
    """Return a value for a message; for a scaling its name, or the parts in which the two scalings differ."""
    if not (isinstance(value, dict) and isinstance(other, dict)):
        return value
    if (name := _name(value)) != _name(other):
        return name
    return ", ".join(f"{name} {value[name]}" for name in value if value[name] != other.get(name))


def _name(values: dict[str, Any]) -> str:
    if not values:
        return "as the file says"
    try:
        return name_of(from_json(values))
    except RopeScalingError:  # llama_cpp.Llama's own arguments, or a scaling of another version
        return ", ".join(f"{name} {value}" for name, value in values.items())
