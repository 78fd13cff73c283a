"""hotswap: one process that serves Hugging Face models and changes them in place."""

__version__ = "0.1.0"
