"""Run llama_model_quantize through the bindings alone, with the library in LLAMA_CPP_LIB_PATH.

python upstream_quantizer.py SOURCE.gguf FOLDER TYPE... writes FOLDER/TYPE.gguf for each type.
"""

import ctypes
import sys

import llama_cpp

source, folder, *types = sys.argv[1:]
for name in types:
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{name.upper()}")
    target = f"{folder}/{name}.gguf".encode()
    if llama_cpp.llama_model_quantize(source.encode(), target, ctypes.byref(params)):
        sys.exit(f"{source}: cannot be quantized to {name}")
