"""The parts of ``manage.py demo``: processes, progress, the reviewer, and the checks at the end."""
