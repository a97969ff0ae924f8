"""``python -m advfeat``: the same as the command ``advfeat``."""

from advfeat.cli import main

if __name__ == "__main__":
    main()
