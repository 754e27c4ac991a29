-- A message that cannot be taken apart gets no receipt, so its sender repeats it: count it, do not keep it again.
ALTER TABLE quarantine ADD COLUMN digest bytea;               -- SHA-256 of a whole message, with its topic
ALTER TABLE quarantine ADD COLUMN times_seen integer NOT NULL DEFAULT 1;
CREATE UNIQUE INDEX quarantine_digest ON quarantine (digest) WHERE digest IS NOT NULL;
CREATE INDEX quarantine_waiting ON quarantine (reason, quarantine_id) WHERE replayed_at IS NULL;
