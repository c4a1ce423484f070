-- The runs that may be deleted, in the order in which they may: parents before their children, and of a chain of continued runs
-- the last one first, so that whatever is still there when this is interrupted still finds what it needs. Goes on from
-- "retention_stays".
SELECT s.id, s.workflow
FROM standing s
WHERE s.due AND NOT EXISTS (SELECT FROM stays WHERE stays.id = s.id)
ORDER BY s.depth, s.id DESC
