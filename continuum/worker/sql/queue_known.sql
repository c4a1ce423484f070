-- Makes sure that a queue with a limit for the whole cluster has a row. Waits for nobody.
INSERT INTO continuum_queues (name) VALUES (%(queue)s) ON CONFLICT (name) DO NOTHING
