"""Text out of a model: sampling, engines that run a model with its cache, and one interface over them."""
