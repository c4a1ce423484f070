-- Sends what hints have gathered: one statement for all channels, in a transaction that writes nothing else.
-- Its commit need not wait for the disk. That is set for this transaction only, since behind a transaction pooler a
-- setting of the session would stay behind for others.
SELECT set_config('synchronous_commit', 'off', true), pg_notify(hint.channel, hint.payload)
FROM unnest(%(channels)s::text[], %(payloads)s::text[]) AS hint (channel, payload)
