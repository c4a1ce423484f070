"""``manage.py record_histories``: keep histories of the shop's processes, which the tests replay from then on."""

from django.core.management.base import BaseCommand

from shop.recording import SCENARIOS, record


class Command(BaseCommand):
    """Records what is missing; what was recorded once stays as it is."""

    help = (
        "Records a history of each scenario for the code as it is now, beside those that earlier versions of the code "
        "have left. Run it when a process has changed, and commit the new files."
    )
    requires_system_checks = ()

    def handle(self, *args, **options):
        """Record, and say what came of it."""
        recorded = [path for name in SCENARIOS if (path := record(name)) is not None]
        for path in recorded:
            self.stdout.write(f"recorded {path.name}")
        self.stdout.write(f"{len(recorded)} recorded, {len(SCENARIOS) - len(recorded)} were there already")
