-- People command gateways too: who asked stays on record, with what came back.
ALTER TABLE command ADD COLUMN asked_by text NOT NULL DEFAULT 'demand response';
-- What is still to be sent or answered is looked up every second, among all that ever was.
CREATE INDEX command_open ON command (issued_at) WHERE outcome IS NULL AND replied_at IS NULL;
CREATE INDEX command_of_gateway ON command (gateway, issued_at);
