"""The engines that `benchmarks.inference` compares: how each is loaded, asked for a token and for all logits."""
