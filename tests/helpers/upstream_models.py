"""Read the sources of the pinned llama.cpp: each architecture with its loader and its graph."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from upstream_tree import pinned_tree

_MODEL_CLASS = re.compile(r"^struct (llama_model_\w+) : public (llama_model_\w+) \{(.*?)^\};", re.M | re.S)
_METHOD = re.compile(r"^\S+ (llama_model_\w+)::(load_arch_\w+)\(.*?^\}", re.M | re.S)


@dataclass(frozen=True)
class UpstreamModel:
    """The C++ text of one architecture.

    load_hparams, load_tensors: its methods of these names, which may be a base class's.
    graph: the file that defines its graph, without those methods.
    has_rope_type: False if llama_model_rope_type returns LLAMA_ROPE_TYPE_NONE for it.
    """

    enum: str
    name: str
    load_hparams: str
    load_tensors: str
    graph: str
    has_rope_type: bool


def source(name: str) -> str:
    """Return the text of a file in src/ of the unpatched tree that the build has fetched."""
    return (_sources() / name).read_text(encoding="utf-8")


@cache
def upstream_models() -> tuple[UpstreamModel, ...]:
    """Return every architecture of the pinned tree, except those that have no class of their own."""
    names = dict(re.findall(r"\{ (LLM_ARCH_\w+), +\"(\S+)\" +\}", source("llama-arch.cpp")))
    makers = r"case (LLM_ARCH_\w+):\s+return new (llama_model_\w+)\("
    classes = dict(re.findall(makers, source("llama-model.cpp")))
    without_rope = _enums_without_rope()
    return tuple(
        UpstreamModel(
            enum,
            names[enum],
            _method(class_, "load_arch_hparams"),
            _method(class_, "load_arch_tensors"),
            _graph(class_),
            enum not in without_rope,
        )
        for enum, class_ in classes.items()
    )


def architecture_names() -> set[str]:
    """Return the name of every architecture, as general.architecture has it."""
    return set(re.findall(r"\{ LLM_ARCH_\w+, +\"(\S+)\" +\}", source("llama-arch.cpp")))


# ----------------------------------------------------------------------------------------------


def _sources() -> Path:
    return pinned_tree() / "src"


def _enums_without_rope() -> set[str]:
    switch = source("llama-model.cpp").partition("llama_model_rope_type(const llama_model * model) {")[2]
    return set(re.findall(r"LLM_ARCH_\w+", switch.partition("return LLAMA_ROPE_TYPE_NONE;")[0]))


@cache
def _declarations() -> dict[str, tuple[str, str]]:
    """Return the base class and the body of each model class."""
    return {name: (base, body) for name, base, body in _MODEL_CLASS.findall(source("models/models.h"))}


@cache
def _files() -> dict[str, str]:
    """Return, for each model class that builds a graph, the text of the file with its graph."""
    texts = [path.read_text(encoding="utf-8") for path in (_sources() / "models").glob("*.cpp")]
    builder = re.compile(r"(llama_model_\w+)::build_arch_graph\(")
    return {name: text for text in texts for name in builder.findall(text)}


@cache
def _methods() -> dict[tuple[str, str], str]:
    """Return the text of each load_arch_* method, by its class and its name."""
    text = "".join(path.read_text(encoding="utf-8") for path in (_sources() / "models").glob("*.cpp"))
    return {(each[1], each[2]): each[0] for each in _METHOD.finditer(text)}


def _bases(class_: str) -> Iterator[str]:
    """Yield a model class and its base classes, the nearest first."""
    while class_ in _declarations():
        yield class_
        class_ = _declarations()[class_][0]


def _method(class_: str, name: str) -> str:
    return next(_methods()[each, name] for each in _bases(class_) if (each, name) in _methods())


def _graph(class_: str) -> str:
    found = (
        re.search(r"using graph\s+= (llama_model_\w+)::graph", _declarations()[each][1])
        for each in _bases(class_)
    )
    owner = next((each[1] for each in found if each), class_)
    return _METHOD.sub("", next(_files()[each] for each in _bases(owner) if each in _files()))
