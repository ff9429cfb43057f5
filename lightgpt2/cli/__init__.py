"""The command line: entry point, LightGPT2CLI, and one function per verb."""
