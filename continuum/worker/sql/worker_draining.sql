-- Shows that a node takes no more work. Its lease goes on until it leaves.
UPDATE continuum_workers
SET state = 'draining'
WHERE id = %(worker)s AND state = 'alive'
