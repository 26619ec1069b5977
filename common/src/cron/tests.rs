//! What people expect of cron, and a comparison with an independent implementation.

use chrono::{DateTime, SecondsFormat, TimeDelta, TimeZone, Utc};
use chrono_tz::{TZ_VARIANTS, Tz};
use croner::parser::CronParser;
use proptest::prelude::*;
use rstest::rstest;

use super::{Cron, Error};

fn at(text: &str) -> DateTime<Utc> {
    DateTime::parse_from_rfc3339(text).unwrap().to_utc()
}

/// The next moments, on the wall of the zone.
fn next(expression: &str, zone: &str, after: &str, count: usize) -> Vec<String> {
    let cron = Cron::parse(expression, zone).unwrap();
    let zone: Tz = zone.parse().unwrap();
    let moments = cron.next_n(at(after), count);
    moments
        .iter()
        .map(|moment| moment.with_timezone(&zone).to_rfc3339_opts(SecondsFormat::Secs, true))
        .collect()
}

#[rstest]
#[case("*/15 9-17 * * MON-FRI", "2026-11-20T17:50:00Z", "2026-11-23T09:00:00Z")]
#[case("0 0 13 * 5", "2026-11-07T00:00:00Z", "2026-11-13T00:00:00Z")]
#[case("0 0 13 * 5", "2026-11-13T00:00:00Z", "2026-11-20T00:00:00Z")]
#[case("0 0 * * 0", "2026-11-20T00:00:00Z", "2026-11-22T00:00:00Z")]
#[case("0 0 * * 7", "2026-11-20T00:00:00Z", "2026-11-22T00:00:00Z")]
#[case("0 0 * * sat-sun", "2026-11-22T00:00:00Z", "2026-11-28T00:00:00Z")]
#[case("0 0 */2 * 1", "2026-11-01T00:00:00Z", "2026-11-09T00:00:00Z")]
#[case("0 0 29 feb *", "2026-01-01T00:00:00Z", "2028-02-29T00:00:00Z")]
#[case("0 0 29 2 */6", "2026-01-01T00:00:00Z", "2032-02-29T00:00:00Z")]
#[case("5,10-12,20-30/5 4 * * *", "2026-01-01T04:12:00Z", "2026-01-01T04:20:00Z")]
#[case("*/20 * * * * *", "2026-01-01T00:00:20.5Z", "2026-01-01T00:00:40Z")]
#[case("* * * * * *", "2026-12-31T23:59:59.999999Z", "2027-01-01T00:00:00Z")]
#[case("\t0  12   * * * ", "2026-01-01T12:00:00Z", "2026-01-02T12:00:00Z")]
#[case("@hourly", "2026-01-01T12:00:00Z", "2026-01-01T13:00:00Z")]
#[case("@daily", "2026-01-01T12:00:00Z", "2026-01-02T00:00:00Z")]
#[case("@weekly", "2026-11-20T12:00:00Z", "2026-11-22T00:00:00Z")]
#[case("@monthly", "2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z")]
#[case("@yearly", "2026-01-01T00:00:00Z", "2027-01-01T00:00:00Z")]
#[case("every 90s", "1970-01-01T00:01:30Z", "1970-01-01T00:03:00Z")]
#[case("every 1h 30m", "1970-01-01T00:00:00.1Z", "1970-01-01T01:30:00Z")]
#[case("at 2026-12-01T09:00", "2026-01-01T00:00:00Z", "2026-12-01T09:00:00Z")]
#[case("at 2026-12-01 09:00:30", "2026-12-01T09:00:29.999999Z", "2026-12-01T09:00:30Z")]
#[case("AT 2026-12-01T09:00:00+02:00", "2026-01-01T00:00:00Z", "2026-12-01T07:00:00Z")]
fn the_next_moment_is_the_one_that_unix_users_expect(
    #[case] expression: &str,
    #[case] after: &str,
    #[case] expected: &str,
) {
    let found = Cron::parse(expression, "UTC").unwrap().next_after(at(after)).unwrap();
    assert_eq!(found, at(expected));
}

