"""python -m fastsample: the same as the command `fastsample`."""

import sys

from .cli import main

sys.exit(main())
