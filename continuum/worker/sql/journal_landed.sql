-- After a commit whose acknowledgement was lost: which of its records are there? A batch is one transaction, so the last
-- record of each run tells; if the token is not ours any more, what stands there may be the work of the next owner.
SELECT b.run_id
FROM unnest(%(run_ids)s::uuid[], %(tokens)s::bigint[], %(seqs)s::integer[]) AS b (run_id, token, seq)
JOIN continuum_runs r ON r.id = b.run_id AND r.lease_token + 0 = b.token
WHERE EXISTS (SELECT 1 FROM continuum_events e WHERE e.run_id = b.run_id AND e.seq = b.seq)
