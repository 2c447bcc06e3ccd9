-- Usage by window: late usage merged in, windows without usage hidden.
-- value is the aggregate itself (avg: the quotient, cut at 12 decimals).
CREATE VIEW usage_by_window AS
SELECT
    u.meter AS meter,
    u.subject AS subject,
    u.window_start AS window_start,
    u.window_end AS window_end,
    u.dimensions_key AS dimensions_key,
    any(u.dimensions) AS dimensions,
    any(u.aggregation) AS aggregation,
    multiIf(
        any(u.aggregation) = 'min', min(u.value),
        any(u.aggregation) = 'max', max(u.value),
        any(u.aggregation) = 'latest', argMax(u.value, (u.latest_time, u.latest_position)),
        any(u.aggregation) = 'unique', toDecimal128(any(m.members), 12),
        any(u.aggregation) = 'avg', divideDecimal(sum(u.value), toDecimal128(greatest(sum(u.count), 1), 0), 12),
        sum(u.value)
    ) AS value,
    sum(u.count) AS count,
    max(u.booked_on) AS last_booked_on
FROM usage AS u FINAL
LEFT JOIN
(
    SELECT meter, subject, window_start, window_end, dimensions_key, count() AS members
    FROM usage_members FINAL
    GROUP BY meter, subject, window_start, window_end, dimensions_key
) AS m USING (meter, subject, window_start, window_end, dimensions_key)
GROUP BY meter, subject, window_start, window_end, dimensions_key
HAVING count != 0;

-- What each billing period comes to now, price by price.
CREATE VIEW rated_usage_current AS
SELECT subject, plan, price, period_start, period_end, meter, quantity, amount, currency, tiers, inputs, catalog_version
FROM rated_usage FINAL
WHERE inputs != 0;

-- A period's amount spread over its meter's windows in the order of event time (count and sum meters).
-- A graduated price is spread tier by tier, any other in proportion; the windows of a period sum to its
-- amount exactly, because each window gets the difference of two cumulative amounts.
CREATE VIEW cost_by_window AS
WITH
    windows AS
    (
        SELECT
            r.subject AS subject, r.plan AS plan, r.price AS price, r.period_start AS period_start,
            r.period_end AS period_end, r.meter AS meter, r.currency AS currency,
            any(r.quantity) AS period_quantity, any(r.amount) AS period_amount,
            any(r.tiers) AS tiers, any(r.model) AS model,
            u.window_start AS window_start, u.window_end AS window_end,
            sum(u.value) AS quantity
        FROM (SELECT * FROM rated_usage FINAL WHERE inputs != 0) AS r
        INNER JOIN (SELECT * FROM usage FINAL WHERE aggregation IN ('count', 'sum')) AS u
            ON u.subject = r.subject AND u.meter = r.meter
        WHERE u.window_start < r.period_end AND u.window_end > r.period_start
            AND arrayAll(label -> has(r.selection[label], u.dimensions[label]), mapKeys(r.selection))
        GROUP BY subject, plan, price, period_start, period_end, meter, currency, window_start, window_end
    ),
    cumulated AS
    (
        SELECT
            *,
            sum(quantity) OVER (
                PARTITION BY subject, plan, price, period_start, period_end
                ORDER BY window_start, window_end ROWS UNBOUNDED PRECEDING
            ) AS reached,
            sum(quantity) OVER (PARTITION BY subject, plan, price, period_start, period_end) AS windows_quantity,
            row_number() OVER (
                PARTITION BY subject, plan, price, period_start, period_end ORDER BY window_start DESC, window_end DESC
            ) AS from_last
        FROM windows
    ),
    charged AS
    (
        SELECT
            *,
            multiIf(
                from_last = 1, period_amount,
                windows_quantity = 0, toDecimal256(0, 24),
                model = 'graduated' AND windows_quantity = period_quantity AND reached >= 0,
                arrayFold(
                    (done, tier) -> (
                        done.1 - least(greatest(done.1, toDecimal128(0, 12)), tier.1),
                        done.2 + if(
                            tier.1 = 0, toDecimal256(0, 24),
                            divideDecimal(
                                multiplyDecimal(
                                    tier.2, toDecimal256(least(greatest(done.1, toDecimal128(0, 12)), tier.1), 12), 36
                                ),
                                toDecimal256(if(tier.1 = 0, toDecimal128(1, 12), tier.1), 12), 24
                            )
                        )
                    ),
                    tiers,
                    (reached, toDecimal256(0, 24))
                ).2,
                divideDecimal(
                    multiplyDecimal(period_amount, toDecimal256(reached, 12), 36),
                    toDecimal256(if(windows_quantity = 0, toDecimal128(1, 12), windows_quantity), 12), 24
                )
            ) AS amount_reached
        FROM cumulated
    )
SELECT
    subject, plan, price, period_start, period_end, meter, window_start, window_end, quantity,
    amount_reached - lagInFrame(amount_reached, 1, toDecimal256(0, 24)) OVER (
        PARTITION BY subject, plan, price, period_start, period_end
        ORDER BY window_start, window_end ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING
    ) AS amount,
    currency
FROM charged;

-- The state of every metered entitlement period, and how much of it is used.
CREATE VIEW quota_status AS
SELECT
    subject, plan, feature, period_start, period_end, meter, used, allowance,
    greatest(allowance - used, toDecimal128(0, 12)) AS remaining,
    state, inputs, catalog_version
FROM quotas FINAL
WHERE inputs != 0;

-- What was rejected, why, and how recently.
CREATE VIEW rejects_by_reason AS
SELECT log_topic, reason, count() AS events, max(log_time) AS last_log_time, any(detail) AS example
FROM rejects FINAL
GROUP BY log_topic, reason;

-- Per partition, up to the offset that is counted: every event is accepted or rejected.
CREATE VIEW completeness AS
SELECT
    p.log_topic AS log_topic,
    p.log_partition AS log_partition,
    p.next_offset AS next_offset,
    p.messages AS messages,
    p.events AS events,
    a.events AS accepted,
    r.events AS rejected,
    p.events = a.events + r.events AS balanced
FROM progress AS p FINAL
LEFT JOIN
(
    SELECT e.log_topic AS log_topic, e.log_partition AS log_partition, count() AS events
    FROM (SELECT log_topic, log_partition, log_offset FROM events FINAL) AS e
    INNER JOIN (SELECT log_topic, log_partition, next_offset FROM progress FINAL) AS q USING (log_topic, log_partition)
    WHERE e.log_offset < q.next_offset
    GROUP BY log_topic, log_partition
) AS a USING (log_topic, log_partition)
LEFT JOIN
(
    SELECT e.log_topic AS log_topic, e.log_partition AS log_partition, count() AS events
    FROM (SELECT log_topic, log_partition, log_offset FROM rejects FINAL) AS e
    INNER JOIN (SELECT log_topic, log_partition, next_offset FROM progress FINAL) AS q USING (log_topic, log_partition)
    WHERE e.log_offset < q.next_offset
    GROUP BY log_topic, log_partition
) AS r USING (log_topic, log_partition);
