-- How many runs of each workflow there are between some ids, how many have ended, how many of these are kept for ever, and how
-- many are due; then how many of the due ones stay. Goes on from "retention_stays". The few that stay are counted for
-- themselves, by their ids: beside all others each of these would be looked for among them.
SELECT
    s.workflow, width_bucket(s.id, %(bounds)s::uuid[]),
    count(*),
    count(*) FILTER (WHERE s.ended),
    count(*) FILTER (WHERE s.ended AND s.retention_until IS NULL),
    count(*) FILTER (WHERE s.due),
    0
FROM standing s
GROUP BY 1, 2
UNION ALL
SELECT s.workflow, width_bucket(s.id, %(bounds)s::uuid[]), 0, 0, 0, 0, count(*)
FROM stays
JOIN standing s ON s.id = stays.id
WHERE s.due
GROUP BY 1, 2
