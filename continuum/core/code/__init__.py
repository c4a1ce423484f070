"""Reads a project's code without running it.

From the bottom up: ``sources`` finds and parses source; ``scopes``, ``kinds`` and ``typed`` tell what names and
expressions are; ``resolving`` finds what they stand for; ``reading`` does so for a whole function, once; ``constants``
reads the values of a module's constants; ``callees`` follows the calls from a workflow through the project; ``patches``
finds where it asks ``patched()``.
"""
