"""llama-cpp-python's server with our Llama: it passes every argument, and the file's scaling stays.

The server's own code makes the Llama. pydantic-settings is replaced: it reads options from the environment.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import ModuleType

import pydantic
import pytest
import random_gguf

from yarn_gguf import ModelLoadError, RopeScaling, extend
from yarn_gguf.run.llama import Llama, llama_cpp

BETAS = {"beta_fast": 16.0, "beta_slow": 2.0}


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> dict[str | None, Path]:
    """Models by the policy of their dynamic scaling; None for a static one."""
    folder = tmp_path_factory.mktemp("models")
    plain = random_gguf.llama(folder / "plain.gguf")
    return {
        policy: extend(
            plain, RopeScaling("yarn", 4.0, **BETAS), dynamic=policy, output=folder / f"{policy}.gguf"
        ).path
        for policy in (None, "growth")
    }


@pytest.fixture
def serve(monkeypatch) -> Iterator[Callable[..., Llama]]:
    """Callable: (path, **settings) -> the Llama that the server makes."""

    class BaseSettings(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(protected_namespaces=())

    module = ModuleType("pydantic_settings")
    module.BaseSettings = BaseSettings
    monkeypatch.setitem(sys.modules, "pydantic_settings", module)
    for name in ("llama_cpp.server.settings", "llama_cpp.server.model"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(llama_cpp, "Llama", Llama)
    from llama_cpp.server.model import LlamaProxy
    from llama_cpp.server.settings import ModelSettings

    def make(path: Path, **settings) -> Llama:
        chosen = ModelSettings(model=str(path), n_ctx=256, verbose=False, **settings)
        return LlamaProxy.load_llama_from_model_settings(chosen)

    yield make
    for name in ("llama_cpp.server.settings", "llama_cpp.server.model"):
        sys.modules.pop(name, None)


def parameters(llama: Llama) -> list[float]:
    names = [name for name, _ in llama.context_params._fields_ if name.startswith(("rope_", "yarn_"))]
    return [getattr(llama.context_params, name) for name in names]


def test_the_server_keeps_the_dynamic_scaling_of_a_file(serve, paths):
    with closing(serve(paths["growth"])) as llama:
        assert llama.rope_scaling.policy == "growth"
        assert llama.rope_scaling.scaling.beta_fast == 16


def test_the_server_keeps_the_static_scaling_of_a_file(serve, paths):
    with (
        closing(Llama(paths[None], n_ctx=256, verbose=False)) as expected,
        closing(serve(paths[None])) as llama,
    ):
        assert parameters(llama) == parameters(expected)


@pytest.mark.parametrize(
    "asked", [{"rope_freq_base": 5000.0}, {"rope_freq_scale": 0.5}, {"yarn_beta_fast": 8.0}]
)
def test_another_value_replaces_the_dynamic_scaling_with_a_warning(serve, paths, asked):
    [name] = asked
    with pytest.warns(UserWarning, match=rf"growth\.gguf: {name} replaces the dynamic scaling"):
        llama = serve(paths["growth"], **asked)
    with closing(llama):
        assert llama.rope_scaling is None
        assert getattr(llama.context_params, name) == asked[name]


def test_a_static_file_is_overridden_value_by_value_without_a_word(serve, paths, recwarn):
    with closing(serve(paths[None], yarn_beta_fast=8.0)) as llama:
        assert llama.context_params.yarn_beta_fast == 8
    assert not [each for each in recwarn if "scaling" in str(each.message)]


def test_an_argument_that_has_no_effect_is_refused_if_it_asks_for_something(paths):
    Llama(paths[None], verbose=False, mul_mat_q=True).close()
    with pytest.raises(ModelLoadError, match="rpc_servers has no effect"):
        Llama(paths[None], verbose=False, rpc_servers="localhost:50052")
