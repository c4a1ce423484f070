-- Keeps what a queue's rate limit counts.
UPDATE continuum_queues SET recent = %(recent)s::json WHERE name = %(queue)s
