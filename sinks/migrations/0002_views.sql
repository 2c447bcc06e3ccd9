-- Usage by window: late usage merged in, windows without usage hidden. value is the aggregate itself: of avg
-- the quotient, rounded half to even at 12 decimals (40 decimals tell a tie from a near tie); of unique the
-- number of distinct members, so that a member seen on time and late counts once.
CREATE VIEW usage_by_window AS
SELECT
    meter,
    subject,
    window_start,
    window_end,
    dimensions_key,
    anyIf(labels, is_usage) AS dimensions,
    anyIf(kind, is_usage) AS aggregation,
    multiIf(
        aggregation = 'min', min(total),
        aggregation = 'max', max(total),
        aggregation = 'latest', argMax(total, place),
        aggregation = 'unique', toDecimal128(countIf(NOT is_usage), 12),
        aggregation = 'avg', toDecimal128(
            roundBankers(divideDecimal(sum(total), toDecimal128(greatest(sum(inputs), 1), 0), 40), 12), 12
        ),
        sum(total)
    ) AS value,
    sum(inputs) AS count,
    max(booked) AS last_booked_on
FROM
(
    SELECT
        meter, subject, window_start, window_end, dimensions_key, true AS is_usage, dimensions AS labels,
        aggregation AS kind, value AS total, count AS inputs, (latest_time, latest_position) AS place,
        booked_on AS booked
    FROM usage FINAL
    UNION ALL
    SELECT
        meter, subject, window_start, window_end, dimensions_key, false, map(), '', toDecimal128(0, 12), 0,
        (toDateTime64(0, 6, 'UTC'), ('', 0, 0, 0)), toDate(0)
    FROM usage_members FINAL
)
GROUP BY meter, subject, window_start, window_end, dimensions_key
HAVING count != 0;

-- What each billing period comes to now, price by price.
CREATE VIEW rated_usage_current AS
SELECT subject, plan, price, period_start, period_end, meter, quantity, amount, currency, tiers, inputs, catalog_version
FROM rated_usage FINAL
WHERE inputs != 0;

