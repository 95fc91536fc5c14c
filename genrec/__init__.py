"""TIGER and its item tokenizers in plain PyTorch: data, semantic IDs, training, exact decoding, honest metrics."""

__version__ = "0.1.0"
