-- Signals that a webhook endpoint did not take. Replaying one writes its row again, with replayed_at.
CREATE TABLE webhook_dead_letters
(
    endpoint      LowCardinality(String),
    id            String,
    type          LowCardinality(String),
    subject       String,
    at            DateTime64(6, 'UTC'),
    payload       String CODEC(ZSTD(1)),
    reason        LowCardinality(String),
    attempts      UInt32,
    last_status   UInt16,
    last_error    String,
    first_attempt DateTime64(6, 'UTC'),
    dead_at       DateTime64(6, 'UTC'),
    replayed_at   DateTime64(6, 'UTC'),
    version       UInt64
)
ENGINE = ReplacingMergeTree(version)
ORDER BY (endpoint, id);
