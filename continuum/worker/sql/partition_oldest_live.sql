-- The oldest run of some months that has not ended. By the primary key, and so past those that have ended.
SELECT r.id
  FROM continuum_runs r
 WHERE r.id >= %(lower)s AND r.id < %(upper)s
   AND r.state IN ('pending', 'running', 'suspended', 'stuck_unknown_version')
 ORDER BY r.id
 LIMIT 1
