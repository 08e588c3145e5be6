"""Convert a checkpoint, slowly, until killed. Arguments: FOLDER, OUTPUT."""

import sys
import time

from yarn_gguf.convert import convert


def report(done: int, total: int) -> None:
    print(done, flush=True)
    time.sleep(0.01)


convert(sys.argv[1], sys.argv[2], type="f32", tokenizer=False, force=True, progress=report)
