"""``python -m ghn_fast``: the command ``ghn-fast``."""

from ghn_fast.cli import main

if __name__ == "__main__":
    main()
