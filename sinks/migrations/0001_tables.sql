-- The ledger: every accepted event, keyed by its position, so that writing one twice is writing it once.
-- content_hash lets lost claims be rebuilt without reading payloads. by_time narrows a read to the granules of
-- its time range, by_subject to the subject's rows where that leaves too many.
CREATE TABLE events
(
    log_topic     LowCardinality(String),
    log_partition UInt32,
    log_offset    UInt64,
    log_index     UInt32,
    log_time      DateTime64(6, 'UTC'),
    source        String,
    id            String,
    type          LowCardinality(String),
    subject       String,
    time          DateTime64(6, 'UTC'),
    attributes    Map(String, String),
    payload       String CODEC(ZSTD(1)),
    content_hash  UInt64,
    INDEX by_id id TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX by_time time TYPE minmax GRANULARITY 1,
    PROJECTION by_subject (SELECT subject, time, _part_offset ORDER BY subject, time)
)
ENGINE = ReplacingMergeTree
ORDER BY (log_topic, log_partition, log_offset, log_index)
SETTINGS deduplicate_merge_projection_mode = 'rebuild';

-- Everything not accepted, with its reason. Disjoint from events.
-- first_position and first_content are those of the first claim (duplicates, conflicts; subscription_invalid: its own).
CREATE TABLE rejects
(
    log_topic      LowCardinality(String),
    log_partition  UInt32,
    log_offset     UInt64,
    log_index      UInt32,
    log_time       DateTime64(6, 'UTC'),
    reason         LowCardinality(String),
    detail         String,
    source         String,
    id             String,
    subject        String,
    first_position Tuple(log_topic String, log_partition UInt32, log_offset UInt64, log_index UInt32),
    first_content  UInt64,
    payload        String CODEC(ZSTD(1)),
    INDEX by_id id TYPE bloom_filter(0.01) GRANULARITY 1
)
ENGINE = ReplacingMergeTree
ORDER BY (log_topic, log_partition, log_offset, log_index);

-- What each accepted subscription event changed. start and timezone say which of the subject's subscriptions it is,
-- end is what the event has left. A flow that resumes reads its subscriptions from here. The catalog's own are not here.
CREATE TABLE subscriptions
(
    log_topic      LowCardinality(String),
    log_partition  UInt32,
    log_offset     UInt64,
    log_index      UInt32,
    log_time       DateTime64(6, 'UTC'),
    subject        String,
    action         LowCardinality(String),
    plan           LowCardinality(String),
    start          Date,
    end            Nullable(Date),
    timezone       LowCardinality(String),
    effective_from DateTime64(6, 'UTC')
)
ENGINE = ReplacingMergeTree
ORDER BY (log_topic, log_partition, log_offset, log_index);

-- How far each partition is counted; messages and events are cumulative.
CREATE TABLE progress
(
    log_topic     LowCardinality(String),
    log_partition UInt32,
    next_offset   UInt64,
    messages      UInt64,
    events        UInt64,
    log_time      DateTime64(6, 'UTC')
)
ENGINE = ReplacingMergeTree(next_offset)
ORDER BY (log_topic, log_partition);

-- Every window of every meter. value is the aggregate (of avg, the sum), count the events in the row.
-- Usage booked late stands in a row of its own, by the UTC date of its log time.
CREATE TABLE usage
(
    meter           LowCardinality(String),
    subject         String,
    window_start    DateTime64(6, 'UTC'),
    window_end      DateTime64(6, 'UTC'),
    dimensions_key  String,
    booked_on       Date,
    dimensions      Map(String, String),
    aggregation     LowCardinality(String),
    value           Decimal(38, 12),
    count           UInt64,
    latest_time     DateTime64(6, 'UTC'),
    latest_position Tuple(log_topic String, log_partition UInt32, log_offset UInt64, log_index UInt32),
    inputs          UInt64,
    era             UInt32,
    version         UInt64,
    catalog_version UInt32
)
ENGINE = ReplacingMergeTree(version)
ORDER BY (meter, subject, window_start, window_end, dimensions_key, booked_on);

-- The distinct values of `unique` meters, so that late ones merge exactly.
CREATE TABLE usage_members
(
    meter          LowCardinality(String),
    subject        String,
    window_start   DateTime64(6, 'UTC'),
    window_end     DateTime64(6, 'UTC'),
    dimensions_key String,
    member         String
)
ENGINE = ReplacingMergeTree
ORDER BY (meter, subject, window_start, window_end, dimensions_key, member);

-- What each price of each billing period comes to. model and selection say how to spread it over windows.
CREATE TABLE rated_usage
(
    subject         String,
    plan            LowCardinality(String),
    price           LowCardinality(String),
    period_start    DateTime64(6, 'UTC'),
    period_end      DateTime64(6, 'UTC'),
    meter           LowCardinality(String),
    model           LowCardinality(String),
    selection       Map(String, Array(String)),
    quantity        Decimal(38, 12),
    amount          Decimal(76, 24),
    currency        LowCardinality(String),
    tiers           Array(Tuple(quantity Decimal(38, 12), amount Decimal(76, 24))),
    inputs          UInt64,
    era             UInt32,
    version         UInt64,
    catalog_version UInt32
)
ENGINE = ReplacingMergeTree(version)
ORDER BY (subject, plan, price, period_start, period_end);

-- What each metered entitlement has used.
CREATE TABLE quotas
(
    subject         String,
    plan            LowCardinality(String),
    feature         LowCardinality(String),
    period_start    DateTime64(6, 'UTC'),
    period_end      DateTime64(6, 'UTC'),
    meter           LowCardinality(String),
    used            Decimal(38, 12),
    allowance       Decimal(38, 12),
    state           LowCardinality(String),
    inputs          UInt64,
    era             UInt32,
    version         UInt64,
    catalog_version UInt32
)
ENGINE = ReplacingMergeTree(version)
ORDER BY (subject, plan, feature, period_start, period_end);

-- Every threshold crossed. threshold is absolute; used and at are what was seen when it was sent.
CREATE TABLE signals
(
    id              String,
    type            LowCardinality(String),
    subject         String,
    feature         LowCardinality(String),
    meter           LowCardinality(String),
    period_start    DateTime64(6, 'UTC'),
    period_end      DateTime64(6, 'UTC'),
    threshold       Decimal(76, 24),
    allowance       Decimal(76, 24),
    used            Decimal(76, 24),
    at              DateTime64(6, 'UTC'),
    catalog_version UInt32
)
ENGINE = ReplacingMergeTree
ORDER BY id;

-- Every applied catalog and the log time from which it holds.
CREATE TABLE catalogs
(
    version        UInt32,
    sha256         String,
    yaml           String,
    effective_from DateTime64(6, 'UTC'),
    applied_at     DateTime64(6, 'UTC')
)
ENGINE = ReplacingMergeTree
ORDER BY version;
