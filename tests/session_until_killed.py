"""Read and save by turns, going back now and then, until killed. Arguments: MODEL, SESSION.

Prints, for each turn, the tokens of the session once it is saved.
"""

import random
import sys

from yarn_gguf.llama import Llama

model, path = sys.argv[1:]
llama = Llama(model, n_ctx=2048, n_batch=64, verbose=False, n_threads=1)
session = llama.open_session(path)
moments = random.Random()
while True:
    if llama.n_tokens > 1800:
        llama.n_tokens = moments.randrange(400)
    llama.prefill([3 + (llama.n_tokens + i) % 250 for i in range(moments.randrange(1, 200))])
    session.save()
    print(llama.n_tokens, flush=True)
