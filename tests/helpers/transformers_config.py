"""The keys of config.json that transformers uses for a model type, read from its sources."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

_ROOT = Path(transformers.__file__).parent
_CONFIGURATION = _ROOT / "configuration_utils.py"
_CONFIGS = (
    "config",
    "text_config",
    "layer_config",
    "effective_config",
)  # names of variables and attributes that hold a config
_PROPERTIES = {"is_heterogeneous", "sub_configs", "get", "keys"}  # the last two: of a dict of that name
_READS_KEYS = ("__post_init__", "convert_rope_params_to_dict")  # methods that get unknown keys as kwargs


def model_class(model_type: str) -> str:
    """Return the name of transformers' class that computes the next token's logits."""
    name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type]
    return name if isinstance(name, str) else name[0]


def used_keys(model_type: str) -> set[str]:
    """Return the keys that the model's modules, and the modules that they import from, use or define."""
    name = model_type.removesuffix("_text")
    folder = _ROOT / "models" / name
    modeling, configuration = folder / f"modeling_{name}.py", folder / f"configuration_{name}.py"
    keys = _fields(configuration) | _fields(_CONFIGURATION)
    for path in {modeling, configuration, *_imports(modeling), *_imports(configuration)}:
        keys |= _reads(path)
    return {key for key in keys if not key.startswith("_") and key not in _no_keys()}


@cache
def _no_keys() -> set[str]:
    """Return the names of the config class that no config.json has: its methods and class variables."""
    base = transformers.PreTrainedConfig
    methods = {name for name in dir(base) if callable(getattr(base, name))}
    variables = {name for name, is_class_variable in _annotated(_CONFIGURATION) if is_class_variable}
    return (methods | variables | _PROPERTIES) - {"model_type"}


def _annotated(path: Path) -> Iterator[tuple[str, bool]]:
    """Yield each annotated name of the config classes in a module, and whether it is a class variable."""
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.ClassDef) and node.name.endswith("Config"):
            for each in node.body:
                if isinstance(each, ast.AnnAssign):
                    yield ast.unparse(each.target), ast.unparse(each.annotation).startswith("ClassVar")


def _imports(path: Path) -> set[Path]:
    """Return the modules of transformers that a module imports from."""
    found = set()
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.ImportFrom) and node.level:
            target = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            found |= {target.with_suffix(".py"), *(target / f"{each.name}.py" for each in node.names)}
    return {path for path in found if path.is_file()}


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def _reads(path: Path) -> set[str]:
    """Return the names N of config.N, self.config.N, and getattr(config, "N") in a module."""
    return set(_each_read(_tree(path)))


def _each_read(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and _is_config(node.value):
            yield node.attr
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr"):
            target, name = node.args[:2]
            if _is_config(target) and isinstance(name, ast.Constant):
                yield name.value


def _is_config(node: ast.expr) -> bool:
    if isinstance(node, ast.Call):  # config.get_text_config()
        return ast.unparse(node.func).endswith("config.get_text_config")
    return (isinstance(node, ast.Attribute) and node.attr in _CONFIGS) or (
        isinstance(node, ast.Name) and node.id in _CONFIGS
    )


@cache
def _fields(path: Path) -> set[str]:
    """Return the fields of the config classes in a module, their aliases, and keys read from kwargs."""
    found = {name for name, is_class_variable in _annotated(path) if not is_class_variable}
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.ClassDef) and node.name.endswith("Config"):
            for each in node.body:
                if isinstance(each, ast.Assign) and ast.unparse(each.targets[0]) == "attribute_map":
                    names = ast.literal_eval(each.value)
                    found |= names.keys() | set(names.values())
                elif isinstance(each, ast.FunctionDef) and each.name in _READS_KEYS:
                    found |= set(_kwargs(each))
    return found


def _kwargs(function: ast.FunctionDef) -> Iterator[str]:
    """Yield the names N of kwargs.get("N") and kwargs.pop("N")."""
    for node in ast.walk(function):
        is_read = isinstance(node, ast.Call) and ast.unparse(node.func) in ("kwargs.get", "kwargs.pop")
        if is_read and isinstance(node.args[0], ast.Constant):
            yield node.args[0].value
