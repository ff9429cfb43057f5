"""Files that go into model folders which plain transformers cannot load: they import torch, transformers and each other."""
