"""Tools for testing, on top of the public API."""
