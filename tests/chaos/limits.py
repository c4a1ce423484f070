"""What the limits of queues must have held to, asked of the database by SQL.

Attempts that were recorded count: each had its place from before its first line to after its last. One that was given
up as its worker looked dead may well go on beside its successor for a while, and nobody can stop it.
"""

from __future__ import annotations

from django.conf import settings

__all__ = ["QUESTIONS"]

_QUEUES = settings.CONTINUUM["QUEUES"]
_FEW = _QUEUES["few"]["cluster_concurrency"]
_SLOWLY = _QUEUES["slowly"]["concurrency"]
_COUNT, _SECONDS = _QUEUES["paced"]["rate"]
# By so much the clocks of two workers may differ, which know the server's from an answer that took its time.
_CLOCKS_US = 50_000

# "place:queue:process:key:began:ended"; the most at once is reached when one of them begins.
_AT_ONCE = """
    WITH place AS MATERIALIZED (
        SELECT f.key, split_part(f.key, ':', 3) AS process, split_part(f.key, ':', 5)::float8 AS began,
            split_part(f.key, ':', 6)::float8 AS ended
        FROM testapp_effect f
        JOIN continuum_events e ON e.data->>'result' = f.key AND e.type = 'activity_completed'
        WHERE f.key LIKE 'place:{queue}:%'
    )
    SELECT a.key, count(*)
    FROM place a
    JOIN place b ON b.began <= a.began AND b.ended > a.began {where}
    GROUP BY a.key
    HAVING count(*) > {most}
"""
_STARTS = f"""
    WITH start AS MATERIALIZED (
        SELECT at, row_number() OVER (ORDER BY at) AS number
        FROM (
            SELECT (extract(epoch FROM e.recorded_at) * 1e6)::bigint - (e.data->>'took')::bigint AS at
            FROM continuum_events e
            WHERE e.type IN ('activity_completed', 'activity_retried') AND e.name LIKE '%.keeps_pace'
        ) AS of_all
    )
    SELECT a.at, b.at - a.at AS microseconds
    FROM start a
    JOIN start b ON b.number = a.number + {_COUNT}
    WHERE b.at - a.at < {round(_SECONDS * 1e6) - _CLOCKS_US}
"""

# Each names what no row of its answer may exist for.
QUESTIONS = {
    f"moments at which more than {_FEW} had a place in a queue of the cluster": _AT_ONCE.format(
        queue="few", where="", most=_FEW
    ),
    f"moments at which more than {_SLOWLY} had a worker's place in a queue": _AT_ONCE.format(
        queue="slowly", where="AND b.process = a.process", most=_SLOWLY
    ),
    f"windows of {_SECONDS:g} s in which more than {_COUNT} of a queue began": _STARTS,
}
