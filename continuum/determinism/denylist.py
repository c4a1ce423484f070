"""What workflow code may not do: one rule for each kind of it, as data.

The first digit of a rule's id is its group: 1 values that differ each time, 2 Django and the database, 3 the world
outside the process, 4 the process and its neighbours, 5 state that outlives a run, 6 order, 7 control, 8 output,
9 the scanner's own. A finding's id in ``manage.py check`` is ``continuum.`` and that of its rule.
"""

from __future__ import annotations

from continuum.determinism.denied_in_django import IN_DJANGO
from continuum.determinism.denied_outside import OUTSIDE
from continuum.determinism.rule import Rule, within

__all__ = ["RULES", "rule"]

RULES: tuple[Rule, ...] = (
    # 1: values that differ each time
    Rule(
        id="D101",
        title="the clock",
        does="reads the clock",
        advice="Use continuum.now() or continuum.today().",
        names=(
            *within("time", "time time_ns monotonic monotonic_ns"),
            *within("time", "perf_counter perf_counter_ns process_time process_time_ns"),
            *within("time", "thread_time thread_time_ns clock_gettime clock_gettime_ns"),
            *within("time", "localtime(0) gmtime(0) ctime(0) asctime(0) strftime(1)"),
            *within("datetime", "datetime.now datetime.utcnow datetime.today date.today"),
            *within("django.utils.timezone", "now localtime(0) localdate(0)"),
            *within("email.utils", "localtime(0) formatdate(0)"),
            *within("arrow", "now utcnow Arrow.now Arrow.utcnow"),
            *within("pendulum", "now today tomorrow yesterday"),
            *within("pandas", "Timestamp.now Timestamp.today Timestamp.utcnow"),
        ),
    ),
    Rule(
        id="D102",
        title="randomness",
        does="gives something else each time",
        advice="Use continuum.random() or continuum.uuid4(); draw secrets in an activity, or through side_effect().",
        names=(
            *within("random", "random uniform triangular randint choice"),
            *within("random", "randrange sample shuffle choices normalvariate"),
            *within("random", "lognormvariate expovariate vonmisesvariate"),
            *within("random", "gammavariate gauss betavariate binomialvariate"),
            *within("random", "paretovariate weibullvariate getrandbits randbytes seed setstate getstate"),
            *within("random", "Random(0) SystemRandom"),
            "secrets.*",
            *within("os", "urandom getrandom"),
            *within("uuid", "uuid1 uuid4 uuid6 uuid7 uuid8(2)"),
            *within("django.utils.crypto", "get_random_string"),
            *within("django.core.management.utils", "get_random_secret_key"),
            *within("email.utils", "make_msgid"),
            *within("numpy.random", "rand randn randint random random_sample"),
            *within("numpy.random", "choice shuffle permutation normal uniform"),
            *within("numpy.random", "seed default_rng(0)"),
        ),
        allowed=("secrets.compare_digest", "hmac.compare_digest"),
    ),
    Rule(
        id="D103",
        title="real sleeping",
        does="sleeps, and has every other run of its worker wait",
        advice="Use `await continuum.sleep(seconds)`, which is a durable timer.",
        names=("time.sleep", "gevent.sleep", "eventlet.sleep", "trio.sleep", "anyio.sleep"),
    ),
    Rule(
        id="D104",
        title="identities and hashes of objects",
        does="depends on memory addresses or on the process's hash seed",
        advice="Compare values, or use a key of your own; hashlib's digests are the same everywhere.",
        names=("builtins.id", "builtins.hash"),
        certain=False,
    ),
    *IN_DJANGO,
    *OUTSIDE,
    # 5: state that outlives a run
    Rule(
        id="D501",
        title="global variables",
        does="changes a variable of its module, which other runs and replays share",
        advice="Keep it in a local variable: the run's locals are as durable as its history.",
    ),
    Rule(
        id="D502",
        title="containers of modules",
        does="changes a container that other runs and replays share",
        advice="Make a container inside the workflow and pass it on.",
    ),
    Rule(
        id="D503",
        title="attributes of classes, modules and their objects",
        does="changes an object that other runs and replays share",
        advice="Make an object inside the workflow and keep the state there.",
    ),
    Rule(
        id="D504",
        title="cached helpers that are not pure",
        does="gives what it gave another run in the same process",
        advice="Take the cache away, or make the helper depend on its arguments only.",
    ),
    # 6: order
    Rule(
        id="D601",
        title="the order of sets",
        does="has another order in another process",
        advice="Iterate over sorted(…), or over a list or dict, which keep the order of insertion.",
    ),
    Rule(
        id="D602",
        title="the order of asyncio.wait and asyncio.as_completed",
        does="is ordered by memory addresses",
        advice="Use continuum.wait() or continuum.as_completed(), which take the same arguments and keep order.",
        names=("asyncio.as_completed",),
    ),
    # 7: control
    Rule(
        id="D701",
        title="swallowing everything",
        does="swallows cancellation, and with it what stops a run",
        advice="Catch Exception, or end the handler with `raise`.",
    ),
    Rule(
        id="D702",
        title="swallowing cancellation",
        does="swallows cancellation: the run goes on as if nobody had cancelled it",
        advice="End the handler with `raise`; if going on is what you want, say so with a suppression.",
        certain=False,
    ),
    Rule(
        id="D703",
        title="code chosen or made at run time",
        does="runs code that cannot be looked at",
        advice="Call functions by name, from a dict of them if need be.",
        certain=False,
        names=(
            *within("builtins", "eval exec compile __import__"),
            *within("importlib", "import_module reload"),
            *within("runpy", "run_module run_path"),
            *within("django.utils.module_loading", "import_string"),
        ),
    ),
    Rule(
        id="D704",
        title="what is made and never awaited",
        does="is not awaited, so it is never asked for and nothing happens",
        advice="Await it, or have it go on beside, while the run lasts, with asyncio.create_task(…).",
    ),
    # 8: output
    Rule(
        id="D801",
        title="print and the terminal",
        does="says it again in every replay",
        advice="Use continuum.logger, which is silent during replay.",
        names=(
            *within("builtins", "print input breakpoint"),
            *within("sys", "stdout stderr stdin"),
            *within("pprint", "pprint pp"),
            *within("traceback", "print_exc print_stack print_exception"),
            *within("pdb", "set_trace"),
            *within("click", "echo secho prompt confirm"),
            *within("rich", "print"),
        ),
        certain=False,
    ),
    Rule(
        id="D802",
        title="ordinary loggers",
        does="logs it again in every replay",
        advice="Use continuum.logger, which is silent during replay.",
        names=(
            *within("logging", "debug info warning warn error exception critical fatal log"),
            *within("logging.Logger", "debug info warning warn error exception critical fatal log handle"),
            *within("logging.LoggerAdapter", "debug info warning warn error exception critical log"),
            *within("loguru", "logger"),
        ),
        instances=("structlog._config.BoundLoggerLazyProxy", "structlog.stdlib.BoundLogger"),
        certain=False,
    ),
    # 9: the scanner's own
    Rule(
        id="D901",
        title="suppressions without a reason",
        does="does not say why",
        advice="Write the reason behind the brackets: `# continuum: allow[D101] only for the log`. Until then it "
        "suppresses nothing.",
        certain=False,
    ),
    Rule(
        id="D902",
        title="suppressions of nothing",
        does="suppresses nothing",
        advice="Take the comment away.",
        certain=False,
    ),
    Rule(
        id="D903",
        title="workflows that cannot be read",
        does="could not be read, so nothing in it is judged",
        advice="Define workflows in files that are there where they run.",
        certain=False,
    ),
)

_BY_ID = {each.id: each for each in RULES}


def rule(rule_id: str) -> Rule:
    """Return the rule with an id, such as ``D101``."""
    return _BY_ID[rule_id]
