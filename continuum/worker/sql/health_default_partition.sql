-- How many events lie in the default partition, counted no further than a thousand.
SELECT count(*) FROM (SELECT FROM continuum_events_default LIMIT 1000) AS found
