"""``manage.py demo``: orders, workers, one of them killed, and the proof that nothing was lost or doubled."""

import signal
import threading
import time
from argparse import ArgumentParser
from collections import Counter
from contextlib import suppress

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.management import BaseCommand, CommandError, call_command
from django.db import connection, transaction
from django.db.models import Max

import continuum
from shop.activities import lot
from shop.demo import checks, others
from shop.demo.processes import Child, Children, free_port, listening, wait_until
from shop.demo.progress import Progress
from shop.demo.reviewer import decide_open_reviews
from shop.models import Order
from shop.orders import Line, by_order, place, read_lines
from shop.workflows import SUSPICIOUS, OrderRequest, order_flow

REVIEW_TIMEOUT = 15.0
"""Seconds a fraud review may take in the demo; the default of :class:`OrderRequest` is a day."""

WORKER = ("continuum_worker", "--processes", "1")
"""The command of each worker. Left to itself it is several under one parent, and the demo kills exactly one."""

KILL_AT = 0.4
"""The share of finished orders at which a worker is killed."""

REPLACED_AFTER = 1.0
"""Seconds from the kill to the start of another worker."""

IN_A_BATCH = 10
"""One order in so many is processed as the child of a batch, the others by runs of their own."""

PERIOD = 0.6
"""Seconds the demo's subscription is billed for at a time."""

STALLED_AFTER = 120.0
"""Seconds without a single finished order after which the demo gives up."""