#[rstest]
#[case("* * * *", 8, "5 fields")]
#[case("", 1, "5 fields")]
#[case("0 0 0 1 1 * 2030", 13, "5 fields")]
#[case("61 * * * *", 1, "minute: 61 is outside 0 to 59")]
#[case("0 24 * * *", 3, "hour: 24 is outside 0 to 23")]
#[case("0 0 0 * *", 5, "day: 0 is outside 1 to 31")]
#[case("0 0 * * 8", 9, "0 and 7 are Sunday")]
#[case("0 0 * * MONDAY", 9, "did you mean MON?")]
#[case("0 0 * JUNE *", 7, "did you mean JUN?")]
#[case("0 0 1,2,x * *", 9, "day: \"x\" is not a number")]
#[case("5/15 * * * *", 1, "write \"5-59/15\"")]
#[case("*/0 * * * *", 3, "at least 1")]
#[case("*/90 * * * *", 3, "write `every 90m`")]
#[case("0 22-4 * * *", 3, "write \"22-23,0-4\"")]
#[case("0 0 * * 6-0", 9, "write \"6-7\"")]
#[case("0 0 ? * *", 5, "write *")]
#[case("0 0 L * *", 5, "no last day")]
#[case("0 0 * * 5#2", 10, "n-th weekday")]
#[case("0 0 1, * *", 7, "something is missing")]
#[case("-5 * * * *", 1, "something is missing")]
#[case("*/ * * * *", 3, "something is missing")]
#[case("99999999999999999999 * * * *", 1, "outside 0 to 59")]
#[case("é * * * *", 1, "not a number")]
#[case("0 é,61 * * *", 3, "not a number")]
#[case("@reboot", 1, "has no time")]
#[case("@fortnightly", 1, "@weekly")]
#[case("every", 1, "is not a duration")]
#[case("every soon", 7, "is not a duration")]
#[case("every 1 month", 7, "is not a duration")]
#[case("every 100ms", 7, "from 1s")]
#[case("every 0s", 7, "from 1s")]
#[case("at", 1, "at 2026-12-01T09:00")]
#[case("at noon", 4, "on the wall of the zone")]
#[case("at 2026-02-30T09:00", 4, "on the wall of the zone")]
#[case("at 2026-12-01 09:00 UTC", 21, "on the wall of the zone")]
fn a_wrong_expression_is_refused_where_it_is_wrong(
    #[case] expression: &str,
    #[case] expected: usize,
    #[case] says: &str,
) {
    let error = Cron::parse(expression, "UTC").unwrap_err();
    let Error::Expression { position, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!(*position, expected, "{error}");
    assert!(error.to_string().contains(says), "{error}");
}

#[rstest]
#[case("0 0 30 2 *")]
#[case("0 0 31 2,4,6,9,11 *")]
#[case("0 0 30 feb */2")]
fn an_expression_that_never_fires_is_refused(#[case] expression: &str) {
    assert_eq!(Cron::parse(expression, "UTC").unwrap_err(), Error::NeverFires);
}

#[rstest]
#[case("Europe/Berln", None)]
#[case("europe/berlin", Some("Europe/Berlin"))]
#[case("America/Berlin", Some("Europe/Berlin"))]
#[case("New York", Some("America/New_York"))]
#[case("", None)]
fn an_unknown_zone_is_refused_with_what_was_meant(#[case] name: &str, #[case] expected: Option<&str>) {
    let Error::Zone { meant, .. } = Cron::parse("@daily", name).unwrap_err() else {
        panic!("{name}")
    };
    assert_eq!(meant.as_deref(), expected);
}

#[test]
fn a_skipped_time_fires_at_the_first_valid_moment() {
    let day = next("30 2 * * *", "Europe/Berlin", "2026-03-28T12:00:00Z", 2);
    assert_eq!(day, ["2026-03-29T03:00:00+02:00", "2026-03-30T02:30:00+02:00"]);
    // Several skipped times are one moment, and a time that stands there anyway is the same one.
    let several = next("0,15,30 2,3 * * *", "Europe/Berlin", "2026-03-29T00:59:00Z", 3);
    assert_eq!(
        several,
        [
            "2026-03-29T03:00:00+02:00",
            "2026-03-29T03:15:00+02:00",
            "2026-03-29T03:30:00+02:00"
        ]
    );
    // Havana skips midnight.
    let midnight = next("0 0 * * *", "America/Havana", "2026-03-07T12:00:00-05:00", 2);
    assert_eq!(midnight, ["2026-03-08T01:00:00-04:00", "2026-03-09T00:00:00-04:00"]);
    // Samoa skipped 30 December 2011.
    let samoa = next("0 12 30 * *", "Pacific/Apia", "2011-12-29T12:00:00-10:00", 2);
    assert_eq!(samoa, ["2011-12-31T00:00:00+14:00", "2012-01-30T12:00:00+14:00"]);
}

#[test]
fn a_repeated_time_fires_once() {
    let day = next("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00:00Z", 2);
    assert_eq!(day, ["2026-10-25T02:30:00+02:00", "2026-10-26T02:30:00+01:00"]);
    let lord_howe = next("45 1 * * *", "Australia/Lord_Howe", "2026-04-04T00:00:00Z", 2);
    assert_eq!(lord_howe, ["2026-04-05T01:45:00+11:00", "2026-04-06T01:45:00+10:30"]);
}

#[test]
fn intervals_keep_running() {
    let fall = next("*/30 * * * *", "Europe/Berlin", "2026-10-24T23:59:00Z", 6);
    let passes = [
        "02:00:00+02:00",
        "02:30:00+02:00",
        "02:00:00+01:00",
        "02:30:00+01:00",
        "03:00:00+01:00",
    ];
    assert_eq!(fall[..5], passes.map(|time| format!("2026-10-25T{time}")));
    let spring = next("0 * * * *", "America/New_York", "2026-03-08T06:30:00Z", 2);
    assert_eq!(spring, ["2026-03-08T03:00:00-04:00", "2026-03-08T04:00:00-04:00"]);
    let every = Cron::parse("every 20m", "Europe/Berlin")
        .unwrap()
        .next_n(at("2026-10-24T23:59:00Z"), 12);
    assert!(every.windows(2).all(|pair| pair[1] - pair[0] == TimeDelta::minutes(20)));
}

#[test]
fn once_is_a_time_on_the_wall_and_once() {
    let once = |at: &str| next(&format!("at {at}"), "Europe/Berlin", "2026-01-01T00:00:00Z", 3);
    assert_eq!(once("2026-12-01T09:00"), ["2026-12-01T09:00:00+01:00"]);
    assert_eq!(once("2026-03-29T02:30"), ["2026-03-29T03:00:00+02:00"], "skipped");
    assert_eq!(once("2026-10-25T02:30"), ["2026-10-25T02:30:00+02:00"], "repeated");
}

/// An expression, and the expressions whose moments together are what croner should find. croner calls a list of times
/// an interval, and we do not, so a list is compared with the union of its members.
fn expressions() -> impl Strategy<Value = (String, Vec<String>)> {
    let days = prop_oneof![
        4 => Just("* * *".to_owned()),
        1 => (1..=31_u8).prop_map(|day| format!("{day} * *")),
        1 => (1..=28_u8, 1..=12_u8).prop_map(|(day, month)| format!("{day} {month} *")),
        1 => (0..=7_u8).prop_map(|weekday| format!("* * {weekday}")),
        1 => (1..=31_u8, 0..=5_u8).prop_map(|(day, weekday)| format!("{day} * {weekday}-{}", weekday + 2)),
        1 => (2..=15_u8).prop_map(|step| format!("*/{step} * *")),
    ];
    let interval = prop_oneof![
        Just("0 * *".to_owned()),
        (0..=59_u8).prop_map(|minute| format!("0 {minute} *")),
        (2..=59_u8).prop_map(|step| format!("0 */{step} *")),
        (0..=59_u8, 2..=23_u8).prop_map(|(minute, step)| format!("0 {minute} */{step}")),
        (0..=22_u8).prop_map(|hour| format!("0 */7 {hour}-{}", hour + 1)),
        (1..=59_u8, 0..=23_u8).prop_map(|(step, hour)| format!("*/{step} 17 {hour}")),
    ];
    let times = (
        0..=59_u8,
        proptest::collection::btree_set(0..=59_u8, 1..3),
        proptest::collection::btree_set(0..=4_u8, 1..4),
    );
    let times = times.prop_map(|(second, minutes, hours)| {
        let list = |set: &std::collections::BTreeSet<u8>| set.iter().map(u8::to_string).collect::<Vec<_>>().join(",");
        let members = hours
            .iter()
            .flat_map(|hour| minutes.iter().map(move |minute| format!("{second} {minute} {hour}")));
        (
            format!("{second} {} {}", list(&minutes), list(&hours)),
            members.collect::<Vec<_>>(),
        )
    });
    let any = prop_oneof![interval.prop_map(|time| (time.clone(), vec![time])), times];
    (any, days).prop_map(|((time, members), days)| {
        (
            format!("{time} {days}"),
            members.into_iter().map(|member| format!("{member} {days}")).collect(),
        )
    })
}

/// A moment near a change of the zone's offset, when one comes within two years.
fn near_a_change(zone: Tz, from: DateTime<Utc>, away: TimeDelta) -> DateTime<Utc> {
    let offset = |at: DateTime<Utc>| chrono::Offset::fix(&zone.offset_from_utc_datetime(&at.naive_utc()));
    let mut day = from;
    for _ in 0..730 {
        let following = day + TimeDelta::days(1);
        if offset(day) != offset(following) {
            let hour = (0..24)
                .map(|hour| day + TimeDelta::hours(hour))
                .take_while(|at| offset(*at) == offset(day))
                .last();
            return hour.unwrap_or(day) + away;
        }
        day = following;
    }
    from
}

/// Whether a gap ends here that began on the day before. croner wants the day of its end to match, we do not.
fn gap_over_midnight(zone: Tz, end: DateTime<Utc>) -> bool {
    let wall = |at: DateTime<Utc>| zone.from_utc_datetime(&at.naive_utc()).naive_local();
    (wall(end - TimeDelta::seconds(1)) + TimeDelta::seconds(1)).date() != wall(end).date()
}

/// What is compared around every change of every zone: the expression, and the members of its union.
const SWEPT: [(&str, &[&str]); 12] = [
    ("30 2 * * *", &["30 2 * * *"]),
    ("0 0 * * *", &["0 0 * * *"]),
    ("59 23 * * *", &["59 23 * * *"]),
    ("0 3 * * 0", &["0 3 * * 0"]),
    ("15 1 1-7 * 7", &["15 1 1-7 * 7"]),
    ("0 2,3 * * *", &["0 2 * * *", "0 3 * * *"]),
    ("5,35 1 * * *", &["5 1 * * *", "35 1 * * *"]),
    ("30 0 29 * *", &["30 0 29 * *"]),
    ("*/20 * * * *", &["*/20 * * * *"]),
    ("0 * * * *", &["0 * * * *"]),
    ("17 */3 * * *", &["17 */3 * * *"]),
    ("*/45 59 1 * * *", &["*/45 59 1 * * *"]),
];

/// Every change of a zone's offset from 1970 to 2040: the last second before it.
fn changes(zone: Tz) -> Vec<DateTime<Utc>> {
    let offset = |second: i64| {
        let at = DateTime::from_timestamp(second, 0).unwrap();
        chrono::Offset::fix(&zone.offset_from_utc_datetime(&at.naive_utc()))
    };
    let (day, end) = (86_400, 2_240_524_800);
    let mut found = Vec::new();
    for from in (0..end).step_by(86_400) {
        if offset(from) == offset(from + day) {
            continue;
        }
        let (mut low, mut high) = (from, from + day);
        while low + 1 < high {
            let middle = low.midpoint(high);
            if offset(middle) == offset(from) {
                low = middle;
            } else {
                high = middle;
            }
        }
        found.push(DateTime::from_timestamp(low, 0).unwrap());
    }
    found
}

/// Whether both could be compared at `time`; panics where they differ.
fn agrees(ours: &Cron, theirs: &[croner::Cron], zone: Tz, time: DateTime<Utc>) -> bool {
    let found = ours.next_after(time).unwrap();
    assert!(found > time);
    let local = zone.from_utc_datetime(&time.naive_utc());
    let find = |cron: &croner::Cron| cron.find_next_occurrence(&local, false);
    let expected: Result<Vec<_>, _> = theirs.iter().map(find).collect();
    // croner gives up on gaps of more than two hours, and reads those over midnight otherwise.
    let Ok(expected) = expected else { return false };
    if gap_over_midnight(zone, found) {
        return false;
    }
    let expected = expected.iter().map(DateTime::to_utc).min().unwrap();
    assert_eq!(found, expected, "{ours:?} in {zone} after {local}");
    true
}

/// Zones × changes of their clocks from 1970 to 2040 × expressions × moments before, at and after each change, against
/// croner. `HOTHOUSE_SWEEP=full` takes every zone, otherwise it is every 50th.
#[test]
fn around_every_change_of_the_clocks_an_independent_implementation_finds_the_same() {
    let is_full = std::env::var_os("HOTHOUSE_SWEEP").is_some_and(|size| size == "full");
    let begun = std::time::Instant::now();
    let (mut compared, mut differing) = (0_u64, 0_u64);
    for zone in TZ_VARIANTS.iter().step_by(if is_full { 1 } else { 50 }) {
        let changes = changes(*zone);
        for (expression, members) in &SWEPT {
            let ours = Cron::parse(expression, zone.name()).unwrap();
            let parser = CronParser::new();
            let theirs: Vec<_> = members.iter().map(|member| parser.parse(member).unwrap()).collect();
            for change in &changes {
                let times = [-1_500, -190, -61, -1, 0, 31].map(|minutes| *change + TimeDelta::minutes(minutes));
                let agreed = times
                    .iter()
                    .filter(|time| agrees(&ours, &theirs, *zone, **time))
                    .count() as u64;
                compared += agreed;
                differing += times.len() as u64 - agreed;
            }
        }
    }
    assert!(
        compared > 5_000 && differing * 50 < compared,
        "{compared} compared, {differing} not"
    );
    if is_full {
        let told = format!("{compared} compared, {differing} not, {:.0?}\n", begun.elapsed());
        std::fs::write(std::env::temp_dir().join("hothouse-sweep.txt"), told).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    #[test]
    fn an_independent_implementation_finds_the_same(
        (expression, members) in expressions(),
        zone in proptest::sample::select(&TZ_VARIANTS[..]),
        second in 0..2_208_988_800_i64,
        near in proptest::option::weighted(0.8, -90_000..90_000_i64),
    ) {
        let ours = Cron::parse(&expression, zone.name()).unwrap();
        let parser = CronParser::new();
        let theirs: Vec<_> = members.iter().map(|member| parser.parse(member).unwrap()).collect();
        let mut time = DateTime::from_timestamp(second, 0).unwrap();
        if let Some(away) = near {
            time = near_a_change(zone, time, TimeDelta::seconds(away));
        }
        for _ in 0..4 {
            let found = ours.next_after(time).unwrap();
            prop_assert!(found > time);
            let local = zone.from_utc_datetime(&time.naive_utc());
            // An error is a gap of more than two hours, which croner gives up on.
            let expected: Result<Vec<_>, _> = theirs.iter().map(|cron| cron.find_next_occurrence(&local, false)).collect();
            if let Ok(expected) = expected && !gap_over_midnight(zone, found) {
                let expected = expected.iter().map(DateTime::to_utc).min().unwrap();
                prop_assert_eq!(found, expected, "{} in {} after {}", expression, zone, local);
            }
            time = found;
        }
    }

    #[test]
    fn no_text_makes_it_panic(expression in "[-*/,0-9A-Za-z@?#é ]{0,40}", zone in "\\PC{0,20}") {
        drop(Cron::parse(&expression, &zone));
        if let Ok(cron) = Cron::parse(&expression, "Europe/London") {
            drop(cron.next_n(DateTime::UNIX_EPOCH, 3));
        }
    }
}
