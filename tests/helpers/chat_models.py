"""Tiny random models that talk in common words, with SmolLM2's tokenizer and a chat template."""

from __future__ import annotations

import re
from collections import Counter
from contextlib import closing
from pathlib import Path

import gguf
import numpy as np
from libraries import PROSE

WIDTH, HEAD, HIDDEN, KERNEL = 64, 32, 96, 3


def write_chat_model(
    path: Path,
    smollm2: Path,
    *,
    template: str | None = None,
    is_recurrent: bool = False,
    layers: int = 2,
    context: int = 8192,
    has_pieces: bool = False,
) -> Path:
    """Write a model with random weights to `path`.

    template: the chat template; SmolLM2's by default.
    is_recurrent: write an LFM2, one layer of which is a short convolution; else a Llama.
    context: the context length in the file, in tokens.
    has_pieces: take a tokenizer of SentencePiece's kind, which needs a template.
    """
    arch = "lfm2" if is_recurrent else "llama"
    writer = gguf.GGUFWriter(path, arch)
    if has_pieces:
        words = _write_pieces(writer, template)
    else:
        words = _copy_tokenizer(gguf.GGUFReader(smollm2), writer, template)
    heads_kv = [0, 1] if is_recurrent else [1] * layers
    writer.add_context_length(context)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(len(heads_kv))
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(WIDTH // HEAD)
    writer.add_head_count_kv(heads_kv if is_recurrent else 1)
    writer.add_rope_dimension_count(HEAD)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(words))
    if is_recurrent:
        writer.add_shortconv_l_cache(KERNEL)
    generator = np.random.default_rng(0)
    for name, shape in _shapes(heads_kv, is_recurrent).items():
        values = generator.normal(0, 0.15, shape) if len(shape) > 1 else np.ones(shape)
        writer.add_tensor(f"{name}.weight", values.astype(np.float32))
    embedding = generator.normal(0, 1, (len(words), WIDTH))
    writer.add_tensor("token_embd.weight", embedding.astype(np.float32))
    writer.add_tensor("output.weight", _output_weights(words, generator))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _copy_tokenizer(source: gguf.GGUFReader, writer: gguf.GGUFWriter, template: str | None) -> list[str]:
    for name, field in source.fields.items():
        if name.startswith("tokenizer.") and not (template and name == "tokenizer.chat_template"):
            sub_type = field.types[1] if len(field.types) > 1 else None
            writer.add_key_value(name, field.contents(), field.types[0], sub_type)
    if template:
        writer.add_chat_template(template)
    return source.fields["tokenizer.ggml.tokens"].contents()


def _write_pieces(writer: gguf.GGUFWriter, template: str) -> list[str]:
    """Write a tokenizer like Llama 2's. Its pieces are bytes, characters, spaces and prefixes of words.

    A common word has a piece for each prefix, because merging goes letter by letter.
    """
    kinds = {"<unk>": gguf.TokenType.UNKNOWN}
    kinds |= dict.fromkeys(["<s>", "</s>", "<|user|>", "<|assistant|>"], gguf.TokenType.CONTROL)
    kinds |= {f"<0x{byte:02X}>": gguf.TokenType.BYTE for byte in range(256)}
    words = re.findall("[a-z]+", PROSE.read_text(encoding="utf-8").lower())
    begun = [f"▁{word[:i]}" for word, _ in Counter(words).most_common(200) for i in range(1, len(word) + 1)]
    pieces = ["▁▁", *begun, "▁", *(chr(code) for code in range(33, 127))]
    kinds |= dict.fromkeys(pieces, gguf.TokenType.NORMAL)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(list(kinds))
    writer.add_token_types(list(kinds.values()))
    writer.add_token_scores([-float(i) for i in range(len(kinds))])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template(template)
    return list(kinds)


def _output_weights(words: list[str], generator: np.random.Generator) -> np.ndarray:
    """Return output weights that allow common words alone, each a token of its own, and no end."""
    output = np.zeros((len(words), WIDTH), np.float32)
    common = [token for token, word in enumerate(words) if re.fullmatch("[Ġ▁][a-z]{2,}", word)][:60]
    output[common] = generator.normal(0, 1, (len(common), WIDTH))
    return output


def _shapes(heads_kv: list[int], is_recurrent: bool) -> dict[str, tuple[int, ...]]:
    shapes = {"token_embd_norm" if is_recurrent else "output_norm": (WIDTH,)}
    for i, count in enumerate(heads_kv):
        layer = {
            "attn_norm": (WIDTH,),
            "ffn_norm": (WIDTH,),
            "ffn_gate": (HIDDEN, WIDTH),
            "ffn_down": (WIDTH, HIDDEN),
            "ffn_up": (HIDDEN, WIDTH),
        }
        if count:
            layer |= {
                "attn_q": (WIDTH, WIDTH),
                "attn_k": (count * HEAD, WIDTH),
                "attn_v": (count * HEAD, WIDTH),
                "attn_output": (WIDTH, WIDTH),
            }
            layer |= {"attn_q_norm": (HEAD,), "attn_k_norm": (HEAD,)} if is_recurrent else {}
        else:
            layer |= {
                "shortconv.conv": (WIDTH, KERNEL),
                "shortconv.in_proj": (3 * WIDTH, WIDTH),
                "shortconv.out_proj": (WIDTH, WIDTH),
            }
        shapes |= {f"blk.{i}.{name}": shape for name, shape in layer.items()}
    return shapes


def chat_prompt(model_path: Path, text: str) -> list[int]:
    """Return the tokens of a chat that begins with `text`, up to the answer."""
    from yarn_gguf.run.chat_template import ChatTemplate, user
    from yarn_gguf.run.prompt import load_vocabulary

    with closing(load_vocabulary(model_path)) as model:
        return model.tokenize(ChatTemplate(model).render([user(text)]).encode(), add_bos=False, special=True)
