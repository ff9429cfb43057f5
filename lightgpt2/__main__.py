"""`python -m lightgpt2`."""

from lightgpt2.verbs import main

if __name__ == "__main__":
    main()
