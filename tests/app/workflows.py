"""Workflows that tests share; found by autodiscovery."""
