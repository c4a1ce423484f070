import uuid

from django.db import models


class Effect(models.Model):
    """A mark that something happened, for tests that count how often it did."""

    key = models.TextField(db_index=True)
    created_at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return self.key


class VisibleItems(models.Manager):
    def get_queryset(self):
        return super().get_queryset().exclude(name="hidden")


class Item(models.Model):
    """Something to refer to."""

    name = models.TextField()

    objects = VisibleItems()

    def __str__(self) -> str:
        return self.name


class NamedItem(Item):
    class Meta:
        proxy = True


class Parcel(Item):
    weight = models.IntegerField()


class Ticket(models.Model):
    id = models.UUIDField(primary_key=True, default=uuid.uuid4)


class Country(models.Model):
    code = models.CharField(primary_key=True, max_length=2)


class Seat(models.Model):
    pk = models.CompositePrimaryKey("row", "number")
    row = models.CharField(max_length=2)
    number = models.IntegerField()