-- A period's amount spread over its meter's windows in the order of event time (count and sum meters). Of a
-- period, the windows' quantities and amounts sum exactly to those of rated_usage, because each window gets the
-- difference of two cumulative amounts: of a graduated price tier by tier (a tier's amount, its flat_amount
-- included, in proportion to the tier's units), of any other price in proportion to the quantity. If the period's
-- quantity is 0, the last window carries the amount.
-- quantity is what of a window counts in the period. A window that reaches beyond the period, or lies in two
-- periods of its subject (whose subscription began or ended in mid-month), does not say itself where its usage
-- belongs; the period's quantity does. Windows are taken in, the surest first, until they make up that quantity.
-- If no step does so exactly, the doubtful windows share what the sure ones leave, in proportion to their own
-- quantities; if that cannot be either, all windows share the period's quantity.
CREATE VIEW cost_by_window AS
WITH
    periods AS
    (
        SELECT
            subject, plan, price, period_start, period_end, meter, model, selection, quantity, amount, currency, tiers,
            groupUniqArray((period_start, period_end)) OVER (PARTITION BY subject) AS spans,
            toRelativeMonthNum(period_start) AS first_month
        FROM rated_usage FINAL
        WHERE inputs != 0
    ),
    -- Months (in UTC) only keep the join from comparing every period of a subject with every window.
    pairs AS
    (
        SELECT
            p.subject AS subject, p.plan AS plan, p.price AS price, p.period_start AS period_start,
            p.period_end AS period_end, p.meter AS meter, p.model AS model, p.currency AS currency,
            p.quantity AS period_quantity, p.amount AS period_amount, p.tiers AS tiers,
            u.window_start AS window_start, u.window_end AS window_end, u.value AS value,
            p.period_start <= u.window_start AND u.window_end <= p.period_end AS inside,
            arrayFilter(
                span -> span != (p.period_start, p.period_end) AND span.1 < u.window_end AND u.window_start < span.2,
                p.spans
            ) AS rivals
        FROM
        (
            SELECT *, arrayJoin(range(first_month, toRelativeMonthNum(period_end) + 1)) AS month FROM periods
        ) AS p
        INNER JOIN
        (
            SELECT
                subject, meter, window_start, window_end, dimensions, value,
                toRelativeMonthNum(window_start) AS first_month,
                arrayJoin(range(first_month, toRelativeMonthNum(window_end) + 1)) AS month
            FROM usage FINAL
            WHERE inputs != 0 AND aggregation IN ('count', 'sum')
        ) AS u ON u.subject = p.subject AND u.meter = p.meter AND u.month = p.month
        WHERE p.month = greatest(p.first_month, u.first_month)
            AND u.window_start < p.period_end AND p.period_start < u.window_end
            AND arrayAll(label -> has(p.selection[label], u.dimensions[label]), mapKeys(p.selection))
    ),
    windows AS
    (
        SELECT
            subject, plan, price, period_start, period_end, window_start, window_end,
            any(meter) AS meter, any(model) AS model, any(currency) AS currency,
            any(period_quantity) AS period_quantity, any(period_amount) AS period_amount, any(tiers) AS tiers,
            -- 1: in this period only; 2: reaches into another; 3: lies in another as well; 4: reaches beyond this one.
            any(multiIf(
                NOT inside, 4,
                arrayExists(span -> span.1 <= window_start AND window_end <= span.2, rivals), 3,
                notEmpty(rivals), 2,
                1
            )) AS doubt,
            sum(value) AS quantity
        FROM pairs
        GROUP BY subject, plan, price, period_start, period_end, window_start, window_end
    ),
    summed AS
    (
        SELECT
            *,
            min(doubt) OVER period AS least_doubt,
            sumIf(quantity, doubt <= 1) OVER period AS sum_1,
            sumIf(quantity, doubt <= 2) OVER period AS sum_2,
            sumIf(quantity, doubt <= 3) OVER period AS sum_3,
            sum(quantity) OVER period AS sum_4,
            multiIf(
                least_doubt <= 1 AND sum_1 = period_quantity, 1,
                least_doubt <= 2 AND sum_2 = period_quantity, 2,
                least_doubt <= 3 AND sum_3 = period_quantity, 3,
                sum_4 = period_quantity, 4,
                0
            ) AS enough,
            sum_4 - sum_1 AS doubtful,
            period_quantity - sum_1 AS rest,
            doubtful != 0 AND least(0, doubtful) <= rest AND rest <= greatest(0, doubtful) AS shared
        FROM windows
        WINDOW period AS (PARTITION BY subject, plan, price, period_start, period_end)
    ),
    cumulated AS
    (
        SELECT
            *,
            row_number() OVER backwards = 1 AS is_last,
            sum(quantity) OVER onwards AS whole_reached,
            sumIf(quantity, doubt > 1) OVER onwards AS doubtful_reached,
            multiIf(
                is_last, period_quantity,
                enough != 0, whole_reached,
                if(shared, whole_reached - doubtful_reached, toDecimal128(0, 12)) + toDecimal128(
                    reinterpret(
                        intDivOrZero(
                            reinterpret(
                                toDecimal256(if(shared, rest, period_quantity), 12)
                                    * toDecimal256(if(shared, doubtful_reached, whole_reached), 12),
                                'Int256'
                            ),
                            reinterpret(toDecimal256(if(shared, doubtful, sum_4), 12), 'Int256')
                        ), 'Decimal(76, 12)'
                    ), 12
                )
            ) AS reached
        FROM summed
        WHERE enough = 0 OR doubt <= enough
        WINDOW
            onwards AS (
                PARTITION BY subject, plan, price, period_start, period_end
                ORDER BY window_start, window_end ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
            ),
            backwards AS (
                PARTITION BY subject, plan, price, period_start, period_end ORDER BY window_start DESC, window_end DESC
            )
    ),
    -- Divided as integers in units of 10^-24: divideDecimal takes a hundred times as long. The multiplication of
    -- decimals before it fails on an overflow, which one of integers would not.
    charged AS
    (
        SELECT
            *,
            multiIf(
                is_last, reinterpret(period_amount, 'Int256'),
                model = 'graduated',
                arrayFold(
                    (left, tier) -> (
                        left.1 - least(left.1, tier.1),
                        left.2 + intDivOrZero(
                            reinterpret(tier.2 * toDecimal256(least(left.1, tier.1), 12), 'Int256'),
                            reinterpret(toDecimal256(tier.1, 12), 'Int256')
                        )
                    ),
                    tiers,
                    (greatest(reached, toDecimal128(0, 12)), toInt256(0))
                ).2,
                intDivOrZero(
                    reinterpret(period_amount * toDecimal256(reached, 12), 'Int256'),
                    reinterpret(toDecimal256(period_quantity, 12), 'Int256')
                )
            ) AS amount_reached
        FROM cumulated
    )
SELECT
    subject, plan, price, period_start, period_end, meter, window_start, window_end,
    reached - lagInFrame(reached) OVER onwards AS quantity,
    reinterpret(amount_reached - lagInFrame(amount_reached) OVER onwards, 'Decimal(76, 24)') AS amount,
    currency
FROM charged
WINDOW onwards AS (
    PARTITION BY subject, plan, price, period_start, period_end
    ORDER BY window_start, window_end ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
);

-- The state of every metered entitlement period, and how much of it is used.
CREATE VIEW quota_status AS
SELECT
    subject, plan, feature, period_start, period_end, meter, used, allowance,
    greatest(allowance - used, toDecimal128(0, 12)) AS remaining,
    state, inputs, catalog_version
FROM quotas FINAL
WHERE inputs != 0;

-- Who is on which plan by subscriptions that events made, past ones and those to come. Of what was planned for the same
-- time, the later word holds. A subscription that ended on its first day never was.
CREATE VIEW subscriptions_current AS
WITH
    -- A subscription is made by its create; the same start and zone may be made again once it was taken back.
    numbered AS
    (
        SELECT
            *,
            countIf(action = 'create') OVER (
                PARTITION BY log_topic, log_partition, subject, start, timezone ORDER BY log_offset, log_index
                ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
            ) AS made
        FROM subscriptions FINAL
    ),
    judged AS
    (
        SELECT
            *,
            last_value(end) OVER whole AS last_end,
            argMaxIf(effective_from, (log_offset, log_index), action = 'end') OVER whole AS ended_at,
            countIf(action = 'end') OVER whole AS ends,
            countIf(action = 'change') OVER later AS changes_later,
            minIf(effective_from, action = 'change') OVER later AS replaced_from
        FROM numbered
        WINDOW
            whole AS (
                PARTITION BY log_topic, log_partition, subject, start, timezone, made ORDER BY log_offset, log_index
                ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING
            ),
            later AS (
                PARTITION BY log_topic, log_partition, subject, start, timezone, made ORDER BY log_offset, log_index
                ROWS BETWEEN 1 FOLLOWING AND UNBOUNDED FOLLOWING
            )
    )
SELECT
    subject, start, last_end AS end, timezone, plan, effective_from AS plan_from,
    log_topic, log_partition, log_offset, log_index
FROM judged
WHERE action != 'end'
    AND (last_end IS NULL OR last_end != start)
    AND (ends = 0 OR effective_from < ended_at)
    AND (changes_later = 0 OR effective_from < replaced_from);

-- What was rejected, why, and how recently; example is the detail of the latest.
CREATE VIEW rejects_by_reason AS
SELECT
    log_topic, reason, count() AS events, max(log_time) AS last_log_time,
    argMax(detail, (log_time, log_partition, log_offset, log_index)) AS example
FROM rejects FINAL
GROUP BY log_topic, reason;

-- Per partition, up to the offset that is counted: every event is accepted or rejected.
CREATE VIEW completeness AS
SELECT
    log_topic,
    log_partition,
    max(next) AS next_offset,
    max(read_messages) AS messages,
    max(read_events) AS events,
    sum(is_accepted) AS accepted,
    sum(is_rejected) AS rejected,
    events = accepted + rejected AS balanced
FROM
(
    SELECT
        log_topic, log_partition, next_offset AS next, messages AS read_messages, events AS read_events,
        0 AS is_accepted, 0 AS is_rejected
    FROM progress FINAL
    UNION ALL
    SELECT e.log_topic, e.log_partition, 0, 0, 0, 1, 0
    FROM (SELECT log_topic, log_partition, log_offset FROM events FINAL) AS e
    INNER JOIN (SELECT log_topic, log_partition, next_offset FROM progress FINAL) AS p USING (log_topic, log_partition)
    WHERE e.log_offset < p.next_offset
    UNION ALL
    SELECT r.log_topic, r.log_partition, 0, 0, 0, 0, 1
    FROM (SELECT log_topic, log_partition, log_offset FROM rejects FINAL) AS r
    INNER JOIN (SELECT log_topic, log_partition, next_offset FROM progress FINAL) AS p USING (log_topic, log_partition)
    WHERE r.log_offset < p.next_offset
)
GROUP BY log_topic, log_partition;
