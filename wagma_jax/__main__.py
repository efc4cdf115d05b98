"""``python -m wagma_jax``: the `wagma` command."""

import sys

from wagma_jax.commands.main import main

if __name__ == "__main__":
    sys.exit(main())
