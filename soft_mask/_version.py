"""The one place that holds the version; pyproject.toml, setup.py and the compiled library take it from here."""

__version__ = "0.1.0"
