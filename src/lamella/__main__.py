"""`python -m lamella`: the same as the command `lamella`."""

from lamella.cli import main

if __name__ == "__main__":
    main()
