"""Record golden histories: ``python -m tests.core.record_golden``, on every Python version that is supported.

Each construct and a set of generated programs is driven in several orders; what happened goes to
``golden/<name>.<python version>.json``. ``test_golden.py`` replays the files of all versions on the one that runs.
Record again only when the format of histories changes on purpose: these files are what runs in flight look like.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from continuum.core.history import Event
from tests.core.constructs import CONSTRUCTS
from tests.core.driver import Driver, in_order, newest_first, shuffled
from tests.core.programs import Generator, fate_of_child, outcome_of_attempt, program

FOLDER = Path(__file__).parent / "golden"
PROGRAMS = 60


def construct(name: str, order: str) -> Driver:
    """Drive a construct in the order of that name."""
    scheduler = {"in order": in_order, "newest first": newest_first}.get(order)
    driver = Driver(CONSTRUCTS[name], scheduler=scheduler or shuffled(random.Random(order).randrange)).open()
    for number in (1, 2, 3):
        driver.signal("a", number, after=number)
    return driver.signal("b", 4, after=30).go()


def generated(seed: int, families: bool = False) -> Driver:
    """Drive a generated program."""
    chance = random.Random(seed)
    code = Generator(chance.randrange, families=families).program()
    driver = Driver(
        program,
        (code,),
        scheduler=shuffled(chance.randrange),
        mocks={"offspring": fate_of_child},
        perform=outcome_of_attempt,
    ).open()
    for number in range(chance.randrange(5)):
        driver.signal("ab"[chance.randrange(2)], number, after=chance.randrange(6))
    if chance.randrange(4) == 0:
        driver.cancel("enough", after=chance.randrange(6))
    return driver.go()


def recordings() -> Iterator[tuple[str, list[tuple[str, Driver]]]]:
    for name in CONSTRUCTS:
        yield name, [(order, construct(name, order)) for order in ("in order", "newest first", "by chance")]
    yield "programs", [(str(seed), generated(seed)) for seed in range(PROGRAMS)]
    yield "families", [(str(seed), generated(seed, families=True)) for seed in range(PROGRAMS)]


def recording(order: str, driver: Driver) -> dict[str, Any]:
    """What of a run has to be the same wherever it is replayed."""
    return {
        "order": order,
        "input": json.loads(driver.input),
        "history": [_portable(event) for event in driver.history],
        "asked": [list(asked) for asked in driver.execution.asked],
        "notes": driver.notes,
        "open": {length: [command[0] for command in state.pending] for length, state in driver.states.items()},
        "outcome": driver.outcome and [driver.outcome.state, driver.outcome.result],
    }


def _portable(event: Event) -> list[Any]:
    data = json.loads(event.data)
    if isinstance(data.get("error"), dict):
        data["error"]["traceback"] = ""
    return [*event._replace(data=json.dumps(data, separators=(",", ":")))]


def main() -> None:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    FOLDER.mkdir(exist_ok=True)
    for name, drivers in recordings():
        path = FOLDER / f"{name}.{version}.json"
        lines = ",\n".join(json.dumps(recording(order, driver)) for order, driver in drivers)
        path.write_text(f"[\n{lines}\n]\n")
        for _, driver in drivers:
            driver.close()
    print(f"recorded {len(list(FOLDER.glob(f'*.{version}.json')))} files for Python {version}")


if __name__ == "__main__":
    main()
