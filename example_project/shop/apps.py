"""The shop: an ordinary Django app whose order processing happens to be durable."""

from django.apps import AppConfig


class ShopConfig(AppConfig):
    """App configuration of the example shop."""

    name = "shop"
    default_auto_field = "django.db.models.BigAutoField"
