"""The engines that `benchmarks.inference` and `benchmarks.encoders` compare, a module for each library.

A module's `decoder(folder, threads, **options)` and `encoder(file, threads, **options)` load a model for the CPU. They return
it with a text about it: versions, and the precision that it computes in where it chose that. A decoder is an `Engine` of
`lightgpt2.runtime.engines`; of an encoder `logits` are the hidden states. What a library loads late by itself is loaded when
its module is imported: that is no part of a model's memory.
"""
