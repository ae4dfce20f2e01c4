"""``python -m finelaunch``."""

from finelaunch.cli import main

if __name__ == "__main__":
    main()
