-- How many runs have not ended.
SELECT count(*) FROM continuum_runs WHERE state IN ('pending', 'running', 'suspended', 'stuck_unknown_version')
