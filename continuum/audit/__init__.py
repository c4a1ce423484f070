"""The audit.

``auditing`` gathers the facts, ``verdicts`` judges them, ``proofs`` replays histories; ``findings`` is the report.
"""

from continuum.audit.auditing import audit

__all__ = ["audit"]
