"""Everything that cached keys and values depend on."""

from __future__ import annotations

import json
import os
from typing import Any

from yarn_gguf import _version
from yarn_gguf.native.cache_types import CACHE_TYPES
from yarn_gguf.rope.names import as_json
from yarn_gguf.run.arguments import ROPE_ARGUMENTS
from yarn_gguf.run.handles import llama_cpp


def identity_of(llama: Any) -> dict[str, Any]:
    """Return all that the cached keys and values of a Llama depend on, except the tokens, in JSON's types.

    Raises SessionError if its files were changed since it was loaded.
    """
    params = llama.context_params
    types = {number: name for name, number in CACHE_TYPES.items()}
    identity = {
        "library": f"yarn-gguf {_version.__version__}, llama-cpp-python {llama_cpp.__version__}",
        "model": llama.fingerprints,
        "LoRA adapter": None if llama.lora_path is None else [llama.adapter_fingerprint, llama.lora_scale],
        "kv_overrides": llama.kv_overrides,
        "rope scaling": _rope_scaling(llama),
        "type_k": types[params.type_k],
        "type_v": types[params.type_v],
        "flash_attn": params.flash_attn_type == llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED,
        "swa_full": params.swa_full,
        "LLAMA_ATTN_ROT_DISABLE": os.environ.get("LLAMA_ATTN_ROT_DISABLE"),  # the basis of quantized keys
    }
    return json.loads(json.dumps(identity))


def _rope_scaling(llama: Any) -> dict[str, Any]:
    """Return the scaling that was asked for; nothing where the file decides."""
    if llama.rope_scaling is not None:
        return as_json(llama.rope_scaling)
    given = {name: getattr(llama.context_params, name) for name in ROPE_ARGUMENTS}
    return {name: value for name, value in given.items() if value not in (0, -1)}
