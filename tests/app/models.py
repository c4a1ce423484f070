from django.db import models


class Effect(models.Model):
    """A mark that something happened, for tests that count how often it did."""

    key = models.TextField(db_index=True)
    created_at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return self.key
