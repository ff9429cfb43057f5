"""`python -m lightgpt2`: as the command `lightgpt2`."""

from lightgpt2.verbs import main

main()
