"""Run upstream's converter, with two options that it does not have.

python upstream_converter.py TREE CHECKPOINT OUT.gguf TYPE [--no-tokenizer] [--published-config]

--no-tokenizer: convert a checkpoint that has no tokenizer. --published-config: convert a checkpoint whose
config.json has names that transformers 5 has changed. The converter then reads that file without
transformers, as it does for models that transformers does not know.
"""

import sys

tree, checkpoint, output, type_, *options = sys.argv[1:]
sys.path[:0] = [tree, f"{tree}/gguf-py"]

import convert_hf_to_gguf as script  # noqa: E402
import transformers  # noqa: E402

find = script.get_model_class


def without_vocabulary(*args, **kwargs):
    found = find(*args, **kwargs)
    # Mistral 3's class has others within it that do the work
    for each in (found, *(inner for inner in vars(found).values() if isinstance(inner, type))):
        each.set_vocab = lambda self: self.gguf_writer.add_tokenizer_model("no_vocab")
    return found


def unreadable(*args, **kwargs):
    raise ValueError("not by transformers")


if "--no-tokenizer" in options:
    script.get_model_class = without_vocabulary
if "--published-config" in options:
    transformers.AutoConfig.from_pretrained = unreadable
sys.argv = ["convert_hf_to_gguf.py", checkpoint, "--outfile", output, "--outtype", type_]
script.main()
