"""Speed and memory of models, each measured in a fresh process."""
