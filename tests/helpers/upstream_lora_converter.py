"""Run upstream's converter of LoRA adapters, once for each type.

python upstream_lora_converter.py TREE ADAPTER BASE FOLDER TYPE...

The files are FOLDER/TYPE.gguf.
"""

import runpy
import sys

tree, adapter, base, folder, *types = sys.argv[1:]
sys.path[:0] = [tree, f"{tree}/gguf-py"]

for type_ in types:
    script = f"{tree}/convert_lora_to_gguf.py"
    output = f"{folder}/{type_}.gguf"
    sys.argv = [script, adapter, "--base", base, "--outfile", output, "--outtype", type_]
    runpy.run_path(script, run_name="__main__")
