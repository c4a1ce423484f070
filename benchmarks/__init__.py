"""Continuum and its peers, measured side by side on one PostgreSQL: ``python -m benchmarks``, see README.md."""
