"""``python -m masters`` is the ``masters`` command."""

from masters.cli import main

if __name__ == "__main__":
    main()
