"""Runs upstream's converter on a checkpoint without a tokenizer, which it does not offer.

python upstream_converter.py TREE CHECKPOINT OUT.gguf
"""

import sys

tree, checkpoint, output = sys.argv[1:]
sys.path[:0] = [tree, f"{tree}/gguf-py"]

import convert_hf_to_gguf as script  # noqa: E402

find = script.get_model_class


def without_vocabulary(*args, **kwargs):
    found = find(*args, **kwargs)
    found.set_vocab = lambda self: self.gguf_writer.add_tokenizer_model("no_vocab")
    return found


script.get_model_class = without_vocabulary
sys.argv = ["convert_hf_to_gguf.py", checkpoint, "--outfile", output, "--outtype", "f32"]
script.main()
