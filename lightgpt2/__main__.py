"""`python -m lightgpt2`."""

from lightgpt2.cli.verbs import main

if __name__ == "__main__":
    main()
