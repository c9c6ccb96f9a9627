"""The version of jaxq; written into every file that it makes."""

__version__ = "0.1.0"
