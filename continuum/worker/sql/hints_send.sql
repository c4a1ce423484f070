-- Sends a round of hints: one statement for all channels.
-- In a transaction of its own: NOTIFY takes a cluster-wide lock until its transaction is flushed to disk, so it must
-- never ride in one that has written something.
SELECT pg_notify(hint.channel, hint.payload)
FROM unnest(%(channels)s::text[], %(payloads)s::text[]) AS hint (channel, payload)