class Command(BaseCommand):
    """Process some hundreds of orders while a worker is killed, then check the books."""

    help = "Run orders through workers, kill one of them with kill -9, and check that every order ended exactly once."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--orders", type=int, default=300, help="how many orders to process (default 300)")
        parser.add_argument("--workers", type=int, default=2, help="how many worker processes (default 2)")
        parser.add_argument("--port", type=int, default=8000, help="where the admin is served (default 8000)")
        parser.add_argument(
            "--exit", "--no-admin", action="store_true", dest="leave", help="end after the checks, without the admin"
        )

    def handle(self, *args: object, orders: int, workers: int, port: int, leave: bool, **options: object) -> None:
        """Run the demo; exit status 0 if every check holds, 1 if not."""
        groups = by_order(read_lines())
        if not 1 <= orders <= len(groups):
            raise CommandError(f"--orders is {orders}; the order file holds {len(groups)}")
        if workers < 1:
            raise CommandError(f"--workers is {workers}; at least one is needed")
        _end_like_ctrl_c(signal.SIGTERM, signal.SIGHUP)
        try:
            self._prepare()
            with Children(settings.DATA_DIR / "logs") as children:
                batch = self._place(groups[:orders])
                self._process(children, batch, orders, workers)
                if not self._report(batch):
                    raise CommandError(f"the books are wrong; the workers' logs are in {children.logs}")
                if not leave:
                    self._serve(children, groups, port)
        except KeyboardInterrupt:
            raise CommandError("stopped in the middle; the next worker finishes the orders", returncode=130) from None

    def _prepare(self) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SHOW server_version")
            version = cursor.fetchone()[0].split()[0]
        self._step("Database", f"{settings.DATABASE_DESCRIPTION} (PostgreSQL {version})")
        call_command("migrate", verbosity=0, interactive=False)
        self._step("Tables", "migrated")
        self._step("Account", _admin_account())

    def _place(self, groups: list[list[Line]]) -> int:
        started = time.monotonic()
        batch = 1 + (Order.objects.aggregate(last=Max("batch"))["last"] or 0)
        together = _place_and_start(groups, batch, REVIEW_TIMEOUT, in_a_batch=max(1, len(groups) // IN_A_BATCH))
        others.start_export(batch)
        others.start_subscription(batch, groups[0][0].customer, PERIOD)
        self._step(
            "Orders",
            f"{len(groups)} orders with {sum(map(len, groups))} lines from order_lines.csv placed as batch {batch}, "
            f"their runs started in the same transaction: {time.monotonic() - started:.1f} s",
        )
        self._step(
            "Beside",
            f"a batch with {together} of these orders and one that does not exist, an export of the order lines, "
            f"a subscription that is billed every {PERIOD:g} s",
        )
        return batch

    def _process(self, children: Children, batch: int, orders: int, workers: int) -> None:
        living = [children.start(f"worker-{n}", *WORKER) for n in range(1, workers + 1)]
        pids = ", ".join(str(worker.pid) for worker in living)
        self._step("Workers", f"{workers} x manage.py {' '.join(WORKER)} (pid {pids}), logs in {children.logs}")
        started = moved = time.monotonic()
        killed = replaced = None
        done = signals = 0
        with Progress(orders, self.stdout) as progress:
            while done < orders or not replaced:
                time.sleep(0.1)
                now = time.monotonic()
                _require_alive(living)
                signals += decide_open_reviews(batch)
                before, done = done, checks.finished(batch)
                progress.show(done)
                if done > before:
                    moved = now
                if not killed and done >= KILL_AT * orders:
                    # Rather the one that is in the middle of the export: that is the harder case.
                    exporter = checks.exporter(batch)
                    held = {worker: checks.held_by(worker.pid, batch) for worker in living}
                    victim = max(living, key=lambda worker: (worker.pid == exporter, len(held[worker])))
                    living.remove(victim)
                    victim.kill()
                    killed = now
                    checks.mark_recorded(batch)
                    also = " and wrote the export" if victim.pid == exporter else ""
                    progress.say(
                        f"   kill -9 {victim.pid} ({victim.name}), which held {len(held[victim])} "
                        f"unfinished orders{also}"
                    )
                elif killed and not replaced and now - killed > REPLACED_AFTER:
                    replaced = children.start(f"worker-{workers + 1}", *WORKER)
                    living.append(replaced)
                    progress.say(f"   {replaced.name} started in its place (pid {replaced.pid})")
                if now - moved > STALLED_AFTER:
                    raise CommandError(f"no order finished for {STALLED_AFTER:.0f} s:\n{living[0].tail()}")
        self._step(
            "Finished",
            f"{orders} orders in {moved - started:.1f} s, {signals} fraud reviews decided by signal "
            f"(those nobody decides time out after {REVIEW_TIMEOUT:.0f} s)",
        )
        if not others.end(batch):
            raise CommandError(f"the batch, the export or the subscription does not end:\n{living[0].tail()}")
        took_over = checks.seconds_to_take_over(held[victim], batch)
        if took_over is not None:
            self._step("Takeover", f"the killed worker's orders went on {took_over:.1f} s after the kill")

    def _report(self, batch: int) -> bool:
        self._step("Checks", "in SQL, over the shop's tables and the histories")
        good = True
        for sentence, offences in checks.offences(batch, others.exported(batch)):
            good &= not offences
            mark = self.style.SUCCESS("ok    ") if not offences else self.style.ERROR("WRONG ")
            self.stdout.write(f"   {mark} {sentence}" + (f" ({offences} contradict it)" if offences else ""))
        self._step("Summary", "")
        states = Counter(Order.objects.filter(batch=batch).values_list("state", flat=True))
        rows = [(f"orders {state}", count) for state, count in sorted(states.items(), key=lambda x: -x[1])]
        for label, number in rows + checks.figures(batch):
            self.stdout.write(f"   {label:<42} {number:>6}")
        return good

    def _serve(self, children: Children, groups: list[list[Line]], port: int) -> None:
        suspicious = [lines for lines in groups if _will_wait(lines)][:3]
        batch = 1 + Order.objects.aggregate(last=Max("batch"))["last"]
        _place_and_start(suspicious, batch, OrderRequest.review_timeout, in_a_batch=len(suspicious) - 1)
        others.start_subscription(batch, suspicious[0][0].customer, period_seconds=60)
        port = free_port(port)
        web = children.start("web", "runserver", f"127.0.0.1:{port}", "--noreload")
        wait_until(lambda: listening(port) or web.exit_code is not None, timeout=60)
        if web.exit_code is not None:
            raise CommandError(f"the web server did not start:\n{web.tail()}")
        url = f"http://127.0.0.1:{port}/admin/"
        self._step("Admin", f"{url}  (user admin, password admin)")
        self.stdout.write(
            f"   Runs:       {url}continuum/run/\n"
            f"   Orders:     {url}shop/order/\n"
            f"   To try:     {len(suspicious)} more orders wait for a fraud review, a day at most. Decide them\n"
            f"               in {url}shop/fraudreview/ and watch their runs, and the\n"
            "               batch most of them belong to, go on. A subscription is billed every minute.\n"
            "   Ctrl-C ends the demo. The database stays; the next demo adds a new batch."
        )
        with suppress(KeyboardInterrupt):
            while web.exit_code is None:
                time.sleep(0.2)
            raise CommandError(f"the web server has ended:\n{web.tail()}")
        self.stdout.write("\nStopping the workers and the web server.")

    def _step(self, name: str, text: str) -> None:
        self.stdout.write(self.style.MIGRATE_HEADING(f"{name:<9}") + f" {text}")
        self.stdout.flush()


def _place_and_start(groups: list[list[Line]], batch: int, review_timeout: float, in_a_batch: int) -> int:
    """Place the orders and start their runs, the last ones as children of a batch: all of it commits, or none.

    Returns:
        How many orders the batch is made of.
    """
    with transaction.atomic():
        placed = place(groups, batch)
        alone, together = placed[: len(placed) - in_a_batch], placed[len(placed) - in_a_batch :]
        runs = continuum.start_many(order_flow, [OrderRequest(order.number, review_timeout) for order in alone])
        for order, run in zip(alone, runs, strict=True):
            order.run_id = run.id
        Order.objects.bulk_update(alone, ["run_id"])
        others.start_batch(together, batch, review_timeout)
    return len(together)


def _will_wait(lines: list[Line]) -> bool:
    """Whether the order will get as far as a fraud review."""
    number = lines[0].order_number
    return (
        all(line.quantity for line in lines)
        and lot(number, "card") % 41 != 0
        and lot(number, "fraud") % 100 >= SUSPICIOUS
    )


def _admin_account() -> str:
    """Create the superuser admin/admin, on a development site only; return what to tell the reader."""
    users = get_user_model()
    if users.objects.filter(username="admin").exists():
        return "admin, which exists already (its password is admin unless you changed it)"
    if not settings.DEBUG:
        return "none created, because DEBUG is off: use manage.py createsuperuser"
    users.objects.create_superuser("admin", password="admin")
    return "created admin with the password admin"


def _require_alive(workers: list[Child]) -> None:
    for worker in workers:
        if worker.exit_code is not None:
            raise CommandError(f"{worker.name} ended by itself with status {worker.exit_code}:\n{worker.tail()}")


def _end_like_ctrl_c(*signals: signal.Signals) -> None:
    """Let these signals end the demo as Ctrl-C does, so that it cleans up."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():
        for number in signals:
            signal.signal(number, interrupt)
