"""The language core: definitions, effects, the deterministic loop and replay.

A pure library. Given a history it runs a workflow function and says which commands the function asks for; it knows no
Django, no database and no clock. ``continuum.worker`` drives it against PostgreSQL, tests drive it in memory.
"""
