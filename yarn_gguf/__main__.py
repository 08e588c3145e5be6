"""python -m yarn_gguf: the command yarn-gguf."""

import sys

from yarn_gguf.cli import main

sys.exit(main())
