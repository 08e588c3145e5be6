"""Extend a file once, or again and again until killed. Arguments: FILE, and "once" or "repeat"."""

import itertools
import sys

from yarn_gguf.model_file.extend import extend
from yarn_gguf.rope.scaling import RopeScaling

path, mode = sys.argv[1:]
print("ready", flush=True)
for factor in [4.0] if mode == "once" else itertools.cycle([2.0, 4.0]):
    extend(path, RopeScaling("yarn", factor))
