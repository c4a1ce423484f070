"""Orders from a CSV file into the shop's tables."""

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from pathlib import Path

from shop.models import Dispatched, Order, OrderLine

ORDER_LINES = Path(__file__).parent / "data" / "order_lines.csv"


class OrderFileError(ValueError):
    """The order file cannot be read; the message names the line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One row of the file."""

    order_number: str
    ordered_at: datetime
    customer: str
    country: str
    currency: str
    line: int
    sku: str
    product: str
    quantity: int
    unit_price_cents: int


def read_lines(path: Path = ORDER_LINES) -> Iterator[Line]:
    """Yield the rows of the file in its order.

    Raises:
        OrderFileError: a column is missing, or a value is not of its type.
    """
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        missing = set(Line.__slots__) - set(rows.fieldnames or ())
        if missing:
            raise OrderFileError(f"{path.name}: no column {', '.join(sorted(missing))}")
        for row in rows:
            try:
                yield Line(
                    order_number=row["order_number"],
                    ordered_at=datetime.fromisoformat(row["ordered_at"]),
                    customer=row["customer"],
                    country=row["country"],
                    currency=row["currency"],
                    line=int(row["line"]),
                    sku=row["sku"],
                    product=row["product"],
                    quantity=int(row["quantity"]),
                    unit_price_cents=int(row["unit_price_cents"]),
                )
            except (TypeError, ValueError) as error:
                raise OrderFileError(f"{path.name}, line {rows.line_num}: {error}") from error


def by_order(lines: Iterable[Line]) -> list[list[Line]]:
    """Group the lines of each order; the lines of an order follow each other in the file."""
    return [list(group) for _, group in groupby(lines, key=lambda line: line.order_number)]


def place(orders: Iterable[list[Line]], batch: int) -> list[Order]:
    """Insert the orders and their lines, numbered ``<batch>-<number in the file>``; return them in order."""
    groups = list(orders)
    placed = Order.objects.bulk_create(
        Order(
            number=f"{batch}-{first.order_number}",
            batch=batch,
            ordered_at=first.ordered_at,
            customer=first.customer,
            country=first.country,
            currency=first.currency,
        )
        for first, *_ in groups
    )
    OrderLine.objects.bulk_create(
        OrderLine(
            order=order,
            position=line.line,
            sku=line.sku,
            product=line.product,
            quantity=line.quantity,
            unit_price_cents=line.unit_price_cents,
        )
        for order, lines in zip(placed, groups, strict=True)
        for line in lines
    )
    products = sorted({line.sku for lines in groups for line in lines})
    Dispatched.objects.bulk_create((Dispatched(batch=batch, sku=sku) for sku in products), ignore_conflicts=True)
    return placed
