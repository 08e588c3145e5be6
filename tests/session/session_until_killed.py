"""Read and save in turns until killed; cut the text now and then. Arguments: MODEL, SESSION.

Writes are slowed down, so that most of the time goes into them. After each save it prints the number of
tokens in the session.
"""

import os
import random
import sys
import time

from yarn_gguf.run.llama import Llama
from yarn_gguf.session import file as session_file
from yarn_gguf.session.session import open_session

write_all, sync = session_file._write_all, os.fsync


def write_slowly(file, data) -> None:
    for part in (data[: len(data) // 2], data[len(data) // 2 :]):
        write_all(file, part)
        file.flush()
        time.sleep(0.03)


def sync_slowly(descriptor: int) -> None:
    time.sleep(0.03)
    sync(descriptor)


session_file._write_all, os.fsync = write_slowly, sync_slowly

model, path = sys.argv[1:]
llama = Llama(model, n_ctx=2048, n_batch=64, verbose=False, n_threads=1)
session = open_session(llama, path)
moments = random.Random()
while True:
    if llama.n_tokens > 1800:
        llama.n_tokens = moments.randrange(400)
    llama.prefill([3 + (llama.n_tokens + i) % 250 for i in range(moments.randrange(1, 200))])
    session.save(replace=True)  # a shorter text, too
    print(llama.n_tokens, flush=True)
